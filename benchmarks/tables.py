"""What the runs of `train.py` come to: a row per contender, as JSON and as a table for people."""

from __future__ import annotations

import math
import statistics
from typing import Any

from contenders import Result
from records import page
from vivace.measure import bootstrap_ratio

__all__ = ["crossing_seconds", "markdown", "summarize"]


def crossing_seconds(run: Result, top1: float) -> float | None:
    """Seconds of the loop until `run` first looked at an accuracy of at least `top1`; None if it never did.

    Nothing is interpolated: between two looks, the later one counts.
    """
    return next((seconds for seconds, value in run.curve if value >= top1), None)


def summarize(results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """A row per contender: means, spreads, the ratio to the first one, and when that one was as accurate."""
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
            "top1_tta_mean": _mean_tta(runs),
            "train_seconds": [run.train_seconds for run in runs],
            "total_seconds": [run.total_seconds for run in runs],
            "train_seconds_median": statistics.median(run.train_seconds for run in runs),
            "total_seconds_median": statistics.median(run.total_seconds for run in runs),
        }
        for what in ("train", "total"):
            base = [getattr(run, f"{what}_seconds") for run in first]
            mine = [getattr(run, f"{what}_seconds") for run in runs]
            row[f"{what}_ratio"], row[f"{what}_ratio_low"], row[f"{what}_ratio_high"] = bootstrap_ratio(base, mine)
        if runs is not first:
            row |= _crossing(first, runs)
        rows.append(row)
    return rows


def _mean_tta(runs: list[Result]) -> float | None:
    """The mean accuracy with test-time augmentation; None unless every run tells it."""
    values = [run.top1_tta for run in runs if run.top1_tta is not None]
    return statistics.mean(values) if len(values) == len(runs) else None


def _crossing(first: list[Result], runs: list[Result]) -> dict[str, Any]:
    """When the first contender had the final accuracy of each of `runs`, paired by round, and the ratio of loop times.

    The median counts a round in which it never did as endless, and is None if it comes out endless itself; the ratio
    is told only where it did in every round.
    """
    seconds = [crossing_seconds(one, other.top1) for one, other in zip(first, runs, strict=True)]
    reached = [value for value in seconds if value is not None]
    median = statistics.median(math.inf if value is None else value for value in seconds)
    ratio = low = high = None
    if len(reached) == len(runs):
        ratio, low, high = bootstrap_ratio([run.train_seconds for run in runs], reached)
    return {
        "first_reaches_it_after_s": seconds,
        "first_reaches_it_after_s_median": median if math.isfinite(median) else None,
        "first_reaches_it_ratio": ratio,
        "first_reaches_it_ratio_low": low,
        "first_reaches_it_ratio_high": high,
    }


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    cache = "cold" if record["cold_cache"] else "warm after the first run"
    conditions = (
        f", Python {record['environment']['python']}. Rounds in alternation: {record['rounds']}; each run a fresh "
        f"process; cache of decoded images {cache}. Times are medians; the ratio is the first contender's time over "
        "this one's, with a 95 % bootstrap interval over the rounds. “First reaches it after” is the loop time at "
        "which the first contender's looks had this one's final accuracy, and beside it how many times faster that is "
        "than this one's loop."
    )
    lines = [
        "| contender | n | top-1 % ± sd | with test-time augmentation % | best look % | loop s | in all s | "
        "× faster, loop | × faster, in all | first reaches it after s | first is × faster to it, loop |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["summary"]:
        spread = "" if row["top1_sd"] is None else f" ± {100 * row['top1_sd']:.2f}"
        cells = [
            row["contender"],
            str(row["n"]),
            f"{100 * row['top1_mean']:.2f}{spread}",
            "–" if row["top1_tta_mean"] is None else f"{100 * row['top1_tta_mean']:.2f}",
            f"{100 * row['best_top1_mean']:.2f}",
            f"{row['train_seconds_median']:.1f}",
            f"{row['total_seconds_median']:.1f}",
            _ratio(row, "train_ratio"),
            _ratio(row, "total_ratio"),
        ]
        if "first_reaches_it_after_s" in row:
            median = row["first_reaches_it_after_s_median"]
            cells += ["never" if median is None else f"{median:.1f}", _ratio(row, "first_reaches_it_ratio")]
        else:
            cells += ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {about}" for name, about in record["contenders"].items())]
    return page(record, f"Training on {record['data']}", conditions, lines)


def _ratio(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    # one run has no interval
    return f"{row[name]:.2f}" + (f" [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]" if row["n"] > 1 else "")
