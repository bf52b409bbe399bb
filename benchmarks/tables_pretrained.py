"""The results of `pretrained.py`: accuracy by a time, goals, fine-tuning against training from scratch, and the tables.

A run has points: (seconds since the start of its process, accuracy on the held-out images), one for each saved network.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from finetuners import FINETUNE_PEERS, SIDES, correct_of, side_of
from records import page, with_interval
from vivace.statistics.intervals import paired_gain
from vivace.statistics.proportions import wilson_interval

__all__ = ["fine_tuning", "finetune_crossover", "finetune_goals"]

Record = Mapping[str, Any]
Runs = Mapping[str, Sequence[Mapping[str, Any]]]
# from this budget on, fine-tuning is to be never worse than training from scratch
NEVER_WORSE_FROM = 20.0


def best_by(runs: Runs, side: str, seconds: float) -> list[float | None]:
    """For each round, the best accuracy that a side's runs of that round had reached by then; None: none was ready.

    The rounds that all runs of the side have. Of a peer it is the best evaluation, which was chosen on the very images
    that are reported: this favours peers.
    """
    its = [rounds for name, rounds in runs.items() if side_of(name) == side]
    count = min(map(len, its), default=0)
    return [
        max((top1 for rounds in its for after, top1 in rounds[index]["curve"] if after <= seconds), default=None)
        for index in range(count)
    ]


def best_peer_by(runs: Runs, seconds: float) -> list[float | None]:
    """The best of all peers, as `best_by`."""
    sides = [found for side in FINETUNE_PEERS if (found := best_by(runs, side, seconds))]
    return [max((top1 for top1 in tops if top1 is not None), default=None) for tops in zip(*sides, strict=False)]


def goal_rows(record: Record) -> list[dict[str, Any]]:
    """For each goal of the set: what `--recipe finetune --within` with the goal's seconds reached.

    It is reached if the mean accuracy is, and no run took longer. `interval` is Wilson's, 95 %, of the mean accuracy,
    over the held-out images.
    """
    rows = []
    for goal in record["goals"]:
        its = record["runs"].get(f"finetune-{goal['seconds']:g}", ())
        row: dict[str, Any] = {**goal, "n": len(its), "measured": None, "reached": None}
        if its:
            top1, slowest = statistics.mean(run["top1"] for run in its), max(run["total_seconds"] for run in its)
            count = record["num_held_out"]
            row |= {
                "measured": top1,
                "interval": wilson_interval(round(top1 * count), count),
                "slowest_seconds": slowest,
                "reached": top1 >= goal["top1"] and slowest <= goal["seconds"],
            }
        rows.append(row)
    return rows


def against_scratch(runs: Runs, side: str, budget: float) -> dict[str, Any] | None:
    """A side against training from scratch with the same budget, on the same held-out images; None if one is missing.

    The gain is paired by image, each image's correctness averaged over the rounds that both have, with Student's 95 %
    interval over the images. worse: whether all of it is below 0. One comparison in 40 of equals is called worse.
    """
    pair = [runs.get(f"{name}-{budget:g}", ()) for name in ("scratch", side)]
    count = min(map(len, pair))
    if count == 0:
        return None
    scratch, other = (
        [statistics.mean(rights) for rights in zip(*(correct_of(run) or () for run in its[:count]), strict=True)]
        for its in pair
    )
    gain, low, high = paired_gain(scratch, other)
    return {
        "side": side,
        "budget": budget,
        "rounds": count,
        "num_images": len(scratch),
        "scratch": statistics.mean(scratch),
        "top1": statistics.mean(other),
        "gain": [gain, low, high],
        "worse": high is not None and high < 0,
        "better": low is not None and low > 0,
    }


def scratch_rows(record: Record) -> list[dict[str, Any]]:
    """`against_scratch` for the sides that start from weights, and all budgets."""
    pairs = [(side, budget) for budget in record["budgets"] for side in ("finetune", "auto")]
    return [row for side, budget in pairs if (row := against_scratch(record["runs"], side, budget))]


def fine_tuning(records: Sequence[Record]) -> list[str]:
    """Accuracy by time, of one set: a row for each budget, a column for each side and peer, and the gain over peers."""
    (record,) = records
    runs = record["runs"]
    present = {side_of(name) for name in runs}
    sides = [side for side in (*SIDES, *FINETUNE_PEERS) if side in present]
    lines = [_row(["seconds since process start", *sides, "`finetune` − the best peer, points"])]
    lines.append("|" + " --- |" * (len(sides) + 2))
    for budget in record["budgets"]:
        cells = [_tops(best_by(runs, side, budget)) for side in sides]
        ours, theirs = best_by(runs, "finetune", budget), best_peer_by(runs, budget)
        lines.append(_row([f"{budget:g}", *cells, _gain(ours, theirs)]))
    return lines


def finetune_goals(records: Sequence[Record]) -> list[str]:
    """The goals of all records, and whether they are reached."""
    lines = ["| set | goal | measured % (95 % interval over the images) | slowest run s | n | reached |"]
    lines.append("|" + " --- |" * 6)
    for record in records:
        for row in goal_rows(record):
            cells = [record["data"], f"{100 * row['top1']:g} % within {row['seconds']:g} s"]
            if row["measured"] is None:
                lines.append(_row([*cells, "not measured", "–", "0", "–"]))
                continue
            measured = with_interval(*(100 * value for value in (row["measured"], *row["interval"])), form=".1f")
            told = "yes" if row["reached"] else "**no**"
            lines.append(_row([*cells, measured, f"{row['slowest_seconds']:.1f}", str(row["n"]), told]))
        rows = [row for row in scratch_rows(record) if row["budget"] >= NEVER_WORSE_FROM]
        for side in ("finetune", "auto"):
            its = [row for row in rows if row["side"] == side]
            if its:
                worse = [f"{row['budget']:g} s" for row in its if row["worse"]]
                least = with_interval(*(100 * v for v in min(its, key=lambda row: row["gain"][0])["gain"]), form="+.1f")
                goal = f"`{side}` never worse than from scratch from {NEVER_WORSE_FROM:g} s on"
                told = f"**no**: worse at {', '.join(worse)}" if worse else "yes"
                lines.append(_row([record["data"], goal, f"least gain {least}", "–", str(its[0]["rounds"]), told]))
    return lines


def finetune_crossover(records: Sequence[Record]) -> list[str]:
    """Fine-tuning against training from scratch: a row for each number of images and budget."""
    lines = ["| set | training images | budget s | `finetune` % | from scratch % | gain, points | n | better |"]
    lines.append("|" + " --- |" * 8)
    for record in records:
        for part in record["parts"]:
            for budget in record["budgets"]:
                row = against_scratch(part["runs"], "finetune", budget)
                cells = [record["data"], f"{part['num_train']:,}", f"{budget:g}"]
                if row is None:
                    lines.append(
                        _row([*cells, *(_top(part["runs"], side, budget) for side in ("finetune", "scratch"))])
                    )
                    lines[-1] += " – | 0 | – |"
                    continue
                better = "finetune" if row["better"] else "from scratch" if row["worse"] else "neither"
                gain = with_interval(*(100 * value for value in row["gain"]), form="+.1f")
                cells += [f"{100 * row['top1']:.1f}", f"{100 * row['scratch']:.1f}", gain, str(row["rounds"]), better]
                lines.append(_row(cells))
    return lines


def markdown(record: Record) -> str:
    """The page of a record of one set."""
    lines = [*finetune_goals([record]), "", *fine_tuning([record]), "", *_runs(record["runs"])]
    lines += ["", *(f"- {name}: {about}" for name, about in record["contenders"].items())]
    lines += [f"- left out, {name}: {why}" for name, why in record["left_out"].items()]
    lines += [f"- failed, {name}: {why}" for name, why in record["failed"].items()]
    conditions = (
        f". {record['about'][0].upper()}{record['about'][1:]}: {record['num_train']:,} training images, "
        f"{record['num_held_out']:,} held out, which nobody trains on and vivace never sees. Rounds: "
        f"{record['rounds']}, all runs in each, in alternating order; each run a fresh process; {record['cache']}. "
        "Seconds from process start to saved network, without the peers' evaluations. In the table by time, a cell is "
        "the best accuracy that any run of the side had reached by then, a mean over the rounds; of peers the best "
        "evaluation, chosen on the held-out images, which favours them; “–”: in some round nothing was ready."
    )
    return page(record, f"Fine-tuning on {record['data']}", conditions, lines)


def crossover_markdown(record: Record) -> str:
    """The page of a record of --crossover."""
    lines = finetune_crossover([record])
    lines += [f"- failed, {name}: {why}" for part in record["parts"] for name, why in part["failed"].items()]
    conditions = (
        f". {record['num_held_out']:,} images held out. Rounds: {record['rounds']}, each with other training images, "
        f"all runs in each, in alternating order; {record['cache']}. The gain is paired by image, with Student's 95 % "
        "interval over the images; “better” says whose interval excludes 0."
    )
    return page(record, f"Fine-tuning against training from scratch on {record['data']}", conditions, lines)


def _runs(runs: Runs) -> list[str]:
    lines = ["| run | n | held-out % ± sd | seconds, by round | recipe | curve of the first round: s, % |"]
    lines.append("|" + " --- |" * 6)
    for name, its in runs.items():
        tops = [100 * run["top1"] for run in its]
        spread = f" ± {statistics.stdev(tops):.2f}" if len(tops) > 1 else ""
        recipes = {run["details"]["recipe"] for run in its if run["details"].get("recipe")}
        curve = "; ".join(f"{seconds:.0f}, {100 * top1:.1f}" for seconds, top1 in its[0]["curve"])
        seconds = ", ".join(f"{run['total_seconds']:.1f}" for run in its)
        lines.append(
            _row([name, str(len(its)), f"{statistics.mean(tops):.2f}{spread}", seconds, ", ".join(recipes), curve])
        )
    return lines


def _top(runs: Runs, side: str, budget: float) -> str:
    its = runs.get(f"{side}-{budget:g}", ())
    return f"{100 * statistics.mean(run['top1'] for run in its):.1f}" if its else "–"


def _tops(tops: Sequence[float | None]) -> str:
    known = [top1 for top1 in tops if top1 is not None]
    return f"{100 * statistics.mean(known):.1f}" if known and len(known) == len(tops) else "–"


def _gain(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    pairs = [(one, other) for one, other in zip(theirs, ours, strict=False) if one is not None and other is not None]
    if not pairs or len(pairs) < min(len(ours), len(theirs)):
        return "–"
    gain = paired_gain(*zip(*pairs, strict=True))
    return with_interval(*(None if value is None else 100 * value for value in gain), form="+.1f")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
