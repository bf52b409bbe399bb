"""Whether a bundle keeps its promises on labelled images: prediction sets, abstaining, images unlike the known."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vivace.data.caching.cache import CachedSplit
from vivace.errors import ConfigError, DataError, ImageError
from vivace.notices import warn
from vivace.prediction import Predictor, decoded, expand_paths
from vivace.statistics.conformal import coverage_band, true_scores
from vivace.statistics.detection import Detection, detection
from vivace.statistics.proportions import wilson_interval
from vivace.statistics.selective import risk_bound
from vivace.uncertainty.decide import Decider
from vivace.uncertainty.generated import NUM_GENERATED, generated_images
from vivace.uncertainty.record import Uncertainty
from vivace.uncertainty.scores import Answers

__all__ = [
    "GENERATED",
    "Scored",
    "UncertaintyMetrics",
    "UnlikeImages",
    "check_ood",
    "measure_uncertainty",
    "told_of",
    "uncertainty_of",
    "unlike_images",
]

# scores below it are alike without being of the same image
SURE = 1e-3
# the value of `ood` that names no images
GENERATED = "generated"


@dataclass(frozen=True, kw_only=True)
class UnlikeImages:
    """How well each score tells images of another kind from those that were evaluated."""

    name: str
    """The folder, or what was generated."""
    by_score: dict[str, Detection]
    flagged: float
    """Fraction that the bundle calls unlike, by its own score and threshold."""


@dataclass(frozen=True, kw_only=True)
class UncertaintyMetrics:
    """What a bundle's thresholds do on labelled images. Rates in [0, 1]; `_low` and `_high`: 95 % (Wilson)."""

    stated_coverage: float
    coverage: float
    """Fraction of the images whose prediction set holds the true class."""
    coverage_low: float
    coverage_high: float
    exact_coverage: float
    """The same of sets that may be empty, as the next two expect: in others the likeliest class always is."""
    band_low: float
    """Where `exact_coverage` is to be with a probability of 95 %, for images like the calibration images."""
    band_high: float
    mean_set_size: float
    empty_sets: float
    """Fraction of the images whose set would be empty without the likeliest class."""
    rule: str
    stated_risk: float
    abstained: float | None
    """Fraction of the images that are not answered; None, as the next three: no level of confidence holds the risk."""
    abstained_low: float | None
    abstained_high: float | None
    error_answered: float | None
    """Fraction of the answers that are wrong; None also where none is given."""
    error_answered_bound: float | None
    """One-sided 95 % upper bound on it, of Clopper & Pearson."""
    ood_score: str | None
    """What the bundle tells unlike images by; None: it has no score."""
    ood_flagged: float | None
    """Fraction of these images that it calls unlike: about 5 % is meant to be."""
    calibrated_on: str
    num_calibration: int
    on_calibration_images: bool = False
    """Whether the images are those that the thresholds were calibrated on, going by their name or scores."""
    unlike: tuple[UnlikeImages, ...] = ()


@dataclass
class Scored:
    """The answers to images with all scores, kept without what these were computed from."""

    probs: list[np.ndarray] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, batches: Iterable[Answers], decider: Decider | None, *, names: Sequence[str], may_be_known: bool = False
    ) -> Scored:
        """names: of the scores to compute, of those that the decider can. may_be_known: as for `ood_score`."""
        found = cls(scores={name: [] for name in names})
        for answers in batches:
            found.probs.append(answers.probs_NK)
            for name in names:
                assert decider is not None
                score = decider.score(name, answers, may_be_known=may_be_known)
                if score is not None:
                    found.scores[name].append(score)
        return found

    @property
    def probs_NK(self) -> np.ndarray:  # noqa: N802
        return np.concatenate(self.probs)

    def score(self, name: str) -> np.ndarray | None:
        """float64 [N]; None where some images have none, or it is not finite."""
        parts = self.scores.get(name, [])
        if len(parts) != len(self.probs) or not parts:
            return None
        joined = np.concatenate(parts)
        return joined if np.isfinite(joined).all() else None


