"""What a search for a faster bundle returns."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.acceleration.options import SearchOptions
from vivace.acceleration.results import Result, SearchResult
from vivace.bundle import Bundle

__all__ = ["Acceleration", "acceleration_of"]


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """The result of a search. Accuracies are in [0, 1], drops in percentage points, times in ms per call."""

    bundle: Path
    """The new bundle, or the one that was given if no faster one was found."""
    accelerated: bool
    status: str
    """ "accelerated"; "nothing_faster": no candidate was both faster and within the accuracy budget; "noisy": the
    timing was too noisy to decide; "undecided": the time budget ended before anything was decided."""
    reason: str
    """The status in words, for people."""
    warnings: list[str]
    """Why the result may be worth less than it seems, such as a model at chance level or an exceeded time budget."""
    runtime: str
    precision: str
    batch_size: int
    latency_ms_before: float
    """Median of the baseline, the faster of PyTorch eager and compiled in float32, or the float32 graph of a network of
    the user's own; NaN if it was not timed."""
    latency_ms_after: float
    speedup: float
    speedup_low: float
    """Lower bound of the 95 % interval; NaN without one."""
    top1_before: float
    """NaN, as `top1_after`, where images have sets of labels."""
    top1_after: float
    drop: float
    """Percentage points; NaN, as the accuracies, if they were not measured."""
    drop_bound: float
    """One-sided upper bound on `drop` with 95 % confidence, or more if several networks were judged."""
    num_certify_images: int
    target_reached: bool | None
    """None if no speed-up was requested."""
    receipt: dict[str, Any]
    exact_match_before: float | None = None
    """Fraction of the images whose set of labels is predicted to the last label, which is what `drop` is about then;
    None where images have one class."""
    exact_match_after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the report, which is in the bundle, as plain values for JSON."""
        other = "exact_match" if self.exact_match_before is None else "top1"
        left_out = ("receipt", f"{other}_before", f"{other}_after")
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in left_out
        }
        return {**values, "bundle": str(self.bundle)}


def acceleration_of(
    result: SearchResult, final: Bundle, options: SearchOptions, receipt_json: dict[str, Any]
) -> Acceleration:
    """The result of a search whose final bundle and report were written."""
    chosen = result.winner or result.baseline
    unknown = (math.nan, None, None)
    # if nothing is faster the answer is the baseline itself; without a baseline the ratio is unknown
    ratio = unknown if chosen is None else (1.0, 1.0, 1.0) if chosen.ratio is None else chosen.ratio
    score = "exact_match" if final.info.multi_label else "top1"
    before = receipt_json[f"{score}_before"]
    before = math.nan if before is None else before
    loss = None if chosen is None else chosen.certified
    # what was not measured has no drop; the baseline itself has none if it was
    unchanged = math.nan if chosen is None or math.isnan(before) else 0.0
    after = before if loss is None else loss.top1_after
    exact = (before, after) if final.info.multi_label else (None, None)
    top1 = (math.nan, math.nan) if final.info.multi_label else (before, after)
    return Acceleration(
        bundle=final.folder,
        accelerated=result.winner is not None,
        status=result.verdict.value,
        reason=result.verdict.reason,
        warnings=list(result.warnings),
        runtime=final.info.runtime if chosen is None else chosen.candidate.runtime,
        precision=final.info.precision if chosen is None else chosen.candidate.precision,
        batch_size=options.images_per_call,
        latency_ms_before=_p50_ms(result.baseline),
        latency_ms_after=_p50_ms(chosen),
        speedup=ratio[0],
        speedup_low=math.nan if ratio[1] is None else ratio[1],
        top1_before=top1[0],
        top1_after=top1[1],
        exact_match_before=exact[0],
        exact_match_after=exact[1],
        drop=unchanged if loss is None else 100 * loss.drop,
        drop_bound=unchanged if loss is None else 100 * loss.bound,
        num_certify_images=result.num_certify,
        target_reached=None if options.target_speedup is None or chosen is None else ratio[0] >= options.target_speedup,
        receipt=receipt_json,
    )


def _p50_ms(chosen: Result | None) -> float:
    """NaN if it was not timed."""
    return chosen.p50_ms if chosen is not None and math.isfinite(chosen.p50_ms) else math.nan
