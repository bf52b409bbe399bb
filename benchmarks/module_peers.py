"""vivace.accelerate on ten modules against NNCF's accuracy control, torchao, Olive and torch.compile.

    python benchmarks/module_peers.py --only "LSTM" "two inputs"
    python benchmarks/module_peers.py --keep

Every side gets the same module and the same 1,024 labelled samples, in a process of its own (peers/module_ways.py), and
makes its program there; then all are timed interleaved, on batches of 16, and judged on 1,024 samples that none of them
saw: the drop against the module as it is, with a one-sided 95 % bound (Tango's, or by betting for IoU). Sides without
accuracy control may lose more than --max-drop: they are slower or faster at another accuracy. Olive runs in an
environment of its own (environments.py). Adds a line of JSON for each module to --out; --keep puts them among the
results.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alternate import Contestant, Measured, alternate
from environments import ENVIRONMENTS, EnvironmentFailed, ensure_environment
from fitted_modules import TEN, made, samples, with_masks
from peers.module_ways import ABOUT, SIDES, scores_of
from records import RESULTS, page, save, today
from vivace.acceleration.decide import CONFIDENCE
from vivace.hardware import describe, num_cpus
from vivace.statistics.bounded import score_loss
from vivace.statistics.intervals import student_ratio
from vivace.statistics.paired import paired_loss

HERE = Path(__file__).parent
TUNE_SAMPLES, HELD_OUT_SAMPLES = 1024, 1024
BASELINES = ("eager", "compiled")


def write_task(name: str, work: Path) -> None:
    """The samples to tune on and those to judge on."""
    task, module = TEN[name], made(name)
    for split, count, seed in (("tune", TUNE_SAMPLES, 2), ("held-out", HELD_OUT_SAMPLES, 3)):
        batches = samples(task, count, seed=seed)
        torch.save(with_masks(module, batches) if task.kind == "masks" else batches, work / f"{split}.pt")


def contestants(name: str, work: Path, args: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """(the sides, why others are missing)."""
    found, missing = [], {}
    for side in args.sides:
        python = sys.executable
        if side == "olive":
            try:
                python = str(ensure_environment("olive", args.environments))
            except EnvironmentFailed as error:
                missing[side] = str(error).partition("\n")[0]
                continue
        job = {"side": side, "module": name, "work": str(work), "threads": num_cpus(), "max_drop": args.max_drop}
        command = (python, str(HERE / "peers" / "module_side.py"))
        found.append(Contestant(name=side, command=command, job={**job, "within": args.within}))
    return found, missing


def loss_of(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """(drop, its upper bound), in points."""
    if set(np.unique(np.concatenate([before, after]))) <= {0.0, 1.0}:
        paired = paired_loss(before == 1, after == 1, confidence=CONFIDENCE)
        return 100 * paired.drop, 100 * paired.bound
    loss = score_loss(before, after, confidence=CONFIDENCE)
    return 100 * loss.drop, 100 * loss.bound


def judged(name: str, work: Path, measured: dict[str, Measured]) -> list[dict[str, Any]]:
    """A row for each side that could be timed."""
    targets = torch.cat([labels for _, labels in torch.load(work / "held-out.pt")])
    masks = TEN[name].kind == "masks"
    scores = {side: scores_of(np.load(work / f"{side}.npy"), targets, masks=masks) for side in measured}
    blocks = {side: one.medians_ms[0] for side, one in measured.items()}
    baseline = min((side for side in BASELINES if side in blocks), key=lambda side: float(np.median(blocks[side])))
    rows = []
    for side, one in measured.items():
        drop, bound = loss_of(scores["eager"], scores[side])
        row = {"side": side, "ms": one.percentile(50), "score": float(scores[side].mean()), "drop": drop}
        row |= {"bound": bound, "speedup": student_ratio(list(blocks[baseline] / blocks[side])), "baseline": baseline}
        rows.append({**row, **json.loads((work / f"{side}.json").read_text())})
    return rows


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All sides of one module."""
    with tempfile.TemporaryDirectory(prefix="vivace-modules-") as folder:
        work = Path(folder)
        write_task(name, work)
        sides, missing = contestants(name, work, args)
        asked = {one.name: {"split": "held-out", "out": str(work / f"{one.name}.npy")} for one in sides}
        measured, failures = alternate(
            sides,
            starts=1,
            rounds=args.rounds,
            classify=asked,
            tell=lambda message: print(message, file=sys.stderr, flush=True),
        )
        rows = judged(name, work, measured)
    return {
        "name": name,
        "max_drop": args.max_drop,
        "within": args.within,
        "rows": rows,
        "failures": missing | failures,
    }


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| module | side | a batch, ms | speed-up | drop | upper bound | seconds to make | what |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for row in result["rows"]:
            ratio, low, high = row["speedup"]
            over = row["bound"] > result["max_drop"]
            details = row["details"]
            what = " ".join(str(details[key]) for key in ("status", "runtime", "precision") if key in details)
            cells = [result["name"], row["side"], f"{row['ms']:.2f}", f"{ratio:.2f} [{low:.2f}, {high:.2f}]"]
            cells += [f"{row['drop']:.2f}", f"{row['bound']:.2f}{' (over)' if over else ''}"]
            cells += [f"{row['prepare_seconds']:.1f}", what or "–"]
            lines.append(f"| {' | '.join(cells)} |")
        for side, why in result["failures"].items():
            lines.append(f"| {result['name']} | {side} | – | – | – | – | – | failed: {why.replace('|', '/')[:200]} |")
    return lines


