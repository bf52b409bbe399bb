"""Corruptions and attacks on some of the images that are evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vivace.config import shown_value
from vivace.data.caching.cache import CachedSplit
from vivace.errors import ConfigError
from vivace.predictor import Predictor, check_whole
from vivace.robustness.results import Corruptions

__all__ = ["Hardened", "Hardship", "chosen_at_random", "measured_under"]


@dataclass(frozen=True, kw_only=True)
class Hardship:
    """What is to be measured beside the images as they are. Raises ConfigError for values out of range."""

    corruptions: bool = False
    corruption_images: int = 1000
    """At most, chosen at random."""
    seed: int = 0
    """Of the choice of images and of everything random in corruptions and attacks."""

    def __post_init__(self) -> None:
        check_whole("corruption_images", self.corruption_images)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is out of range: got {shown_value(self.seed)}. Give a whole number below 2**31.")

    def check(self, predictor: Predictor) -> None:
        """Raises ConfigError if what is asked for can't be measured of this bundle."""
        if self.corruptions:
            from vivace.robustness.under_corruptions import check_corruptible

            check_corruptible(predictor)


@dataclass(frozen=True, kw_only=True)
class Hardened:
    """What was measured; None: it was not asked for."""

    corruptions: Corruptions | None = None


def measured_under(
    hardship: Hardship,
    predictor: Predictor,
    split: CachedSplit,
    rows: np.ndarray,
    progress: Callable[[int, int], None],
) -> Hardened:
    """The results for images among `rows` of the split."""
    if not hardship.corruptions:
        return Hardened()
    from vivace.robustness.under_corruptions import measure_corruptions

    chosen = chosen_at_random(rows, hardship.corruption_images, hardship.seed)
    images_NHWC = predictor.bundle.preprocess.view(np.asarray(split.images_NHWC[chosen]))
    return Hardened(
        corruptions=measure_corruptions(
            predictor, images_NHWC, split.labels_N[chosen], seed=hardship.seed, progress=progress
        )
    )


def chosen_at_random(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the rows, or all if there are no more, in their order; the same for the same seed."""
    if count >= len(rows):
        return rows
    chosen: np.ndarray = rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]
    return chosen
