"""Time to a target accuracy: `vivace train --target` against the best `--within` that reaches it, found by a sweep.

    python benchmarks/targets.py data/cifar10 --targets 0.6 0.66 0.75 --within 8 10 12 16 20 30 --rounds 2

In a round every budget and every target is run once, in an order that is reversed in the next round, each in a process
of its own, with a seed of its round. Validation accuracy; seconds from the start of the process to the saved bundle, by
its own clock; and processor seconds of the process, which other programs on the machine disturb less. Before the first
round one run fills the cache of decoded images. A budget reaches a target if its mean accuracy over the rounds does.
Writes benchmarks/results/targets/DATE-DATA-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from records import RESULTS, page, save, today
from vivace.hardware import describe

__all__ = ["summarize"]

Runs = dict[str, list[dict[str, Any]]]


def one_run(data: Path, options: Sequence[str], seed: int) -> dict[str, Any]:
    """Accuracy and seconds of a run of `vivace train`. Raises RuntimeError with its last words where it fails."""
    with tempfile.TemporaryDirectory(prefix="vivace-targets-") as work:
        command = [sys.executable, "-m", "vivace", "train", str(data), "--run", str(Path(work, "run")), "--json"]
        command += ["--seed", str(seed), *options]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "val_top1": answer["val_top1"],
        "seconds": answer["total_seconds"],
        "command_seconds": round(seconds, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "epochs": answer["epochs"],
        "reached": answer["target_reached"],
        "plan": [line for line in done.stderr.splitlines() if line.startswith("target ")],
    }


def summarize(within: Mapping[str, Sequence[Mapping[str, Any]]], targets: Runs) -> list[dict[str, Any]]:
    """A row for each target: the smallest budget that reaches it, the runs with the target, and how they compare.

    within: budget → its runs. targets: target → its runs. The ratio is of processor seconds, means over the rounds;
    None where no budget of the sweep, or not every run with the target, reaches it.
    """
    rows = []
    for target, runs in targets.items():
        reaching = [name for name, its in within.items() if mean(run["val_top1"] for run in its) >= float(target)]
        best = min(reaching, key=float, default=None)
        reached = all(run["reached"] for run in runs)
        ratios: dict[str, float | None] = {"seconds": None, "processor_seconds": None}
        if best is not None and reached:
            ratios = {
                name: mean(run[name] for run in runs) / mean(run[name] for run in within[best]) for name in ratios
            }
        rows.append({"target": float(target), "best_within": best, "reached": reached, "ratios": ratios})
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    lines = ["| run | top-1 %, by round | seconds, by round | processor seconds | epochs |", "| --- |" + " --- |" * 4]
    for option in ("within", "target"):
        for name, runs in record[option].items():
            cells = (
                ", ".join(f"{100 * run['val_top1']:.2f}" for run in runs),
                ", ".join(f"{run['seconds']:.1f}" for run in runs),
                ", ".join(f"{run['processor_seconds']:.1f}" for run in runs),
                ", ".join(f"{run['epochs']:.2g}" for run in runs),
            )
            lines.append(f"| `--{option} {name}` | {' | '.join(cells)} |")
    lines += ["", "| target | best `--within` of the sweep | reached | × its seconds | × its processor seconds |"]
    lines.append("| --- |" + " --- |" * 4)
    for row in record["rows"]:
        ratios = [f"{value:.2f}" if value else "–" for value in row["ratios"].values()]
        lines.append(
            f"| {row['target']:g} | {row['best_within'] or 'none'} | {'yes' if row['reached'] else 'no'} | "
            f"{' | '.join(ratios)} |"
        )
    conditions = (
        f". Rounds: {record['rounds']}, all runs in each, in alternating order; warm cache; validation accuracy. "
        "The goal is a ratio of at most 1.3."
    )
    return page(record, f"Time to a target accuracy on {record['data']}", conditions, lines)


def sweep(
    data: Path, options: Sequence[tuple[str, str]], extra: Sequence[str], *, rounds: int, seed: int
) -> dict[str, Runs]:
    """{"within" or "target": {value: its runs}}."""
    found: dict[str, Runs] = {"within": {}, "target": {}}
    for index in range(rounds):
        for option, value in options if index % 2 == 0 else options[::-1]:
            run = one_run(data, [f"--{option}", value, *extra], seed + index)
            found[option].setdefault(value, []).append(run)
            print(
                f"round {index + 1}/{rounds}  --{option} {value:<6} top-1 {100 * run['val_top1']:6.2f} %  "
                f"{run['seconds']:7.1f} s  {run['epochs']:.3g} epochs",
                flush=True,
            )
    return {option: {value: runs[value] for value in sorted(runs, key=float)} for option, runs in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="data set, or its folder")
    parser.add_argument("--targets", nargs="+", default=["0.6", "0.66", "0.75"], metavar="ACCURACY")
    parser.add_argument("--within", nargs="+", default=["8", "10", "12", "16", "20", "30"], metavar="SECONDS")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each one after it has the next")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="options of vivace train, for all runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    # decodes the images
    one_run(args.data, ["--epochs", "1", *args.train], args.seed)
    options = [*(("within", value) for value in args.within), *(("target", value) for value in args.targets)]
    found = sweep(args.data, options, args.train, rounds=args.rounds, seed=args.seed)
    record = {
        "date": today(),
        "data": args.data.name,
        "command": f"python benchmarks/targets.py {' '.join(sys.argv[1:])}",
        "rounds": args.rounds,
        "seed": args.seed,
        "load": os.getloadavg(),
        "environment": describe(),
        **found,
        "rows": summarize(found["within"], found["target"]),
    }
    save(record, "targets", args.data.name, markdown, args.out)


if __name__ == "__main__":
    main()
