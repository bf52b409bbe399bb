"""Groups of images that a network sees as alike: k-means on what its last layer is given.

Shape suffixes: N images, D features, K clusters.
"""

from __future__ import annotations

import numpy as np

__all__ = ["clustered"]

NUM_STEPS = 20
# images of a cluster, at least, on average
IMAGES_PER_CLUSTER, MAX_CLUSTERS = 50, 12


def clustered(features_ND: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """int64 [N]: the cluster of each image, numbered from 0 by their sizes, the largest first; the same for a seed.

    features_ND: finite; only their directions count. One cluster for each 50 images, at most 12, by k-means++ (Arthur &
    Vassilvitskii 2007) and Lloyd's steps; of under 100 images all are in one.
    """
    points_ND = features_ND.astype(np.float32)
    points_ND /= np.maximum(np.linalg.norm(points_ND, axis=1, keepdims=True), 1e-12)
    count = min(MAX_CLUSTERS, len(points_ND) // IMAGES_PER_CLUSTER)
    if count < 2:
        return np.zeros(len(points_ND), np.int64)
    rng = np.random.default_rng(seed)
    centres_KD = _first_centres(points_ND, count, rng)
    count = len(centres_KD)
    nearest_N = np.full(len(points_ND), -1)
    for _ in range(NUM_STEPS):
        # of unit vectors the nearest has the largest product, but for the centres' own lengths
        before_N, nearest_N = nearest_N, (points_ND @ centres_KD.T - 0.5 * (centres_KD**2).sum(1)).argmax(1)
        if (nearest_N == before_N).all():
            break
        for number in range(count):
            if (inside_N := nearest_N == number).any():
                centres_KD[number] = points_ND[inside_N].mean(0)
    sizes = np.bincount(nearest_N, minlength=count)
    place = np.empty(count, np.int64)
    place[np.argsort(-sizes, kind="stable")] = np.arange(count)
    found: np.ndarray = place[nearest_N]
    return found


def _first_centres(points_ND: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points far from each other: each is drawn in proportion to its squared distance to those before it."""
    chosen = [int(rng.integers(len(points_ND)))]
    distance_N = np.full(len(points_ND), np.inf)
    while len(chosen) < count:
        distance_N = np.minimum(distance_N, ((points_ND - points_ND[chosen[-1]]) ** 2).sum(1))
        total = distance_N.sum(dtype=np.float64)
        if not total > 0:
            # fewer different points than clusters
            break
        chosen.append(int(rng.choice(len(points_ND), p=distance_N.astype(np.float64) / total)))
    return points_ND[chosen].copy()
