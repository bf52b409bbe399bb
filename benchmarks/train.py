"""Time and accuracy of training, contender against contender, in alternation on one machine.

    python benchmarks/train.py data/cifar10 article vivace-fast --rounds 3 --cold-cache

Each run is a fresh process; the order turns round in every round (A B, B A, …). The first contender is what the others
are compared with: ratios are of wall-clock from process start to saved weights, paired by round, as medians with a
bootstrap interval. Writes benchmarks/results/DATE-train-DATA-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender, Result
from vivace.files import write_json
from vivace.hardware import describe
from vivace.measure import bootstrap_ratio

RESULTS = Path(__file__).parent / "results"


def run_once(contender: Contender, data: Path, work: Path, *, cache: Path) -> Result:
    """One fresh process. Raises RuntimeError with the end of its output if it fails."""
    folder = work / f"{contender.name}-{time.time_ns()}"
    began = time.perf_counter()
    done = subprocess.run(
        contender.command(data, folder),
        capture_output=True,
        text=True,
        env={**os.environ, "VIVACE_CACHE": str(cache)},
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"{contender.name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    result = contender.read(json.loads(done.stdout.strip().splitlines()[-1]), folder, seconds)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def run_rounds(
    contenders: list[Contender], data: Path, rounds: int, *, cold_cache: bool, work: Path
) -> dict[str, list[Result]]:
    """All results by contender, in the order of the rounds."""
    results: dict[str, list[Result]] = {contender.name: [] for contender in contenders}
    cache = work / "cache"
    for index in range(rounds):
        for contender in contenders if index % 2 == 0 else contenders[::-1]:
            if cold_cache:
                shutil.rmtree(cache, ignore_errors=True)
            result = run_once(contender, data, work, cache=cache)
            results[contender.name].append(result)
            print(
                f"round {index + 1}/{rounds}  {contender.name:<18} top-1 {100 * result.top1:6.2f} %  "
                f"loop {result.train_seconds:7.1f} s  in all {result.total_seconds:7.1f} s",
                flush=True,
            )
    return results


def summarize(results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """A row per contender: means, spreads, and the ratio to the first one."""
    first = next(iter(results.values()))
    rows = []
    for name, runs in results.items():
        top1 = [run.top1 for run in runs]
        row: dict[str, Any] = {
            "contender": name,
            "n": len(runs),
            "top1_mean": statistics.mean(top1),
            "top1_sd": statistics.stdev(top1) if len(runs) > 1 else None,
            "best_top1_mean": statistics.mean(run.best_top1 for run in runs),
            "train_seconds": [run.train_seconds for run in runs],
            "total_seconds": [run.total_seconds for run in runs],
            "train_seconds_median": statistics.median(run.train_seconds for run in runs),
            "total_seconds_median": statistics.median(run.total_seconds for run in runs),
        }
        for what in ("train", "total"):
            base = [getattr(run, f"{what}_seconds") for run in first]
            mine = [getattr(run, f"{what}_seconds") for run in runs]
            row[f"{what}_ratio"], row[f"{what}_ratio_low"], row[f"{what}_ratio_high"] = bootstrap_ratio(base, mine)
        rows.append(row)
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    machine = record["environment"]
    lines = [
        f"# Training on {record['data']}, {record['date']}",
        "",
        f"{machine['cpu']}, {machine['num_cpus']} cores; torch {machine['versions']['torch']}, Python "
        f"{machine['python']}. {record['rounds']} rounds in alternation, each run a fresh process; cache of decoded "
        f"images {'cold' if record['cold_cache'] else 'warm after the first run'}. Times are medians; the ratio is "
        "the first contender's time over this one's, with a 95 % bootstrap interval over the rounds.",
        "",
        "| contender | n | top-1 % ± sd | best look % | loop s | in all s | × faster, loop | × faster, in all |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["summary"]:
        spread = "" if row["top1_sd"] is None else f" ± {100 * row['top1_sd']:.2f}"
        ratios = [
            f"{row[f'{what}_ratio']:.2f} [{row[f'{what}_ratio_low']:.2f}, {row[f'{what}_ratio_high']:.2f}]"
            for what in ("train", "total")
        ]
        lines.append(
            f"| {row['contender']} | {row['n']} | {100 * row['top1_mean']:.2f}{spread} | "
            f"{100 * row['best_top1_mean']:.2f} | {row['train_seconds_median']:.1f} | "
            f"{row['total_seconds_median']:.1f} | {ratios[0]} | {ratios[1]} |"
        )
    lines += ["", *(f"- {name}: {about}" for name, about in record["contenders"].items()), "", f"`{record['command']}`"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/ and test/ or val/")
    parser.add_argument(
        "contenders",
        nargs="+",
        choices=sorted(CONTENDERS),
        metavar="CONTENDER",
        help=f"the first is the baseline: {', '.join(CONTENDERS)}",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold-cache", action="store_true", help="decode again in every run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    contenders = [CONTENDERS[name] for name in args.contenders]
    with tempfile.TemporaryDirectory(prefix="vivace-bench-") as work:
        results = run_rounds(contenders, args.data, args.rounds, cold_cache=args.cold_cache, work=Path(work))
    environment = describe()
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    record = {
        "date": date,
        "data": args.data.name,
        "command": f"python benchmarks/train.py {' '.join(sys.argv[1:])}",
        "rounds": args.rounds,
        "cold_cache": args.cold_cache,
        "environment": environment,
        "contenders": {contender.name: contender.about for contender in contenders},
        "summary": summarize(results),
        "runs": {name: [dataclasses.asdict(run) for run in runs] for name, runs in results.items()},
    }
    hardware = re.sub(r"[^a-z0-9]+", "-", f"{environment['num_cpus']}x {environment['cpu']}".lower()).strip("-")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{date}-train-{args.data.name}-{hardware}.json"
    write_json(path, record)
    path.with_suffix(".md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
