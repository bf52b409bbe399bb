"""What is shown of prediction sets, abstaining, and images unlike the known ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vivace.errors import printable

if TYPE_CHECKING:
    from vivace.evaluation.uncertainty import UncertaintyMetrics
    from vivace.predicted import Prediction

__all__ = ["print_uncertainty", "reliance"]


def reliance(row: Prediction) -> str:
    """What is to be known of a prediction before it is relied on, after a tab; nothing where it can be relied on."""
    told = []
    if row.prediction_set is not None and len(row.prediction_set) > 1:
        told.append(f"one of {len(row.prediction_set)}: {', '.join(printable(name) for name in row.prediction_set)}")
    if row.abstain:
        told.append("abstain")
    if row.ood:
        told.append("unlike the known images")
    return f"\t{'; '.join(told)}" if told else ""


def print_uncertainty(found: UncertaintyMetrics) -> None:
    """Lines for a terminal."""
    print(
        f"sets    hold the true class for {_rate(found.coverage)}  [{_rate(found.coverage_low)}, "
        f"{_rate(found.coverage_high)}], stated: {_rate(found.stated_coverage)}; {found.mean_set_size:.2f} classes on "
        f"average ({found.rule})"
    )
    if found.empty_sets >= 0.005:
        print(
            f"        the likeliest class alone covers more: without it {_rate(found.empty_sets)} of sets are empty, "
            f"and the coverage is {_rate(found.exact_coverage)}"
        )
    if not found.on_calibration_images:
        within = "" if found.exact_coverage >= found.band_low else "; it is less: these images differ, or by chance"
        print(
            f"        with {found.num_calibration:,} calibration images {_rate(found.band_low)} to "
            f"{_rate(found.band_high)} is expected of images like these (95 %){within}"
        )
    if found.abstained is not None:
        error = "nothing is answered"
        if found.error_answered is not None and found.error_answered_bound is not None:
            error = (
                f"of the answers {_rate(found.error_answered)} are wrong (at most {_rate(found.error_answered_bound)}, "
                f"95 %), stated: {_rate(found.stated_risk)}"
            )
        print(f"abstain on {_rate(found.abstained)}; {error}")
    if found.ood_score is not None and found.ood_flagged is not None:
        print(f"unlike  {_rate(found.ood_flagged)} of these images are called so, by {found.ood_score} (5 % is meant)")
    if found.unlike and found.on_calibration_images:
        print("        told from the images that the thresholds were calibrated on, each left out of those it is")
        print("        compared with; from others they may be told less well:")
    for other in found.unlike:
        print(f"        {printable(other.name)}: {_rate(other.flagged)} are called so")
        for name, result in other.by_score.items():
            own = " (the bundle's)" if name == found.ood_score else ""
            print(
                f"          {name}{own}: AUROC {result.auroc:.3f} [{result.auroc_low:.3f}, {result.auroc_high:.3f}], "
                f"FPR95 {_rate(result.fpr95)} [{_rate(result.fpr95_low)}, {_rate(result.fpr95_high)}], "
                f"{result.num_others:,} images"
            )
    print(f"        calibrated on {found.calibrated_on}")


def _rate(value: float) -> str:
    return f"{100 * value:.1f} %"
