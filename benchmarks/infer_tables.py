"""The results of `infer.py`: a row for each side, and which claims hold, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alternate import Measured, ratio_of
from records import page, with_interval
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss

__all__ = ["AGAIN", "Entry", "claims", "fastest", "markdown", "rows"]

# ends the name of a side that is timed a second time, for the A/A test
AGAIN = ", again"

# wanted against the best manual baseline: two processes of the same program may differ by a few percent
AS_FAST_AS_THE_BEST = 0.97


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A side, timed and judged."""

    kind: str
    """"vivace", "hand" or "peer"."""
    runtime: str
    precision: str
    measured: Measured
    loss: PairedLoss | None = None
    """Against the plain network in float32, on the images to certify on; None where images mean nothing."""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.measured.name

    @property
    def p50_ms(self) -> float:
        return self.measured.percentile(50)


def fastest(entries: Sequence[Entry]) -> Entry | None:
    return min(entries, key=lambda entry: entry.p50_ms, default=None)


def rows(entries: Sequence[Entry], ours: Entry) -> list[dict[str, Any]]:
    """A row for each, the fastest first. ratio: how many times as fast as it `ours` is."""
    return [_row(entry, entries, ours) for entry in sorted(entries, key=lambda entry: entry.p50_ms)]


def _row(entry: Entry, entries: Sequence[Entry], ours: Entry) -> dict[str, Any]:
    counterpart = None
    if entry.kind == "vivace":
        same = [other for other in entries if other.kind == "hand" and _form(other) == _form(entry)]
        counterpart = fastest(same)
    return {
        "name": entry.name,
        "kind": entry.kind,
        "runtime": entry.runtime,
        "precision": entry.precision,
        "p50_ms": entry.measured.percentile(50),
        "p90_ms": entry.measured.percentile(90),
        "ratio": ratio_of(entry.measured, ours.measured),
        "counterpart": counterpart.name if counterpart else None,
        "counterpart_ratio": ratio_of(counterpart.measured, entry.measured) if counterpart else None,
        "loss": _loss(entry.loss),
        "cold_start_seconds": float(np.median(entry.measured.cold_start_seconds)),
        "peak_memory_bytes": entry.measured.peak_memory_bytes,
        "medians_ms": entry.measured.medians_ms.round(4).tolist(),
        **entry.facts,
    }


def _form(entry: Entry) -> tuple[str, str]:
    return entry.runtime, entry.precision


def _loss(loss: PairedLoss | None) -> dict[str, Any] | None:
    if loss is None:
        return None
    return {
        "num_images": loss.num_images,
        "top1": loss.top1_after,
        "drop": 100 * loss.drop,
        "bound": 100 * loss.bound,
        "lost": loss.lost,
        "gained": loss.gained,
    }


def claims(
    entries: Sequence[Entry], ours: Entry, *, max_drop: float, wanted_speedup: float = 1.0
) -> list[dict[str, Any]]:
    """How many times as fast as others `ours` is, and what was wanted.

    holds: "yes" where the whole interval is at least what is wanted, "no" where all of it is less, otherwise "open".
    max_drop: points; an accuracy counts as kept where the proven loss is within it. wanted_speedup: over the faster of
    eager and compiled float32. The last claim is the A/A test: a side against itself.
    """
    by_hand = [entry for entry in entries if entry.kind == "hand"]
    plain = [entry for entry in by_hand if entry.runtime in ("eager", "inductor") and entry.precision == "fp32"]
    accurate = [entry for entry in by_hand if entry.loss is not None and 100 * entry.loss.bound <= max_drop]
    others: list[tuple[str, Entry | None, float | None]] = [
        ("the faster of eager and compiled float32", fastest(plain), wanted_speedup),
        ("the best by hand", fastest(by_hand), AS_FAST_AS_THE_BEST),
        ("the best by hand within the budget", fastest(accurate), AS_FAST_AS_THE_BEST),
        ("eager float32", _named(entries, "hand eager fp32"), None),
        ("the defaults of nncf.quantize on OpenVINO", _named(entries, "hand openvino int8"), None),
        ("the best peer", fastest([entry for entry in entries if entry.kind == "peer"]), None),
    ]
    found = []
    for what, other, wanted in others:
        if other is not None:
            ratio = ratio_of(other.measured, ours.measured)
            found.append(
                {"against": what, "name": other.name, "ratio": ratio, "wanted": wanted, "holds": _holds(ratio, wanted)}
            )
    for again in entries:
        first = _named(entries, again.name.removesuffix(AGAIN))
        if first is not None and first is not again:
            found.append(
                {
                    "against": f"{first.name} against itself in other processes",
                    "name": again.name,
                    "ratio": ratio_of(again.measured, first.measured),
                    "wanted": None,
                    "holds": None,
                }
            )
    return found


