"""A bundle's answers to the images of a split, image by image, with what the audit found in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.data.audit import Audit
from vivace.data.caching.cache import audited_cache
from vivace.data.place import AnyData
from vivace.errors import DataError
from vivace.evaluation.chosen import choose_images
from vivace.evaluation.evaluate import open_split
from vivace.evaluation.slicing import FeatureKeeper, measured_answers
from vivace.metrics.measured import Measured
from vivace.prediction import Predictor

__all__ = ["MeasuredSplit", "measure"]


@dataclass(frozen=True)
class MeasuredSplit:
    """The answers, and on what they were measured."""

    data: str
    """Name of the data."""
    measured: Measured
    num_trained_on: int | None
    """How many of the images were trained on; None: the bundle has no record of that."""
    audit: Audit
    """Of the split, or of all of the data."""
    folders: tuple[Path, ...]
    """Below which the images lie."""
    clusters_N: np.ndarray | None = None
    """int64, the cluster of features of each image; None: the runtime gives no features."""


def measure(
    predictor: Predictor,
    data: AnyData,
    *,
    split: str | None = None,
    cache_dir: Path | None = None,
    on_bad_image: str = "auto",
    fingerprint: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MeasuredSplit:
    """The answers of a bundle to the images that `evaluate` measures; arguments as for `evaluate`.

    fingerprint: of the data that these are to be; the audit is then of all splits, not of this one alone.
    Raises DataError if there are no images, or the data are others, and what `evaluate` raises.
    """
    bundle = predictor.bundle
    source, chosen, cached = open_split(
        bundle, data, split=split, cache_dir=cache_dir, on_bad_image=on_bad_image, progress=progress
    )
    if not len(cached.labels_N):
        raise DataError(f"the split {chosen} of {source.name} has no images. Choose another by `split`.")
    audited = source if fingerprint else dataclasses.replace(source, splits={chosen: source.splits[chosen]})
    cache = audited_cache(audited, bundle.preprocess, cache_dir=cache_dir, progress=progress)
    if fingerprint not in (None, cache.fingerprint):
        raise DataError(
            f"the images of {source.name} are no longer those that the run was trained on: files were added, removed "
            "or changed. Give `data` to measure those that are there now."
        )
    only_split = len(source.splits) == 1
    picked = choose_images(
        chosen, split, cached.digests_N, bundle.trained_on(), only_split=only_split, name=source.name
    )
    rows, view, size = picked.rows, bundle.preprocess.view, predictor.batch_size
    keeper = FeatureKeeper(len(rows))
    probs_NK = np.concatenate(
        [
            keeper.take(
                predictor.answers(view(np.asarray(cached.images_NHWC[rows[start : start + size]])), everything=True)
            ).probs_NK
            for start in range(0, len(rows), size)
        ]
    )
    sets = source.label_sets
    hits_NK = None if sets is None else sets[cached.labels_N[rows]]
    measured = measured_answers(picked, source.splits[chosen], cached, probs_NK, view, hits_NK)
    return MeasuredSplit(source.name, measured, picked.num_trained_on, cache.audit, source.folders, keeper.clusters())