def measure_uncertainty(
    decider: Decider, scored: Scored, labels_N: np.ndarray, unlike: Sequence[tuple[str, Scored]] = ()
) -> UncertaintyMetrics:
    """What the thresholds do on images with these answers and labels. unlike: (name, answers) of other images."""
    probs_NK, rows = scored.probs_NK, np.arange(len(labels_N))
    decided, exact_NK = decider.decide(Answers(probs_NK)), decider.exact_sets(probs_NK)
    covered = decided.sets_NK[rows, labels_N]
    low, high = wilson_interval(int(covered.sum()), len(covered))
    num_calibration = decider.found.num_images
    band = coverage_band(num_calibration, len(covered), decider.coverage)
    known = None if decider.ood is None else scored.score(decider.ood.name)
    limit = None if decider.ood is None else decider.ood.threshold
    return UncertaintyMetrics(
        stated_coverage=decider.coverage,
        coverage=float(covered.mean()),
        coverage_low=low,
        coverage_high=high,
        exact_coverage=float(exact_NK[rows, labels_N].mean()),
        band_low=band[0],
        band_high=band[1],
        mean_set_size=float(decided.sets_NK.sum(1).mean()),
        empty_sets=float((~exact_NK.any(1)).mean()),
        rule=str(decider.found.rule),
        stated_risk=decider.risk,
        **_answered(decided.abstain_N, probs_NK.argmax(1) == labels_N),
        ood_score=None if decider.ood is None else decider.ood.name,
        ood_flagged=None if known is None or limit is None else float((known > limit).mean()),
        calibrated_on=decider.origin(),
        num_calibration=num_calibration,
        on_calibration_images=_are_known(decider, true_scores(probs_NK, labels_N, decider.found.rule)),
        unlike=tuple(_unlike(decider, scored, name, others) for name, others in unlike),
    )


def check_ood(predictor: Predictor, ood: str | Path | None, tta: str) -> None:
    """Raises ConfigError where `ood` would be ignored."""
    if ood is None:
        return
    if predictor.decider is None or not predictor.decider.scores:
        info = predictor.bundle.info
        advice = "Train or accelerate again with 20 validation images or more, or leave it out"
        if "privacy" in info.metrics:
            advice = "A private bundle keeps no thresholds of its images. Leave it out"
        elif info.multi_label:
            advice = "It is for one class an image, and this bundle predicts sets of labels. Leave it out"
        raise ConfigError(
            f"ood would be ignored: got {str(ood)!r}, and {predictor.bundle.folder} has no score of unlike images. "
            f"{advice}."
        )
    if tta != "none":
        raise ConfigError(f"ood can't go with several views: got tta={tta!r}. Leave one of them out.")


def uncertainty_of(
    predictor: Predictor,
    cached: CachedSplit,
    rows: np.ndarray,
    scored: Scored,
    ood: str | Path | None,
    tta: str,
    *,
    calibrated: bool = False,
) -> UncertaintyMetrics | None:
    """What the thresholds of the bundle do on these images; None if it has none, or none for several views.

    calibrated: by their name and split the images are those that the thresholds were calibrated on.
    """
    if predictor.decider is None:
        return None
    if tta != "none":
        warn("prediction sets were not measured: the thresholds of the bundle are those of single views")
        return None
    for line in predictor.decider.notes():
        warn(line)
    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(NUM_GENERATED, len(rows))).astype(int))]
    unlike = [] if ood is None else list(unlike_images(predictor, ood, np.asarray(cached.images_NHWC[some])))
    found = measure_uncertainty(predictor.decider, scored, cached.labels_N[rows], unlike)
    found = dataclasses.replace(found, on_calibration_images=found.on_calibration_images or calibrated)
    if found.on_calibration_images:
        warn(
            "these are the images that the thresholds were calibrated on: coverage, errors, and how well unlike images "
            "are told from these show nothing of others. Measure them on a test split"
        )
    return found


def _are_known(decider: Decider, scores_N: np.ndarray) -> bool:
    """Whether nearly all scores of the calibration images are among these, to six digits, certain answers apart."""
    known = np.array([score for score in decider.found.scores if score > SURE])
    rounded = np.unique(np.round(scores_N, 6))
    return bool(len(known) >= 10 and np.isin(np.round(known, 6), rounded).mean() > 0.9)


