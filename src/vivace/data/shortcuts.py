"""Shortcuts: facts beside the picture that tell the classes apart, such as size, file format or border (no torch here).

A network learns what is easiest: where all tumours were saved as PNG and all others as JPEG, it need not look at them.
For each kind of fact a naive Bayes classifier of binned values is cross-validated on as many images of each class.

n images, F facts of a kind, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vivace.data.caching.cache import Cache
from vivace.data.decoding.decode import size_of, sniff
from vivace.data.decoding.formats import HEAD_BYTES
from vivace.errors import ImageError
from vivace.statistics.proportions import wilson_interval

__all__ = ["Shortcut", "find_shortcuts", "told_apart"]

# images of a class that are looked at, at most; of fewer than the least nothing can be said
MOST, LEAST = 1000, 20
MAX_IMAGES = 20_000
FOLDS, BINS = 5, 12
# how far above chance the lower end of the interval must be, of what is left up to 1. Colour alone tells much of many
# honest data sets: ripe from unripe, frogs from ships
EXCESS = {"colour": 0.3}
DEFAULT_EXCESS = 0.1
# of a side, the border that is looked at
BORDER = 0.06


@dataclass(frozen=True)
class Shortcut:
    """A kind of fact that tells the classes apart."""

    kind: str
    """size, format, border or colour."""
    accuracy: float
    """Of classes told by it alone, cross-validated on as many images of each, in [0, 1]."""
    low: float
    high: float
    """95 % confidence interval of `accuracy`."""
    chance: float
    """1 / classes."""
    num_images: int

    def message(self) -> str:
        facts = {
            "size": "the size of the files' pictures (width, height)",
            "format": "the file format and bytes per pixel",
            "border": "the outermost pixels",
            "colour": "the mean colour and contrast",
        }
        return (
            f"by {facts[self.kind]} alone {100 * self.accuracy:.0f} % of the images' classes can be told "
            f"({100 * self.low:.0f}–{100 * self.high:.0f} %; chance {100 * self.chance:.0f} %): a network may learn "
            "this in place of the picture"
        )


def find_shortcuts(cache: Cache) -> tuple[Shortcut, ...]:
    """The kinds of facts that tell the classes of the training images apart; none for sets of labels or few images."""
    part = cache.splits.get("train")
    if part is None or cache.label_sets is not None:
        return ()
    rows = _balanced(part.labels_N, len(cache.classes))
    if not len(rows):
        return ()
    labels_n = part.labels_N[rows]
    facts = _picture_facts(part.images_NHWC, rows)
    facts |= _file_facts(cache, [part.names[row] for row in rows.tolist()])
    found = [told_apart(kind, values, labels_n) for kind, values in facts.items()]
    return tuple(
        shortcut
        for shortcut in found
        if shortcut.low > shortcut.chance + EXCESS.get(shortcut.kind, DEFAULT_EXCESS) * (1 - shortcut.chance)
    )


def _balanced(labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Sorted positions of as many images of each class, or of none where a class has too few."""
    counts = np.bincount(labels_N, minlength=num_classes)
    count = min(int(counts.min()), MOST, MAX_IMAGES // max(1, num_classes))
    if count < LEAST or num_classes < 2:
        return np.zeros(0, np.int64)
    rng = np.random.default_rng(0)
    return np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(labels_N == label))[:count] for label in range(num_classes)])
    )


def _picture_facts(images_NHWC: object, rows: np.ndarray) -> dict[str, np.ndarray]:
    """colour and border, float64 [n, F]: means and deviations of the channels (their mean, where there are many)."""
    colour, border = [], []
    for row in rows.tolist():
        image = np.asarray(images_NHWC[row], np.float64)  # type: ignore[index]
        image = image if image.shape[-1] <= 4 else image.mean(-1, keepdims=True)
        wide = max(1, round(BORDER * image.shape[0]))
        edge = np.concatenate([side.reshape(-1, image.shape[-1]) for side in _edges(image, wide)])
        inner = image.reshape(-1, image.shape[-1])
        colour.append([*inner.mean(0), *inner.std(0)])
        # what the border has beside the colour of the whole picture
        border.append([*(edge.mean(0) - inner.mean(0)), *edge.std(0)])
    return {"border": np.array(border), "colour": np.array(colour)}


def _edges(image: np.ndarray, wide: int) -> tuple[np.ndarray, ...]:
    return image[:wide], image[-wide:], image[wide:-wide, :wide], image[wide:-wide, -wide:]


def _file_facts(cache: Cache, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    """size and format, float64 [n, F]; nothing where images are in no files."""
    split = cache.source.splits["train"]
    if split.paths is None:
        return {}
    path_of = dict(zip(split.names, split.paths, strict=True))
    kinds: dict[str, int] = {}
    size, form = [], []
    for name in names:
        try:
            with open(path_of[name], "rb") as file:  # noqa: PTH123 (a path may hold bytes that are no UTF-8)
                head = file.read(HEAD_BYTES)
                num_bytes = file.seek(0, 2)
            width, height = size_of(path_of[name])
        except (OSError, ImageError):
            # it was read a moment ago, or from the cache: a file that is gone has no facts
            return {}
        size.append([width, height, width / height])
        form.append([kinds.setdefault(sniff(head) or "", len(kinds)), num_bytes / (width * height)])
    return {"size": np.array(size, float), "format": np.array(form, float)}


def told_apart(kind: str, facts_nF: np.ndarray, labels_n: np.ndarray) -> Shortcut:
    """How many of the classes the facts tell; facts: float [n, F], as many images of each of the classes 0 … K-1."""
    num_classes = int(labels_n.max()) + 1
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.permutation(len(labels_n)), labels_n))
    fold = np.empty(len(labels_n), np.int64)
    fold[order] = np.arange(len(labels_n)) % FOLDS
    right = 0
    for number in range(FOLDS):
        known, out = fold != number, fold == number
        score = np.zeros((int(out.sum()), num_classes))
        for values in facts_nF.T:
            edges = np.unique(np.quantile(values[known], np.linspace(0, 1, BINS + 1)[1:-1]))
            # values are often the same in many images (a width of 500 px), so bins end at values and hold these alone
            binned = np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
            counts = np.zeros((num_classes, 2 * len(edges) + 1))
            np.add.at(counts, (labels_n[known], binned[known]), 1)
            logs = np.log((counts + 0.5) / (counts + 0.5).sum(1, keepdims=True))
            score += logs[:, binned[out]].T
        right += int((score.argmax(1) == labels_n[out]).sum())
    low, high = wilson_interval(right, len(labels_n))
    return Shortcut(kind, right / len(labels_n), low, high, 1 / num_classes, len(labels_n))
