"""The report of a search, as JSON (receipt.json) and as Markdown: every candidate with its measurements and outcome."""

from __future__ import annotations

from typing import Any

import numpy as np

from vivace.acceleration.explain import nearest
from vivace.acceleration.results import Result, SearchResult
from vivace.bundle import Bundle
from vivace.hardware import describe
from vivace.models.own.names import is_own
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss
from vivace.timing.interleaved import Timings

__all__ = ["markdown", "receipt", "samples"]


def receipt(result: SearchResult, bundle: Bundle, asked: dict[str, Any]) -> dict[str, Any]:
    """The report as plain values: what was requested, the environment, the A/A test, and a row for each candidate."""
    certified = next((row.certified for row in result.results if row.certified is not None), None)
    splits = result.splits
    images = (
        {}
        if splits is None
        else {
            "data": splits.data,
            "calibrate": [splits.calibrate.name, len(splits.calibrate)],
            "select": [splits.select.name, len(splits.select)],
            "certify": [splits.certify.name, result.num_certify],
        }
    )
    best = result.winner or nearest(result.results)
    score = "exact_match" if bundle.info.multi_label else "top1"
    return {
        "asked": asked,
        "model": bundle.info.architecture.name,
        "size": bundle.preprocess.size,
        "status": result.verdict.value,
        "reason": result.verdict.reason,
        "warnings": result.warnings,
        "winner": result.winner.name if result.winner else None,
        "best": best.name if best else None,
        "baseline": result.baseline.name if result.baseline else None,
        f"{score}_before": certified.top1_before if certified else None,
        "control": _ratio(result.aa_test) if result.aa_test else None,
        "images": images,
        "rows": [_row(row, score) for row in result.results],
        "missing": result.missing,
        "profile": result.profile.to_dict() if result.profile else None,
        "evidence": result.profile.summary() if result.profile else None,
        "preprocessing_ms": result.preprocessing.p50_ms if result.preprocessing else None,
        "notes": result.notes,
        "left_out": result.left_out,
        "seconds": result.seconds,
        "environment": describe(),
    }


def samples(result: SearchResult) -> dict[str, np.ndarray]:
    """The raw times behind a report: "candidate, screened" or "candidate, timed" → ms float32 [rounds, calls]."""
    return {
        f"{row.name}, {what}": np.asarray(timings.blocks_ms, dtype=np.float32)
        for row in result.results
        for what, timings in (("screened", row.screened), ("timed", row.timed))
        if timings is not None
    }


def _row(row: Result, score: str) -> dict[str, Any]:
    return {
        "name": row.name,
        "runtime": row.candidate.runtime,
        "precision": row.candidate.precision,
        "network": row.candidate.network,
        "asymmetric": row.candidate.asymmetric,
        "kept": list(row.candidate.float_layers),
        "status": row.status.value,
        "reason": row.outcome.reason,
        "bytes": row.num_bytes,
        "ratio": _ratio(row.ratio) if row.ratio else None,
        "screened": _timings(row.screened),
        "timed": _timings(row.timed),
        "selected": _loss(row.selected, score),
        "certified": _loss(row.certified, score),
        "parity": row.parity.to_dict() if row.parity else None,
    }


def _ratio(ratio: Ratio) -> dict[str, float | None]:
    return dict(zip(("ratio", "low", "high"), ratio, strict=True))


def _timings(timings: Timings | None) -> dict[str, Any] | None:
    if timings is None:
        return None
    return {
        "p50_ms": timings.percentile(50),
        "p90_ms": timings.percentile(90),
        "p99_ms": timings.percentile(99),
        "cold_start_seconds": timings.cold_start_seconds,
        "peak_memory_bytes": timings.peak_memory_bytes,
        "medians_ms": [round(value, 4) for value in timings.medians_ms],
    }


def _loss(loss: PairedLoss | None, score: str) -> dict[str, Any] | None:
    """score: what is right of an image, top1 or exact_match."""
    if loss is None:
        return None
    return {
        "num_images": loss.num_images,
        f"{score}_before": loss.top1_before,
        f"{score}_after": loss.top1_after,
        "lost": loss.lost,
        "gained": loss.gained,
        "drop": 100 * loss.drop,
        "bound": 100 * loss.bound,
        "confidence": loss.confidence,
    }


