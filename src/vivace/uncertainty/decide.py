"""What is told of an image beside its classes: the prediction set, whether to abstain, whether it is like the known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.errors import ConfigError
from vivace.statistics.conformal import class_scores
from vivace.statistics.selective import fewest_images
from vivace.uncertainty.calibrate import COVERAGE, RISK
from vivace.uncertainty.record import Uncertainty
from vivace.uncertainty.scores import BEFORE_SOFTMAX, Answers, ood_score

__all__ = ["Decided", "Decider", "check_rate"]

# what a program without vivace may choose from
COVERAGES, RISKS = (0.8, 0.9, 0.95, 0.98, 0.99), (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Decided:
    """What was decided for N images."""

    sets_NK: np.ndarray
    """bool: the classes in the prediction set, the likeliest one always."""
    abstain_N: np.ndarray | None
    """bool; None: no level of confidence holds the risk."""
    ood_N: np.ndarray | None = None
    """bool: whether it is unlike the known images; None: the bundle has no score."""
    ood_score_N: np.ndarray | None = None
    """float64, higher for images that are less like them."""


class Decider:
    """Applies the thresholds of a bundle to its answers."""

    def __init__(
        self,
        found: Uncertainty,
        known_MD: np.ndarray | None = None,
        *,
        coverage: float = COVERAGE,
        risk: float = RISK,
        before_softmax: bool = False,
    ) -> None:
        """coverage, risk: in (0, 1). known_MD: features of known images. before_softmax: the runtime gives these too.

        Raises ConfigError for a rate out of range.
        """
        check_rate("coverage", coverage)
        check_rate("abstain", risk)
        self.found, self.coverage, self.risk, self._known_MD = found, coverage, risk, known_MD
        self.threshold = found.set_threshold(coverage)
        self.answered_from = found.answered_from(risk)
        able = [score for score in found.ood if before_softmax or score.name not in BEFORE_SOFTMAX]
        self.scores = [score for score in able if score.name != "neighbours" or known_MD is not None]
        """Those that the runtime gives what they need, the best one first."""
        self.ood = self.scores[0] if self.scores else None

    @property
    def needs_more(self) -> bool:
        """Whether its score of unlike images needs more than probabilities."""
        return self.ood is not None and self.ood.name in BEFORE_SOFTMAX

    def decide(self, answers: Answers) -> Decided:
        """What is told of each image."""
        probs_NK = answers.probs_NK
        sets_NK = class_scores(probs_NK, self.found.rule) <= self.threshold
        rows = np.arange(len(probs_NK))
        sets_NK[rows, probs_NK.argmax(1)] = True
        abstain = None if self.answered_from is None else probs_NK.max(1) < self.answered_from
        score = None if self.ood is None else self.score(self.ood.name, answers)
        if self.ood is None or score is None:
            return Decided(sets_NK, abstain)
        return Decided(sets_NK, abstain, score > self.ood.threshold, score)

    def score(self, name: str, answers: Answers, *, may_be_known: bool = False) -> np.ndarray | None:
        """A score of unlike images, float64 [N]; None where what it needs is not there.

        may_be_known: as for `ood_score`.
        """
        return ood_score(name, answers, self._known_MD, may_be_known=may_be_known)

    def exact_sets(self, probs_NK: np.ndarray) -> np.ndarray:
        """bool [N, K]: the sets that the coverage is proven for from both sides, which may be empty."""
        return class_scores(probs_NK, self.found.rule) <= self.threshold

    def notes(self) -> list[str]:
        """What can't be promised, in a line each."""
        found, lines = self.found, []
        if not np.isfinite(self.threshold):
            lines.append(
                f"prediction sets hold every class: {found.num_images:,} calibration images are too few for a coverage "
                f"of {self.coverage:g}"
            )
        if self.answered_from is None:
            lines.append(
                f"no level of confidence holds an error of {100 * self.risk:g} % among what is answered, with 95 % "
                f"confidence, so nothing is said of abstaining: there are {found.num_images:,} calibration images, and "
                f"at least {fewest_images(self.risk):,} answers, none of them wrong, would be needed"
            )
        return lines

    def origin(self) -> str:
        """What the thresholds come from, in one line."""
        found = self.found
        chose = f", which also chose {_listed(found.also_chose)}" if found.also_chose else ""
        return (
            f"{found.num_images:,} {found.images} ({found.variant}){chose}; {found.num_choosing:,} others chose the "
            f"rule {found.rule}"
        )

    def told(self) -> dict[str, Any]:
        """What a program without vivace needs to decide the same, from probabilities alone, as plain values."""
        rule = self.found.rule
        # JSON knows no infinity: None, every class is in the set
        sets = [(rate, self.found.set_threshold(rate)) for rate in sorted({*COVERAGES, self.coverage})]
        ood = next((score for score in self.found.ood if score.name not in BEFORE_SOFTMAX), None)
        return {
            "method": rule.method,
            "penalty": rule.penalty,
            "free_ranks": rule.free_ranks,
            "coverage": self.coverage,
            "set_thresholds": [[rate, value if np.isfinite(value) else None] for rate, value in sets],
            "risk": self.risk,
            "answered_from": [[rate, self.found.answered_from(rate)] for rate in sorted({*RISKS, self.risk})],
            "ood": None if ood is None else {"score": ood.name, "threshold": ood.threshold},
            "calibrated_on": self.origin(),
        }


def check_rate(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a number between 0 and 1, both excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} is out of range: got {value!r}. Give a number between 0 and 1, such as 0.9 or 0.05.")


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