def claims(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each peer: how often vivace is faster, at a drop within the budget on both sides; and seconds."""
    lines, ran = [], {row["side"] for result in results for row in result["rows"]}
    ran.update(side for result in results for side in result["failures"])
    for peer in [side for side in SIDES if side != "vivace" and side in ran]:
        faster, slower, seconds, out = 0, [], [], 0
        for result in results:
            rows = {row["side"]: row for row in result["rows"]}
            if peer not in rows or "vivace" not in rows:
                out += 1
                continue
            ours, theirs = rows["vivace"], rows[peer]
            if theirs["bound"] > result["max_drop"]:
                out += 1
                continue
            faster += ours["ms"] < theirs["ms"]
            slower += [] if ours["ms"] < theirs["ms"] else [result["name"]]
            seconds.append(ours["prepare_seconds"] / theirs["prepare_seconds"])
        losses = f"; slower: {', '.join(slower)}" if slower else ""
        times = f", in {np.median(seconds):.2f} of its time (median)" if seconds and peer != "eager" else ""
        lines.append(
            f"- {peer}: vivace is faster on {faster} of {faster + len(slower)}{times}{losses}. On {out} others the "
            "peer failed or is not proven to be within the budget."
        )
    return lines


def markdown(record: dict[str, Any]) -> str:
    """The page of a record."""
    about = [f"- {side}: {words}." for side, words in ABOUT.items()]
    conditions = (
        f"; {num_cpus()} threads; batches of 16; {TUNE_SAMPLES} samples to tune on, {HELD_OUT_SAMPLES} to judge on; "
        "speed-ups over the faster of eager and compiled, one process a side"
    )
    lines = [*table(record["modules"]), "", *claims(record["modules"]), "", "The sides:", "", *about]
    return page(record, "Modules against peers", conditions, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(TEN), metavar="NAME", default=list(TEN))
    parser.add_argument("--sides", nargs="+", choices=sorted(SIDES), default=list(SIDES))
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--within", default="60s", help="time budget of vivace's search")
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each side")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("module-peers.jsonl"), help="file that lines are added to")
    parser.add_argument("--keep", action="store_true", help="put what is in --out among the results")
    args = parser.parse_args()
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.keep:
        record = {"date": today(), "command": shlex.join(["python", *sys.argv]), "environment": describe()}
        save({**record, "modules": known}, "modules", "peers", markdown, RESULTS)
        return
    for name in args.only:
        row = compare(name, args)
        known = [other for other in known if other["name"] != name] + [row]
        args.out.write_text("".join(json.dumps(one) + "\n" for one in known))
        print("\n".join(table([row])), flush=True)


if __name__ == "__main__":
    main()
