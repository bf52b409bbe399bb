"""The parts of the evaluated images on which a bundle is worst: gathers what the images look like."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from vivace.data.caching.cache import CachedSplit
from vivace.data.filesizes import image_sizes
from vivace.data.splits import Split
from vivace.evaluation.chosen import Chosen
from vivace.evaluation.hardship import chosen_at_random
from vivace.metrics.clusters import clustered
from vivace.metrics.measured import Measured
from vivace.metrics.slices import Looks, Slices, find_slices
from vivace.uncertainty.scores import Answers

__all__ = ["FeatureKeeper", "measured_answers", "slices_of"]

# images that are read once more for their brightness, and whose features are kept: more tell nothing new
MAX_IMAGES = 10_000
BLOCK = 500


class FeatureKeeper:
    """Keeps the features of images while they are answered; of many images those of some, drawn by a seed."""

    def __init__(self, num_images: int, *, seed: int = 0) -> None:
        self._num_images, self._seed, self._seen = num_images, seed, 0
        self._rows = chosen_at_random(np.arange(num_images), MAX_IMAGES, seed)
        self._parts: list[np.ndarray | None] = []

    def take(self, answers: Answers) -> Answers:
        """The answers to the next images, as they are."""
        features_BD, end = answers.features_ND, self._seen + len(answers)
        inside = self._rows[(self._rows >= self._seen) & (self._rows < end)] - self._seen
        self._parts.append(None if features_BD is None else features_BD[inside])
        self._seen = end
        return answers

    def clusters(self) -> np.ndarray | None:
        """int64 [N], the cluster of each image, -1 for those not kept; None where the runtime gives no features."""
        known = [part for part in self._parts if part is not None]
        if len(known) != len(self._parts) or not known or len({part.shape[1] for part in known}) != 1:
            return None
        features_ND = np.concatenate(known)
        if not np.isfinite(features_ND).all():
            return None
        clusters = np.full(self._num_images, -1, np.int64)
        clusters[self._rows] = clustered(features_ND, seed=self._seed)
        return clusters


def measured_answers(
    chosen: Chosen,
    split: Split,
    cached: CachedSplit,
    probs_NK: np.ndarray,
    view: Callable[[np.ndarray], np.ndarray],
    hits_NK: np.ndarray | None,
) -> Measured:
    """The answers to the chosen images of a split, with their pixels and the sizes of their files."""
    rows = chosen.rows
    names = [cached.names[row] for row in rows]
    return Measured(
        split=chosen.split,
        probs_NK=probs_NK,
        labels_N=cached.labels_N[rows],
        names=names,
        images=lambda some: view(np.asarray(cached.images_NHWC[rows[some]])),
        hits_NK=hits_NK,
        sizes=functools.partial(image_sizes, split, names),
    )


def slices_of(
    measured: Measured,
    classes: Sequence[str],
    thresholds: Sequence[float] = (),
    *,
    clusters_N: np.ndarray | None = None,
    seed: int = 0,
) -> Slices:
    """The parts of the images on which the answers are worse than on the others; of sets of labels, by exact match."""
    probs_NK, hits_NK = measured.probs_NK, measured.hits_NK
    if hits_NK is None:
        right_N = probs_NK.argmax(1) == measured.labels_N
    else:
        right_N = ((probs_NK >= np.asarray(thresholds)) == hits_NK).all(1)
    looks = Looks(
        brightness_N=_brightness(measured, seed),
        sizes_N2=None if measured.sizes is None else measured.sizes(),
        clusters_N=clusters_N,
    )
    labels_N = measured.labels_N if hits_NK is None else None
    return find_slices(probs_NK, right_N, classes, looks, labels_N=labels_N, hits_NK=hits_NK)


def _brightness(measured: Measured, seed: int) -> np.ndarray | None:
    """float [N], NaN for images that are not looked at; None of pixels of other scales than 0 to 255."""
    count = len(measured.probs_NK)
    found, rows = np.full(count, np.nan), chosen_at_random(np.arange(count), MAX_IMAGES, seed)
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        images_NHWC = measured.images(some)
        if images_NHWC.dtype != np.uint8:
            return None
        found[some] = images_NHWC.mean((1, 2, 3), dtype=np.float32)
    return found