def _named(entries: Sequence[Entry], name: str) -> Entry | None:
    return next((entry for entry in entries if entry.name == name), None)


def _holds(ratio: Ratio, wanted: float | None) -> str | None:
    _, low, high = ratio
    if wanted is None:
        return None
    if low is None or high is None:
        return "open"
    return "yes" if low >= wanted else "no" if high < wanted else "open"


def markdown(record: dict[str, Any]) -> str:
    """The tables for people: one comparison after the other."""
    conditions = (
        f", Python {record['environment']['python']}, {record['threads']} threads on every side. Each side in "
        f"{record['starts']} fresh processes, {record['rounds']} blocks of {record['block_seconds']:g} s in each, all "
        "sides in alternation. p50 and p90 are of single calls; the ratio is this side's time over vivace's, of the "
        "medians of blocks, with Student's 95 % interval over the processes. By hand and at the peers images "
        "are normalised before the clock runs, in vivace while it does."
    )
    lines: list[str] = []
    for part in record["comparisons"]:
        lines += _comparison(part)
    peers = sorted(
        {(row["name"], row["about"]) for part in record["comparisons"] for row in part["rows"] if row.get("about")}
    )
    lines += [f"- {name}: {about}" for name, about in peers]
    return page(record, f"Inference: {record['subject']}", conditions, lines)


def _comparison(part: dict[str, Any]) -> list[str]:
    judged = any(row["loss"] for row in part["rows"])
    images = f", {part['num_certify']:,} images of {part['data']} to certify on" if judged else ", random weights"
    lines = [f"## {part['network']}, {part['size']} px, batches of {part['batch']}{images}", ""]
    if part["accelerate"]:
        lines += [_searched(part["accelerate"], part["max_drop"]), ""]
    head = ["side", "p50 ms", "p90 ms", "vivace is × as fast", "× its form by hand"]
    head += ["top-1 %", "points lost", "at most"] if judged else []
    head += ["prepared in s", "first answer s", "memory MB"]
    lines += [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for row in part["rows"]:
        name = f"**{row['name']}**" if row["kind"] == "vivace" else row["name"]
        cells = [name, f"{row['p50_ms']:.2f}", f"{row['p90_ms']:.2f}", _ratio(row["ratio"])]
        cells.append(_ratio(row["counterpart_ratio"]) if row["counterpart_ratio"] else "–")
        if judged:
            loss = row["loss"]
            cells += (
                [f"{100 * loss['top1']:.2f}", f"{loss['drop']:+.2f}", f"{loss['bound']:.2f}"] if loss else ["–"] * 3
            )
        seconds = row.get("prepare_seconds")
        cells.append("–" if seconds is None else f"{seconds:.0f}")
        cells += [f"{row['cold_start_seconds']:.1f}", f"{row['peak_memory_bytes'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for name in part["failures"]:
        lines.append(f"| {name} | {' | '.join(['–'] * (len(head) - 2))} | did not run |")
    lines += ["", *(f"- {name} did not run: {why}" for name, why in part["failures"].items())]
    lines += ["", "| against | which | vivace is × as fast | wanted | holds |", "| --- | --- | --- | --- | --- |"]
    for claim in part["claims"]:
        wanted = "–" if claim["wanted"] is None else f"{claim['wanted']:g}"
        lines.append(
            f"| {claim['against']} | {claim['name']} | {_ratio(claim['ratio'])} | {wanted} | {claim['holds'] or '–'} |"
        )
    return [*lines, ""]


def _searched(search: Mapping[str, Any], max_drop: float) -> str:
    kept = "returned" if search["accelerated"] else "proved nothing faster, and returned the bundle as it was:"
    seconds = f" after a search of {search['search_seconds']:.0f} s" if search["search_seconds"] is not None else ""
    if search["process_seconds"] is not None:
        seconds += f" ({search['process_seconds']:.0f} s from process start)"
    return f"`vivace accelerate --max-drop {max_drop:g}` {kept} {search['form']}{seconds}."


def _ratio(ratio: Sequence[float]) -> str:
    return with_interval(*ratio)
