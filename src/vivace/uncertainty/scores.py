"""How unlike the known images an image is, from what a network makes of it (no torch here).

Each score is higher for images that are less like the known ones. Shapes: N images, K classes, M stored features of D
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["BEFORE_SOFTMAX", "SCORES", "Answers", "energy", "generalised_entropy", "neighbour_distance", "ood_score"]

# as in the paper
GAMMA, NUM_TOP = 0.1, 100
# stored features for each neighbour that is looked at: of few, the nearest alone
PER_NEIGHBOUR = 100
# of the cosine: stored features are of 16 bits, and may have been computed in another precision
SAME = 1e-4
SCORES = ("entropy", "energy", "neighbours")
# what the graphs of other runtimes do not give: they end in probabilities
BEFORE_SOFTMAX = ("energy", "neighbours")


@dataclass(frozen=True)
class Answers:
    """What a network makes of images."""

    probs_NK: np.ndarray
    """float32, rows sum to 1."""
    energy_N: np.ndarray | None = None
    """Of the logits; None: the runtime gives probabilities alone."""
    features_ND: np.ndarray | None = None
    """float32: what the last layer is given; None as above, or where the network has no such layer."""

    def __len__(self) -> int:
        return len(self.probs_NK)

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """The answers to several batches, at least one, as one."""
        energies = [part.energy_N for part in parts if part.energy_N is not None]
        features = [part.features_ND for part in parts if part.features_ND is not None]
        return cls(
            np.concatenate([part.probs_NK for part in parts]),
            np.concatenate(energies) if len(energies) == len(parts) else None,
            np.concatenate(features) if len(features) == len(parts) else None,
        )


def ood_score(
    name: str, answers: Answers, known_MD: np.ndarray | None, *, may_be_known: bool = False
) -> np.ndarray | None:
    """A row of `SCORES`, float64 [N]; None where what it needs is not there. known_MD: stored features.

    may_be_known: these are images like the known ones, perhaps the very same, and none is compared with itself.
    """
    if name == "entropy":
        return generalised_entropy(answers.probs_NK)
    if name == "energy":
        return answers.energy_N
    if answers.features_ND is None or known_MD is None or answers.features_ND.shape[1] != known_MD.shape[1]:
        return None
    own_N = own_rows(answers.features_ND, known_MD) if may_be_known else None
    return neighbour_distance(answers.features_ND, known_MD, own_N=own_N)


def own_rows(features_ND: np.ndarray, known_MD: np.ndarray) -> np.ndarray:
    """int64 [N]: the stored feature that is an image's own, but for rounding; -1: none."""
    similar_NM = _unit(features_ND) @ _unit(known_MD).T
    nearest_N = similar_NM.argmax(1)
    is_own_N = similar_NM[np.arange(len(nearest_N)), nearest_N] > 1 - SAME
    return np.where(is_own_N, nearest_N, -1)


def generalised_entropy(probs_NK: np.ndarray) -> np.ndarray:
    """The sum of (p·(1 - p))^0.1 over the 100 likeliest classes, float64 [N]: from probabilities alone.

    Source: Liu, Lochman & Zach, "GEN", CVPR 2023.
    """
    probs = np.asarray(probs_NK, np.float64)
    if probs.shape[1] > NUM_TOP:
        probs = np.partition(probs, -NUM_TOP, axis=1)[:, -NUM_TOP:]
    # rounding may take a probability beyond 1
    entropy: np.ndarray = (np.clip(probs * (1 - probs), 0, 1) ** GAMMA).sum(1)
    return entropy


def energy(logits_NK: np.ndarray) -> np.ndarray:
    """-log of the sum of exp(logit), float64 [N]. Source: Liu et al. 2020, arXiv:2010.03759, at a temperature of 1."""
    logits = np.asarray(logits_NK, np.float64)
    most = logits.max(1)
    # of what overflowed it is NaN, which callers look for
    with np.errstate(invalid="ignore"):
        values: np.ndarray = -most - np.log(np.exp(logits - most[:, None]).sum(1))
    return values


def neighbour_distance(features_ND: np.ndarray, known_MD: np.ndarray, *, own_N: np.ndarray | None = None) -> np.ndarray:
    """The distance to the k-th nearest stored feature, all of length 1, float64 [N]; k is M / 100, at least 1.

    own_N: int64, the row of `known_MD` that an image is itself and is not compared with; -1: none.
    Source: Sun et al. 2022, arXiv:2204.06507.
    """
    known, features = _unit(known_MD), _unit(features_ND)
    similar_NM = features @ known.T
    if own_N is not None:
        rows = np.flatnonzero(own_N >= 0)
        similar_NM[rows, own_N[rows]] = -np.inf
    rank = min(max(1, len(known) // PER_NEIGHBOUR), similar_NM.shape[1])
    nearest = np.partition(similar_NM, -rank, axis=1)[:, -rank]
    distances: np.ndarray = np.sqrt(np.maximum(0, 2 - 2 * nearest.astype(np.float64)))
    return distances


def _unit(features_ND: np.ndarray) -> np.ndarray:
    features = np.asarray(features_ND, np.float32)
    lengths: np.ndarray = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)