def markdown(written: dict[str, Any]) -> str:
    """A report for people: what was found, under which conditions, the table, and what was left out."""
    lines = [f"# {_title(written)}", ""]
    lines += [f"**Warning: {warning}.**\n" for warning in written["warnings"]]
    lines += [_conditions(written), ""]
    if written["baseline"] is not None:
        lines += [_about_times(written), ""]
    lines += [
        "| variant | p50 ms | p90 | p99 | × faster | cold start s | memory MB | file MB | accuracy drop, selection | "
        "accuracy drop, certification | upper bound | outcome |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += ["| " + " | ".join(_cells(row, written["winner"])) + " |" for row in written["rows"]]
    if written["evidence"]:
        lines += ["", f"What ran, by the runtime's own profiler: {written['evidence']}."]
    if written["preprocessing_ms"] is not None:
        lines += ["", f"In addition: {written['preprocessing_ms']:.2f} ms to read, decode and resize an image file."]
    lines += [""] + [f"- {name}: {why}" for name, why in written["missing"].items()]
    lines += [f"- out of time: {what}" for what in written["left_out"]]
    lines += [f"- {note}" for note in written["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def _title(written: dict[str, Any]) -> str:
    data = written["images"].get("data", written["asked"]["data"])
    return f"{written['model']}, {written['size']} px, on {data}: {written['winner'] or _reason(written)}"


def _conditions(written: dict[str, Any]) -> str:
    asked, images, machine = written["asked"], written["images"], written["environment"]
    text = (
        f"Accuracy budget: a drop of at most {asked['max_drop']:g} percentage points, with 95 % confidence. Batch size "
        f"{asked['batch_size']}; {machine['cpu']}, {asked['threads'] or machine['num_cpus']} processors. "
    )
    if "exact_match_before" in written:
        text += "Accuracy is exact match: the images whose set of labels is predicted to the last label. "
    if images:
        text += (
            f"Calibrated on {images['calibrate'][1]:,} images of {images['calibrate'][0]}, selected on "
            f"{images['select'][1]:,} of {images['select'][0]}, "
            f"certified on {images['certify'][1]:,} of {images['certify'][0]}. "
        )
    given = "" if asked["within_seconds"] is None else f", with a time budget of {asked['within_seconds']:g} s"
    return f"{text}The search took {written['seconds']:.0f} s{given}."


def _about_times(written: dict[str, Any]) -> str:
    control = written["control"]
    aa_test = "there was no A/A test" if control is None else f"in the A/A test it is {_times(control, 3)} times itself"
    plain = "its float32 graph" if is_own(written["model"]) else "the faster of PyTorch eager and compiled"
    return (
        f"× faster is relative to {written['baseline']}, {plain}; {aa_test}. "
        "Each variant ran in a process of its own, in interleaved blocks. Certified variants ran in several processes, "
        "with Student's 95 % interval over these; ratios without an interval are from the first, short timing."
    )


def _times(ratio: dict[str, float | None], digits: int = 2) -> str:
    value, low, high = ratio["ratio"], ratio["low"], ratio["high"]
    return f"{value:.{digits}f}" + ("" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _cells(row: dict[str, Any], winner: str | None) -> list[str]:
    times, selected, certified = row["timed"] or row["screened"], row["selected"], row["certified"]
    cells = [f"**{row['name']}**" if row["name"] == winner else row["name"]]
    cells += [f"{times[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")] if times else ["–"] * 3
    cells.append(_times(row["ratio"]) if row["ratio"] else "–")
    memory = times and times["peak_memory_bytes"]
    cells.append(f"{times['cold_start_seconds']:.1f}" if times else "–")
    cells.append(f"{memory / 1e6:.0f}" if memory is not None else "–")
    cells.append(f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "–")
    cells.append(f"{selected['drop']:+.2f}" if selected else "–")
    cells += [f"{certified['drop']:+.2f}", f"{certified['bound']:.2f}"] if certified else ["–"] * 2
    cells.append("**the winner**" if row["name"] == winner else _reason(row))
    return cells


def _reason(written: dict[str, Any]) -> str:
    """The status of a search or a row in words; receipts before 2026-11-29 have the words in `status`."""
    reason: str = written.get("reason") or written["status"]
    return reason
