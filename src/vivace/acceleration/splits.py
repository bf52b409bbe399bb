"""The images of a search: for calibration, for selection, and for certification, which are looked at only once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.bundle import Bundle
from vivace.data.caching.cache import Cache, open_cache
from vivace.data.caching.stored import Pixels
from vivace.data.describe import notes_of
from vivace.data.holdout import hold_out, hold_out_sets
from vivace.data.place import AnyData
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError
from vivace.notices import warn
from vivace.runtimes.loading import Classifier

__all__ = ["Images", "Splits", "open_splits"]

NUM_CALIBRATE = 300
NUM_FILES = 32
# fraction for selection if selection and certification have to share a split: a proof needs more images than a choice
SELECT_SHARE = 0.25
MIN_CERTIFY = 30
BATCH = 64
# the default of training, for a bundle that does not say
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Images:
    """Some images of a cached split, which are read when they are needed."""

    name: str
    """Name of their split."""
    stored_NHWC: Pixels
    labels_N: np.ndarray
    rows: np.ndarray
    """int64, their positions in these two arrays."""
    preprocess: Preprocess
    label_sets_MK: np.ndarray | None = None
    """bool, where labels are the numbers of its rows, as of a data source."""
    thresholds_K: tuple[float, ...] = ()
    """From which probability on each label is predicted, where images have sets of labels."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """int64, in the order of `batches`."""
        return np.asarray(self.labels_N[self.rows], dtype=np.int64)

    def right(self, probs_NK: np.ndarray) -> np.ndarray:
        """bool [N], whether each image was answered rightly: its class, or its set of labels to the last one.

        Exact match is 0 or 1 for an image, as a class is right or wrong, so the same bound holds for its drop; it is
        the strictest score of sets, since a single label that changes may make an image wrong.
        """
        if self.label_sets_MK is None:
            right: np.ndarray = probs_NK.argmax(1) == self.labels
        else:
            right = ((probs_NK >= np.asarray(self.thresholds_K)) == self.label_sets_MK[self.labels]).all(1)
        return right

    def batches(self, size: int = BATCH) -> Iterator[np.ndarray]:
        """uint8 [b, size, size, C], at the network's input size."""
        for start in range(0, len(self.rows), size):
            stored = np.asarray(self.stored_NHWC[self.rows[start : start + size]])
            yield np.ascontiguousarray(self.preprocess.view(stored))

    def some(self, count: int) -> Images:
        """Up to `count` of them, evenly spaced, so that a split sorted by class gives images of every class."""
        rows = self.rows[np.unique(np.linspace(0, len(self.rows) - 1, min(count, len(self.rows))).round().astype(int))]
        return dataclasses.replace(self, rows=rows)

    def pixels(self) -> np.ndarray:
        """All of them in one array, uint8 [N, size, size, C]."""
        return np.concatenate(list(self.batches()))

    def probs(self, classify: Classifier) -> np.ndarray:
        """probs_NK of a classifier on all images."""
        return np.concatenate([classify(batch) for batch in self.batches()])


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of images."""

    data: str
    """Name of the data set."""
    calibrate: Images
    """Training images: for the ranges of activations, and for the importance of channels."""
    select: Images
    """Selection images: candidates are compared on them."""
    certify: Images
    """Certification images: the finalists are judged on them, once."""
    num_train: int
    """Number of training images."""
    files: tuple[str, ...] = ()
    """Some files of the selection split, to time the preprocessing; none if the data is not in files."""


def open_splits(
    bundle: Bundle, data: AnyData, *, cache_dir: Path | None = None, on_bad_image: str = "auto", seed: int = 0
) -> Splits:
    """Divide a data set. With a test split, validation images are for selection and all test images certify.

    Without one, a quarter of the validation images is for selection and the rest certifies. Without a validation split,
    the images that training held out are used: the same ones, if the bundle was trained on this data.
    Raises DataError if there are too few images to certify with, and what opening the data raises.
    """
    source = open_source(
        data,
        cache_dir=cache_dir,
        classes=bundle.classes,
        multi_label=bundle.info.multi_label,
        pixels=bundle.preprocess.pixels,
    )
    for line in notes_of(source):
        warn(line)
    cache = open_cache(source, bundle.preprocess, cache_dir=cache_dir, on_bad_image=on_bad_image, allow_leaks=False)
    rng = np.random.default_rng(seed)
    train, val = _train_and_val(bundle, cache)
    calibrate = _of(cache, bundle, "train", _spread(cache.splits["train"].labels_N, train, NUM_CALIBRATE, rng))
    val_name = "val" if "val" in cache.splits else "train"
    if "test" in cache.splits and len(cache.splits["test"].labels_N):
        select = _of(cache, bundle, val_name, val)
        certify = _of(cache, bundle, "test", np.arange(len(cache.splits["test"].labels_N)))
    else:
        mixed = rng.permutation(val)
        first = max(1, round(SELECT_SHARE * len(mixed)))
        select = _of(cache, bundle, val_name, np.sort(mixed[:first]))
        certify = _of(cache, bundle, val_name, np.sort(mixed[first:]))
    if len(certify) < MIN_CERTIFY or not len(select):
        raise DataError(
            f"too few images to prove anything: {source.name} has {len(certify)} for certification and {len(select)} "
            f"for selection; at least {MIN_CERTIFY} are needed for certification. Give data with a test split or a "
            "larger validation split."
        )
    paths = source.splits[val_name].paths or ()
    files = tuple(paths[:: max(1, len(paths) // NUM_FILES)][:NUM_FILES])
    return Splits(source.name, calibrate, select, certify, len(train), files)


def _of(cache: Cache, bundle: Bundle, split: str, rows: np.ndarray) -> Images:
    cached = cache.splits[split]
    return Images(
        split,
        cached.images_NHWC,
        cached.labels_N,
        rows,
        bundle.preprocess,
        cache.label_sets,
        bundle.info.thresholds,
    )


def _train_and_val(bundle: Bundle, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Rows of train for calibration, and rows of val (of train, without a val split) that were not trained on."""
    train = cache.splits["train"]
    if "val" in cache.splits:
        return np.arange(len(train.labels_N)), np.arange(len(cache.splits["val"].labels_N))
    trained_on = bundle.trained_on()
    if trained_on is not None:
        # if images were added since, holding out anew would pick some that were trained on
        known = trained_on.among(train.digests_N)
        if known.any() and not known.all():
            return np.flatnonzero(known), np.flatnonzero(~known)
    recipe = bundle.info.recipe
    fraction = recipe.get("data", {}).get("val_fraction", VAL_FRACTION)
    seed = recipe.get("seed", 0)
    if cache.label_sets is not None:
        return hold_out_sets(train.labels_N, cache.label_sets, train.digests_N, fraction, seed=seed)
    return hold_out(train.labels_N, train.digests_N, fraction, seed=seed)


def _spread(labels_N: np.ndarray, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` of the rows, balanced over the classes as far as there are enough of each."""
    mixed = rng.permutation(rows)
    # the first of each class, then the second of each, and so on
    rank = np.zeros(len(mixed), dtype=np.int64)
    for label in np.unique(labels_N[mixed]):
        own = np.flatnonzero(labels_N[mixed] == label)
        rank[own] = np.arange(len(own))
    chosen: np.ndarray = mixed[np.argsort(rank, kind="stable")[:count]]
    return chosen
