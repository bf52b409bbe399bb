"""The three splits of a search: images to calibrate on, to select on, and to certify on, which are looked at once."""

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
from vivace.data.holdout import hold_out
from vivace.data.place import AnyData
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError
from vivace.notices import warn
from vivace.runtimes import Classifier

__all__ = ["Images", "Splits", "open_splits"]

NUM_CALIBRATE = 300
NUM_FILES = 32
# where selecting and certifying must share images: a proof needs more of them than a choice
SELECT_SHARE = 0.25
MIN_CERTIFY = 30
BATCH = 64
# what training holds out by default, where a bundle does not say
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Images:
    """Some images of a cached split, read when they are asked for."""

    name: str
    """The split that they are of, for people."""
    stored_NHWC: Pixels
    labels_N: np.ndarray
    rows: np.ndarray
    """int64, positions in the two."""
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """int64, in the order of `batches`."""
        return np.asarray(self.labels_N[self.rows], dtype=np.int64)

    def batches(self, size: int = BATCH) -> Iterator[np.ndarray]:
        """uint8 [b, size, size, C], as the network sees them."""
        for start in range(0, len(self.rows), size):
            stored = np.asarray(self.stored_NHWC[self.rows[start : start + size]])
            yield np.ascontiguousarray(self.preprocess.view(stored))

    def some(self, count: int) -> Images:
        """Up to `count` of them, evenly spread: of a split that is sorted by class, from every class."""
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
    """No image is in two of them."""

    data: str
    """The name of the data set."""
    calibrate: Images
    """Training images: ranges of activations are taken from them, and what a channel is worth to the loss."""
    select: Images
    """Candidates are compared on them."""
    certify: Images
    """Those that won are judged on them, once."""
    num_train: int
    """Images that were trained on."""
    files: tuple[str, ...] = ()
    """Some of the split to select on, to time what reading them takes; none where there are arrays alone."""


def open_splits(
    bundle: Bundle, data: AnyData, *, cache_dir: Path | None = None, on_bad_image: str = "auto", seed: int = 0
) -> Splits:
    """Divide a data set. With a test split: select on validation images, certify on all test images.

    Without one, a quarter of the validation images selects and the rest certifies. Where there is no validation split,
    the images that training held out take its place: the same ones, if the bundle was trained on this data.
    Raises DataError if there are too few images to certify on, and what opening the data raises.
    """
    source = open_source(data, cache_dir=cache_dir, classes=bundle.classes)
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
            f"too few images to prove anything: {len(certify)} of {source.name} to certify on, {len(select)} to select "
            f"on; at least {MIN_CERTIFY} are needed. Give data with a test or a larger validation split."
        )
    paths = source.splits[val_name].paths or ()
    files = tuple(paths[:: max(1, len(paths) // NUM_FILES)][:NUM_FILES])
    return Splits(source.name, calibrate, select, certify, len(train), files)


def _of(cache: Cache, bundle: Bundle, split: str, rows: np.ndarray) -> Images:
    cached = cache.splits[split]
    return Images(split, cached.images_NHWC, cached.labels_N, rows, bundle.preprocess)


def _train_and_val(bundle: Bundle, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Rows of train to calibrate on, and rows of val (of train where there is none) that nobody trained on."""
    train = cache.splits["train"]
    if "val" in cache.splits:
        return np.arange(len(train.labels_N)), np.arange(len(cache.splits["val"].labels_N))
    trained_on = bundle.trained_on()
    if trained_on is not None:
        # images may have been added since: held out once more, some of those that were trained on would be taken
        known = trained_on.among(train.digests_N)
        if known.any() and not known.all():
            return np.flatnonzero(known), np.flatnonzero(~known)
    recipe = bundle.info.recipe
    fraction = recipe.get("data", {}).get("val_fraction", VAL_FRACTION)
    return hold_out(train.labels_N, train.digests_N, fraction, seed=recipe.get("seed", 0))


def _spread(labels_N: np.ndarray, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` of the rows, of every class as many as of the others while they last."""
    mixed = rng.permutation(rows)
    # the first of each class, then the second of each, and so on
    rank = np.zeros(len(mixed), dtype=np.int64)
    for label in np.unique(labels_N[mixed]):
        own = np.flatnonzero(labels_N[mixed] == label)
        rank[own] = np.arange(len(own))
    chosen: np.ndarray = mixed[np.argsort(rank, kind="stable")[:count]]
    return chosen