def told_of(found: Uncertainty | None, probs_NK: np.ndarray, labels_N: np.ndarray | None) -> dict[str, Any] | None:
    """What a report shows of thresholds and of answers to labelled images: the fields of its `Reliance`.

    labels_N: None of sets of labels, which have no thresholds. The scores of unlike images are those that the
    thresholds were calibrated with, on the validation images.
    """
    if found is None or labels_N is None:
        return None
    decider = Decider(found)
    measured = measure_uncertainty(decider, Scored([probs_NK]), labels_N)
    sizes, counts = np.unique(decider.decide(Answers(probs_NK)).sets_NK.sum(1), return_counts=True)
    names = ("stated_coverage", "coverage", "coverage_low", "coverage_high", "mean_set_size", "rule", "stated_risk")
    more = ("abstained", "error_answered", "error_answered_bound")
    band = ("num_calibration", "exact_coverage", "band_low", "band_high")
    return {
        **{name: getattr(measured, name) for name in (*names, *more, *band)},
        "sizes": tuple((int(size), float(count / len(labels_N))) for size, count in zip(sizes, counts, strict=True)),
        "calibrated_on": measured.calibrated_on,
        "unlike": tuple(
            (one.name, one.result.auroc, one.result.auroc_low, one.result.auroc_high)
            for score in found.ood[:1]
            for one in score.generated
        ),
        "ood_score": found.ood[0].name if found.ood else None,
    }


def _answered(abstain_N: np.ndarray | None, right_N: np.ndarray) -> dict[str, float | None]:
    names = ("abstained", "abstained_low", "abstained_high", "error_answered", "error_answered_bound")
    if abstain_N is None:
        return dict.fromkeys(names)
    low, high = wilson_interval(int(abstain_N.sum()), len(abstain_N))
    answered, wrong = int((~abstain_N).sum()), int((~abstain_N & ~right_N).sum())
    error = wrong / answered if answered else None
    bound = risk_bound(wrong, answered) if answered else None
    return dict(zip(names, (float(abstain_N.mean()), low, high, error, bound), strict=True))


def _unlike(decider: Decider, scored: Scored, name: str, others: Scored) -> UnlikeImages:
    found = {}
    for score in decider.scores:
        known, other = scored.score(score.name), others.score(score.name)
        if known is not None and other is not None:
            found[score.name] = detection(known, other)
    flagged = 0.0
    if decider.ood is not None and (own := others.score(decider.ood.name)) is not None:
        flagged = float((own > decider.ood.threshold).mean())
    return UnlikeImages(name=name, by_score=found, flagged=flagged)


def unlike_images(predictor: Predictor, where: str | Path, stored_NHWC: np.ndarray) -> Iterator[tuple[str, Scored]]:
    """(name, answers) of the images in a folder, a file or a glob, and of generated ones.

    where: "generated" for these alone. stored_NHWC: some of the known images as the cache has them, for the generated
    ones. Raises DataError if there are none; a warning says how many could not be used.
    """
    decider, view, size = predictor.decider, predictor.bundle.preprocess.view, predictor.batch_size
    names = [] if decider is None else [score.name for score in decider.scores]
    if str(where) != GENERATED:
        if not glob.has_magic(str(where)) and not Path(where).exists():
            raise DataError(f"the images to tell apart were not found: got {str(where)!r}. Check the path.")
        answers, failed = [], 0
        for _, results in decoded(expand_paths([where]), predictor):
            good = [result for result in results if not isinstance(result, ImageError)]
            failed += len(results) - len(good)
            if good:
                answers.append(predictor.answers(np.stack(good), everything=True))
        if not answers:
            raise DataError(f"no image of {str(where)!r} can be used: got {failed:,} that can't be read. Give others.")
        if failed:
            warn(f"{failed:,} of the images of {where} can't be used and were left out")
        yield str(where), Scored.of(answers, decider, names=names)
    for kind, images_NHWC in generated_images(stored_NHWC).items():
        seen = view(images_NHWC)
        batches = (predictor.answers(seen[at : at + size], everything=True) for at in range(0, len(seen), size))
        yield kind, Scored.of(batches, decider, names=names)
