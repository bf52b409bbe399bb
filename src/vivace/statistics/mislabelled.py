"""Which labels are probably wrong, by probabilities of a model that did not see them: confident learning.

A label is wrong with a probability ε, whatever the image, and is then any of the other classes. What a model says of
images whose labels it did not see tells ε apart from its own uncertainty: where it is right, few labels are improbable,
and wrong ones are improbable whatever else. Both ε and the temperature of the probabilities are those that make the
labels most probable. Then each label's probability of being right is known, and labels are called wrong from the least
probable on while the mean of these probabilities, the expected fraction of right ones among them, is within half of the
stated rate.

N images, K classes. Sources: confident learning (arXiv:1911.00068); the rule, Newton et al., Biostatistics 5, 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = ["Mislabelled", "mislabelled"]

# fractions of wrong labels and temperatures that are tried
RATES = np.concatenate([[0.0], np.geomspace(1e-3, 0.5, 60)])
TEMPERATURES = np.geomspace(0.33, 3, 25)
# one-sided, of the margin for chance
CONFIDENCE = 0.9
# of the stated rate that is spent by the model. Networks are sometimes sure and wrong, more often than any temperature
# says: of handwritten digits 0.12 were right where 0.10 were expected, and 0.07 with half of it
SAFETY = 0.5


@dataclass(frozen=True)
class Mislabelled:
    """The labels that are probably wrong."""

    rows: np.ndarray
    """int64 [n], positions, the surest first."""
    right_N: np.ndarray
    """float64, each label's probability of being right, in [0, 1]."""
    likely_N: np.ndarray
    """int64, the class that is most probable."""
    rate: float
    """ε, the estimated fraction of wrong labels."""
    expected_fdr: float
    """The expected fraction of right labels among `rows`; 0 if there are none."""


def mislabelled(logprobs_NK: np.ndarray, labels_N: np.ndarray, *, fdr: float = 0.1) -> Mislabelled:
    """The labels that are probably wrong; of these a fraction of at most `fdr` is expected to be right.

    logprobs_NK: float, logarithms of out-of-fold probabilities. labels_N: int64 in [0, K). fdr: in (0, 1). The bound
    holds if wrong labels are random and the model's probabilities are right but for a temperature; with few images it
    is kept with a margin of one-sided 90 % confidence. Raises ValueError for other shapes or values.
    """
    num, classes = logprobs_NK.shape
    if labels_N.shape != (num,) or classes < 2 or not 0 < fdr < 1 or not np.isfinite(logprobs_NK).all():
        raise ValueError(f"impossible values: {logprobs_NK.shape}, {labels_N.shape}, fdr {fdr}")
    rate, temperature = _most_likely(logprobs_NK, labels_N)
    probs = _softmax(logprobs_NK / temperature)
    likely = probs.argmax(1)
    right = _right(probs[np.arange(num), labels_N], rate, classes)
    order = np.argsort(right, kind="stable")
    # a label that is the most probable one is not called wrong, however improbable
    order = order[labels_N[order] != likely[order]]
    count = np.arange(1, len(order) + 1)
    mean = np.cumsum(right[order]) / count
    spread = np.sqrt(np.cumsum(right[order] * (1 - right[order]))) / count
    within = np.flatnonzero(mean + NormalDist().inv_cdf(CONFIDENCE) * spread <= SAFETY * fdr)
    rows = order[: within[-1] + 1] if len(within) else order[:0]
    return Mislabelled(rows, right, likely, float(rate), float(mean[len(rows) - 1]) if len(rows) else 0.0)


def _softmax(logits_NK: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _given(own_N: np.ndarray, rate: float, classes: int) -> np.ndarray:
    """How probable the given labels are, of which `own_N` are the probabilities if they are right."""
    return (1 - rate) * own_N + rate / (classes - 1) * (1 - own_N)


def _right(own_N: np.ndarray, rate: float, classes: int) -> np.ndarray:
    return (1 - rate) * own_N / np.maximum(_given(own_N, rate, classes), 1e-300)


def _most_likely(logprobs_NK: np.ndarray, labels_N: np.ndarray) -> tuple[float, float]:
    """(ε, temperature) that make the labels most probable."""
    rows, best = np.arange(len(labels_N)), (-np.inf, 0.0, 1.0)
    for temperature in TEMPERATURES:
        own = _softmax(logprobs_NK / temperature)[rows, labels_N]
        for rate in RATES:
            likelihood = float(np.log(np.maximum(_given(own, rate, logprobs_NK.shape[1]), 1e-12)).sum())
            if likelihood > best[0]:
                best = (likelihood, float(rate), float(temperature))
    return best[1], best[2]
