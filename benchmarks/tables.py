"""The results of `train.py`: a row per program, as JSON and as a table."""

from __future__ import annotations

import math
import statistics
from typing import Any

from scipy import stats

from contenders import Result
from records import page, with_interval
from vivace.statistics.intervals import paired_gain, paired_ratio

__all__ = ["crossing_seconds", "markdown", "summarize"]


def crossing_seconds(run: Result, top1: float) -> float | None:
    """Seconds of the loop until an evaluation of `run` was at least `top1`; None if none was.

    Nothing is interpolated: between two evaluations, the later one counts.
    """
    return next((seconds for seconds, value in run.curve if value >= top1), None)


def summarize(results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """A row per contender: means, spreads, the ratio to the first one, and when that one was as accurate.

    Intervals are Student's, two-sided, 95 %, over rounds of which each has one run of every contender; of a single
    round there is none (None).
    """
    first = next(iter(results.values()))
    rows = []
    for name, runs in results.items():
        top1 = [run.top1 for run in runs]
        row: dict[str, Any] = {
            "contender": name,
            "n": len(runs),
            "top1_mean": statistics.mean(top1),
            "top1_sd": statistics.stdev(top1) if len(runs) > 1 else None,
            "top1_bound": _lower_bound(top1),
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
            row[f"{what}_ratio"], row[f"{what}_ratio_low"], row[f"{what}_ratio_high"] = paired_ratio(base, mine)
        if runs is not first:
            gain, low, high = paired_gain([run.top1 for run in first], top1)
            row |= {"top1_gain": gain, "top1_gain_low": low, "top1_gain_high": high}
            row |= _crossing(first, runs)
        rows.append(row)
    return rows


def _lower_bound(top1: list[float]) -> float | None:
    """Lower bound of the expected accuracy with 95 % confidence (Student's, one-sided); None for a single run."""
    if len(top1) < 2:
        return None
    error = statistics.stdev(top1) / math.sqrt(len(top1))
    return statistics.mean(top1) - float(stats.t.ppf(0.95, len(top1) - 1)) * error


def _mean_tta(runs: list[Result]) -> float | None:
    """The mean accuracy with test-time augmentation; None unless every run reports it."""
    values = [run.top1_tta for run in runs if run.top1_tta is not None]
    return statistics.mean(values) if len(values) == len(runs) else None


def _crossing(first: list[Result], runs: list[Result]) -> dict[str, Any]:
    """When the first contender had the final accuracy of each of `runs`, paired by round, and the ratio of loop times.

    The median counts a round in which it never did as infinite, and is None if it is infinite itself; the ratio is
    given only where it did in every round.
    """
    seconds = [crossing_seconds(one, other.top1) for one, other in zip(first, runs, strict=True)]
    reached = [value for value in seconds if value is not None]
    median = statistics.median(math.inf if value is None else value for value in seconds)
    ratio = low = high = None
    if len(reached) == len(runs):
        ratio, low, high = paired_ratio([run.train_seconds for run in runs], reached)
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
        f"process; cache of decoded images {cache}. Times are medians; ratios are the first contender's time over "
        "this one's, the geometric mean of the rounds with Student's 95 % interval; “at least” is the one-sided 95 % "
        "bound of the mean accuracy, “more than the first” is paired by round. “First reaches it after” is the loop "
        "time at which the first contender's looks had this one's final accuracy, and beside it how many times faster "
        "that is than this one's loop."
    )
    lines = [
        "| contender | n | top-1 % ± sd | at least % | points more than the first | with test-time augmentation % | "
        "best look % | loop s | in all s | × faster, loop | × faster, in all | first reaches it after s | "
        "first is × faster to it, loop |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["summary"]:
        spread = "" if row["top1_sd"] is None else f" ± {100 * row['top1_sd']:.2f}"
        cells = [
            row["contender"],
            str(row["n"]),
            f"{100 * row['top1_mean']:.2f}{spread}",
            "–" if row["top1_bound"] is None else f"{100 * row['top1_bound']:.2f}",
            _gain(row),
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


def _gain(row: dict[str, Any]) -> str:
    if "top1_gain" not in row:
        return "–"
    values = (row[name] for name in ("top1_gain", "top1_gain_low", "top1_gain_high"))
    return with_interval(*(None if value is None else 100 * value for value in values), form="+.2f")


def _ratio(row: dict[str, Any], name: str) -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"])
