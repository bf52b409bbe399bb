"""Tables of docs/benchmarks.md about training: programs against each other, steps, the data path, ablations."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from contenders import Result
from records import with_interval
from tables import summarize

__all__ = ["ablation", "against_first", "first_reaches", "loader", "steps", "turns"]

Record = Mapping[str, Any]
Table = list[str]
# names in results → what a reader runs; options that all runs have are left out
PROGRAMS = {
    "vivace-fast-98": "`vivace train data/cifar10 --val-fraction 0.02`",
    "vivace-fast-skip": "`vivace train data/flowers --on-bad-image skip`",
    "vivace-within-20": "`vivace train data/cifar10 --within 20`",
    "vivace-within-11.5": "`vivace train data/cifar10 --within 11.5`",
    "article": "the [article](recipes.md#article)'s program in plain PyTorch, 10 epochs",
    "keras": "the same network in Keras on TensorFlow, 10 epochs",
    "airbench-autocast": "airbench94-Muon, our implementation, bf16 autocast",
    "airbench-channels-last": "airbench94-Muon, our implementation, weights in bf16, channels_last",
    "airbench-plain": "airbench94-Muon, our implementation, bf16 autocast, without test-time augmentation",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def against_first(records: Sequence[Record]) -> Table:
    """Each program of one comparison, and how many times as fast as the first one it was."""
    (record,) = records
    rows = []
    for row in _summary(record):
        first = row["contender"] == next(iter(record["runs"]))
        ratios = ["", ""] if first else [_ratio(row, "train_ratio"), _ratio(row, "total_ratio")]
        rows.append([*_accuracy_and_time(record, row), *ratios])
    return table([*_head(record), "times as fast, loop", "times as fast, in all"], rows)


def first_reaches(records: Sequence[Record]) -> Table:
    """Each program of one comparison, and when the first one had its final accuracy."""
    (record,) = records
    rows = []
    for row in _summary(record):
        after = row.get("first_reaches_it_after_s_median")
        ratio = _ratio(row, "first_reaches_it_ratio") if after is not None else ""
        rows.append([*_accuracy_and_time(record, row), "" if after is None else f"{after:.0f} s", ratio])
    return table([*_head(record), "vivace has that accuracy after", "times as fast, loop"], rows)


def turns(records: Sequence[Record]) -> Table:
    """Programs that took turns of some seconds: accuracy and time of each round."""
    (record,) = records
    rows = []
    for name, runs in record["runs"].items():
        accuracy = ", ".join(f"{100 * run['top1']:.2f} %" for run in runs)
        seconds = ", ".join(f"{run['seconds']:.0f} s" for run in runs)
        first = name == next(iter(record["runs"]))
        rows.append([PROGRAMS[name], accuracy, seconds, "" if first else with_interval(*record["ratios"][name])])
    return table(["program", "test top-1 of each round", "process start to saved weights", "times as fast"], rows)


def steps(records: Sequence[Record]) -> Table:
    """Where the time of a training step goes, a column for each result."""
    names = sorted({kind for record in records for kind in record["kinds_ms"]} - {"everything else"})
    head = ["", *(f"{record['environment']['cpu']}, {record['date']}" for record in records)]
    rows = [
        ["widths; batch", *(f"{_widths(record['model'])}; {record['batch_size']:,}" for record in records)],
        ["chosen by the trial", *(record["setup"] for record in records)],
        ["whole step", *(f"{record['step_ms']:.0f} ms" for record in records)],
        ["rate of the step, GFLOP/s", *(f"{record['step_gflops']:,.0f}" for record in records)],
        ["rate of its convolutions alone, GFLOP/s", *(f"{record['conv_gflops']:,.0f}" for record in records)],
        ["fraction of that rate that the step reaches", *(_percent(record["share"]) for record in records)],
        ["… of the rate of torch's convolutions", *(_percent(record.get("torch_share")) for record in records)],
    ]
    for name in (*names, "everything else"):
        rows.append([f"{name}, ms", *(f"{record['kinds_ms'].get(name, 0.0):.0f}" for record in records)])
    return table(head, rows)


def loader(records: Sequence[Record]) -> Table:
    """Images a second of the data path, a row for each result."""
    sides = ("vivace, first epoch", "vivace, later epoch")
    head = ["data", "CPU, date", "n", "`DataLoader`, 0 workers; 2 workers"]
    head += ["first epoch", "times as fast as 0; 2 workers", "later epochs", "times as fast as 0; 2 workers"]
    rows = []
    for record in records:
        by_side = {row["side"]: row for row in record["summary"]}
        workers = "; ".join(f"{by_side[f'DataLoader, {n} workers']['images_per_second']:,.0f}" for n in (0, 2))
        cells = [f"{record['data']}, {record['size']} px", f"{record['environment']['cpu']}, {record['date']}"]
        cells += [str(record["rounds"]), workers]
        for side in sides:
            row = by_side[side]
            ratios = (_of_rounds(row[f"against {n} workers"], record["rounds"]) for n in (0, 2))
            cells += [f"{row['images_per_second']:,.0f}", "; ".join(ratios)]
        rows.append(cells)
    return table(head, rows)


def ablation(records: Sequence[Record]) -> Table:
    """What each technique gives, switched off alone."""
    (record,) = records
    rows = []
    for row in record["rows"]:
        gain = [100 * row[key] for key in ("gain", "gain_low", "gain_high")]
        times = with_interval(row["speedup"], row["speedup_low"], row["speedup_high"])
        rows.append([f"{row['name']}: {row['about']}", times, with_interval(*gain, form="+.2f"), str(row["n"])])
    return table(["technique", "time without it / with it", "accuracy gained, points", "n"], rows)


def _summary(record: Record) -> list[dict[str, Any]]:
    """Computed anew from the runs: intervals of old results were of another kind."""
    return summarize({name: [Result(**run) for run in runs] for name, runs in record["runs"].items()})


def _head(record: Record) -> list[str]:
    # which split the result is of is known by the data alone: one of the two has no test images
    split = "validation" if record["data"] == "flowers" else "test"
    head = ["program", "n", f"{split} top-1"]
    if _augmented(record):
        head.append("with test-time augmentation")
    return [*head, "training loop", "process start to saved weights"]


def _augmented(record: Record) -> bool:
    return any(run.get("top1_tta") is not None for runs in record["runs"].values() for run in runs)


def _accuracy_and_time(record: Record, row: Mapping[str, Any]) -> list[str]:
    spread = "" if row["top1_sd"] is None else f" ± {100 * row['top1_sd']:.2f}"
    cells = [_program(record, row["contender"]), str(row["n"]), f"{100 * row['top1_mean']:.2f}{spread} %"]
    if _augmented(record):
        cells.append("" if row["top1_tta_mean"] is None else f"{100 * row['top1_tta_mean']:.2f} %")
    return [*cells, *(f"{statistics.median(row[f'{what}_seconds']):.1f} s" for what in ("train", "total"))]


def _program(record: Record, name: str) -> str:
    """What a reader knows it by: its command, or what the result says of it."""
    about = record["contenders"][name].partition("; looks")[0]
    return PROGRAMS.get(name) or about


def _ratio(row: Mapping[str, Any], name: str) -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _of_rounds(ratio: Sequence[float], rounds: int) -> str:
    """A ratio with its interval, which of a single round there is none of."""
    return with_interval(*ratio, form=".1f") if rounds > 1 else f"{ratio[0]:.1f}"


def _percent(ratio: Sequence[float] | None) -> str:
    return "" if ratio is None else f"{ratio[0]:.0%} [{ratio[1]:.0%}, {ratio[2]:.0%}]".replace("%", " %")


def _widths(model: str) -> str:
    """The channels of a network that a result describes as text."""
    found = re.search(r"'widths': \[([\d, ]+)\]", model)
    return found[1] if found else "48, 96, 192"
