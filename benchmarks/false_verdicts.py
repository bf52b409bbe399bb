"""How often equals are called faster: a variant timed against itself (A/A test), as `vivace accelerate` times variants.

    vivace export runs/cifar10-fast --to onnx --out runs/cifar10-onnx
    python benchmarks/false_verdicts.py --pairs 200 runs/cifar10-onnx

A pair is two sides of the same variant, judged by the interval of their ratio: "2 % faster" if it lies above 1.02 or
below 1 / 1.02, "faster" if 1 is not in it, which a 95 % interval does in 5 % of cases. The pairs of a --group are timed
together, so that as many processes run as in a search; no process belongs to two pairs. An interval is over the
processes of a side, two or more. Writes benchmarks/results/false-verdicts/DATE-RUNTIME-HARDWARE.json and a table in
Markdown.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from records import RESULTS, page, save, today
from vivace.bundle import load_bundle
from vivace.hardware import describe
from vivace.statistics.intervals import Ratio
from vivace.statistics.proportions import wilson_interval
from vivace.timing.interleaved import BLOCK_SECONDS, Side, Timings, ratio_of, time_sides

MARGIN = 1.02


def verdicts(intervals: Sequence[Ratio]) -> dict[str, Any]:
    """Counts over (ratio, low, high) of equals: false verdicts of either side, and how wide the intervals are."""
    ratios, lows, highs = np.transpose(intervals)
    return {
        "two_percent_faster": int(((lows > MARGIN) | (highs < 1 / MARGIN)).sum()),
        "faster": int(((lows > 1) | (highs < 1)).sum()),
        "covers": float(((lows <= 1) & (highs >= 1)).mean()),
        "half_width": float(np.median(np.log(highs / lows)) / 2),
        "spread": float(np.sqrt(np.mean(np.log(ratios) ** 2))),
        "largest": float(np.exp(np.abs(np.log(ratios)).max()) - 1),
    }


def process_spread(pairs: Sequence[tuple[Timings, Timings]]) -> tuple[float, float]:
    """(between, within): standard deviations of the logarithm of a process's time, relative.

    between: what differs for as long as a process lives; within: what is left in the median of its blocks by noise.
    """
    between, within = [], []
    for first, second in pairs:
        processes = np.array(first.processes)
        logs = np.log(first.medians_ms) - np.log(second.medians_ms)
        blocks = [logs[processes == process] for process in sorted(set(first.processes))]
        means = np.array([block.mean() for block in blocks])
        noise = np.mean([block.var(ddof=1) / len(block) for block in blocks if len(block) > 1] or [0.0])
        # each is of the difference of two sides
        within.append(noise / 2)
        between.append(np.mean(means**2) / 2 - noise / 2)
    return math.sqrt(max(0.0, float(np.mean(between)))), math.sqrt(float(np.mean(within)))


def markdown(record: dict[str, Any]) -> str:
    pairs, found = record["pairs"], record["verdicts"]
    cells = []
    for key in ("two_percent_faster", "faster"):
        low, high = wilson_interval(found[key], pairs)
        cells.append(f"{found[key]} of {pairs} [{100 * low:.1f}, {100 * high:.1f}] %")
    cells.append(f"{100 * found['covers']:.1f} %")
    cells += [f"{100 * found[key]:.2f} %" for key in ("half_width", "spread", "largest")]
    table = [
        "| called 2 % faster | called faster | covers 1 | half width | spread of the ratio | largest |",
        "| --- | --- | --- | --- | --- | --- |",
        "| " + " | ".join(cells) + " |",
        "",
        f"A call takes {record['p50_ms']:.3f} ms. A process differs from others for as long as it lives by "
        f"{100 * record['between_processes']:.2f} % (standard deviation); noise leaves {100 * record['within']:.2f} % "
        f"in what is taken of one. {record['seconds']:.0f} s in all.",
    ]
    conditions = (
        f"; {record['form']}; {pairs} pairs of equals, {record['rounds']} blocks of {record['block_seconds']:g} s in "
        f"{record['processes']} processes each, {2 * record['group']} processes at a time"
    )
    return page(record, "False verdicts", conditions, table)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often equals are called faster.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--group", type=int, default=2, help="pairs that are timed side by side")
    parser.add_argument("--block", type=float, default=BLOCK_SECONDS, help="seconds of a block")
    parser.add_argument("--threads", type=int, help="processors of a side; all without it")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds; what pairs there are by then count")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.processes < 2:
        parser.error("an interval is over processes: give --processes 2 or more")

    start = time.monotonic()
    bundle = load_bundle(args.bundle)
    architecture = bundle.info.architecture
    shape = (64, bundle.preprocess.size, bundle.preprocess.size, bundle.preprocess.channels)
    images_NHWC = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pairs: list[tuple[Timings, Timings]] = []
    while len(pairs) < args.pairs and (time.monotonic() - start < args.within or not pairs):
        count = min(args.group, args.pairs - len(pairs))
        sides = [
            Side(
                name=f"{number} {side}",
                bundle=bundle.folder,
                runtime=bundle.info.runtime,
                precision=bundle.info.precision,
            )
            for side in "ab"
            for number in range(count)
        ]
        timings = time_sides(
            sides,
            images_NHWC,
            threads=args.threads,
            rounds=args.rounds,
            processes=args.processes,
            block_seconds=args.block,
        )
        pairs += zip(timings[:count], timings[count:], strict=True)
        if sys.stderr.isatty():
            print(f"\r{len(pairs)} of {args.pairs} pairs", end="", file=sys.stderr, flush=True)
    between, within = process_spread(pairs)
    intervals = [ratio_of(first, second) for first, second in pairs]
    record: dict[str, Any] = {
        "date": today(),
        "command": f"python benchmarks/false_verdicts.py {' '.join(sys.argv[1:])}".strip(),
        "form": f"{architecture.name} {dict(architecture.arguments)}, {bundle.preprocess.size} px, "
        f"{bundle.info.runtime} {bundle.info.precision}",
        "pairs": len(pairs),
        "processes": args.processes,
        "rounds": args.rounds,
        "group": args.group,
        "block_seconds": args.block,
        "threads": args.threads,
        "p50_ms": float(np.median([one.p50_ms for pair in pairs for one in pair])),
        "verdicts": verdicts(intervals),
        "between_processes": between,
        "within": within,
        "seconds": time.monotonic() - start,
        "intervals": intervals,
        "medians_ms": [[one.medians_ms for one in pair] for pair in pairs],
        "environment": describe(),
    }
    save(record, "false-verdicts", bundle.info.runtime, markdown, args.out)


if __name__ == "__main__":
    main()
