"""Parts of the images on which a network is worse than on the others, and how sure that is.

Images are parted by class, brightness, size, aspect ratio, pairs of classes and clusters of features. The worst of many
parts looks bad by chance alone: p-values are adjusted for the number of parts (Holm), and intervals hold for all of
them together (Bonferroni). Shape suffixes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.config import to_dict
from vivace.metrics.rounding import digits_that_tell
from vivace.statistics.multiple import exact_interval, holm, hypergeometric_pvalue
from vivace.statistics.proportions import binomial_pvalue

__all__ = ["Looks", "Slice", "Slices", "find_slices"]

ALPHA = 0.05
# of fewer images little can be said
MIN_IMAGES = 10
NUM_EXAMPLES = 6
# parts that are told of beside those that are surely worse
MAX_ROWS = 30
FIFTHS, THIRDS = 5, 3
# width divided by height: taller than 4:5, wider than 5:4
TALL, WIDE = 4 / 5, 5 / 4


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What is known of images beside their classes; None: nothing."""

    brightness_N: np.ndarray | None = None
    """Mean of an image's pixels, float in [0, 255]; NaN for an image that was not looked at."""
    sizes_N2: np.ndarray | None = None
    """Width and height of the files, px; 0 for an image whose file was not looked at."""
    clusters_N: np.ndarray | None = None
    """int64, the cluster of features of each image; -1: not looked at."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the images."""

    kind: str
    """class, brightness, size, aspect, pair or cluster."""
    classes: tuple[str, ...] = ()
    """The class; both of a pair; the most frequent one of a cluster."""
    part: int | None = None
    """Of brightness 1 (darkest) to 5, of size 1 (smallest) to 3, of aspect 1 (tall) to 3 (wide); a cluster's number."""
    least: float | None = None
    """Of brightness 0 to 255; of size the side of a square of that area, px; of a cluster the fraction of its class."""
    most: float | None = None
    digits: int = 0
    """Decimals of the two that tell it from its neighbours."""
    num_images: int
    num_wrong: int
    """Of a pair: the images of one that were called the other."""
    accuracy: float
    """The fraction of the others, [0, 1]."""
    low: float
    """The interval of Clopper & Pearson, wide enough that those of all parts hold together with 95 %."""
    high: float
    expected: float
    """The accuracy on the images outside; of a pair, what it were if the mistakes fell on all other classes alike."""
    p_value: float
    """Of a part that is no worse than the rest, adjusted for the number of parts, [0, 1]."""
    is_worse: bool
    """Whether that is at most 5 %."""
    examples: tuple[int, ...] = ()
    """Positions of its most confident mistakes, at most 6."""

    @property
    def name(self) -> str:
        """In English, such as "brightness 12 to 62"; no two parts have the same."""
        if self.kind == "class":
            return self.classes[0]
        if self.kind == "pair":
            return " and ".join(self.classes)
        if self.kind == "cluster":
            return f"cluster {self.part} of features, most often {self.classes[0]} ({100 * (self.least or 0):.0f} %)"
        if self.kind == "aspect":
            return ("taller than 4:5", "nearly square", "wider than 5:4")[(self.part or 1) - 1]
        unit = " px" if self.kind == "size" else ""
        least, most = (f"{value:.{self.digits}f}" for value in (self.least, self.most))
        return f"{self.kind} {least}{'' if least == most else f' to {most}'}{unit}"


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The parts: those that are surely worse first, the least accurate one before the others, then the rest."""

    rows: tuple[Slice, ...]
    """All that are surely worse, and 30 in all at least if there are as many."""
    num_tested: int
    num_worse: int
    alpha: float
    """The probability, at most, that any part is called worse if none is."""
    accuracy: float
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, with the names of the parts."""
        return {**to_dict(self), "rows": [{"name": row.name, **to_dict(row)} for row in self.rows]}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part before it is tested."""

    kind: str
    inside_N: np.ndarray
    classes: tuple[str, ...] = ()
    part: int | None = None
    least: float | None = None
    most: float | None = None
    digits: int = 0
    known_N: np.ndarray | None = None
    """The images that it is compared among; None: all."""


def find_slices(
    probs_NK: np.ndarray,
    right_N: np.ndarray,
    classes: Sequence[str],
    looks: Looks,
    *,
    labels_N: np.ndarray | None = None,
    hits_NK: np.ndarray | None = None,
) -> Slices:
    """The parts of labelled images on which answers are worse; those of under 10 images are left out.

    right_N: bool, whether each answer is right. labels_N: int64, the true classes; or hits_NK, bool, of images with
    sets of labels, which have no pairs. A part is compared with all other images, by Fisher's exact test; a pair asks
    whether mistakes of its classes are one for the other more often than if they fell on all other classes alike.
    Pairs are as many as the square of the classes: half of the 5 % is for them, the other half for all other parts.
    """
    parts = [*_by_class(classes, labels_N, hits_NK), *_by_looks(looks, labels_N, hits_NK, classes)]
    groups = [[_against_others(part, ~right_N) for part in parts if _is_testable(part)]]
    sizes = [len(groups[0])]
    if labels_N is not None and len(classes) > 2:
        groups.append(list(_pairs(probs_NK, labels_N, classes)))
        sizes.append(math.comb(len(classes), 2))
    found = [
        (one, float(p_value), size * len(groups))
        for group, size in zip(groups, sizes, strict=True)
        for one, p_value in zip(group, _adjusted(group, size, len(groups)), strict=True)
    ]
    # a pair's rate is not one of answers that are right: pairs are the last of their like
    found.sort(key=lambda row: (row[1] > ALPHA, row[0].part.kind == "pair", row[0].accuracy, row[1]))
    num_worse = sum(p_value <= ALPHA for _, p_value, _ in found)
    return Slices(
        rows=tuple(_told(*row, probs_NK) for row in found[: max(MAX_ROWS, num_worse)]),
        num_tested=sum(sizes),
        num_worse=num_worse,
        alpha=ALPHA,
        accuracy=float(right_N.mean()),
        num_images=len(right_N),
    )


def _by_class(classes: Sequence[str], labels_N: np.ndarray | None, hits_NK: np.ndarray | None) -> Iterator[_Part]:
    for row, name in enumerate(classes):
        if labels_N is not None:
            yield _Part(kind="class", inside_N=labels_N == row, classes=(name,))
        elif hits_NK is not None:
            yield _Part(kind="class", inside_N=hits_NK[:, row], classes=(name,))


def _by_looks(
    looks: Looks, labels_N: np.ndarray | None, hits_NK: np.ndarray | None, classes: Sequence[str]
) -> Iterator[_Part]:
    if looks.brightness_N is not None:
        yield from _by_quantile("brightness", looks.brightness_N, np.isfinite(looks.brightness_N), FIFTHS)
    if looks.sizes_N2 is not None:
        sides = looks.sizes_N2.astype(np.float64)
        known_N = np.asarray((sides > 0).all(1))
        yield from _by_quantile("size", np.sqrt(sides.prod(1)), known_N, THIRDS)
        ratio_N = sides[:, 0] / np.maximum(sides[:, 1], 1)
        third_N = np.where(ratio_N < TALL, 1, np.where(ratio_N > WIDE, 3, 2))
        for part in (1, 2, 3):
            yield _Part(kind="aspect", inside_N=known_N & (third_N == part), part=part, known_N=known_N)
    if looks.clusters_N is not None:
        known_N = looks.clusters_N >= 0
        for number in range(int(looks.clusters_N.max(initial=-1)) + 1):
            inside_N = looks.clusters_N == number
            counts_K = _counts(inside_N, len(classes), labels_N, hits_NK)
            most = int(counts_K.argmax())
            fraction = float(counts_K[most] / max(inside_N.sum(), 1))
            yield _Part(
                kind="cluster",
                inside_N=inside_N,
                classes=(classes[most],),
                part=number + 1,
                least=fraction,
                known_N=known_N,
            )


def _counts(
    inside_N: np.ndarray, num_classes: int, labels_N: np.ndarray | None, hits_NK: np.ndarray | None
) -> np.ndarray:
    if labels_N is not None:
        return np.bincount(labels_N[inside_N], minlength=num_classes)
    assert hits_NK is not None
    counts: np.ndarray = hits_NK[inside_N].sum(0)
    return counts


def _by_quantile(kind: str, values_N: np.ndarray, known_N: np.ndarray, count: int) -> Iterator[_Part]:
    """Parts of equal numbers of images; of as few different values as parts, one for each value."""
    if not known_N.any():
        return
    values = np.unique(values_N[known_N])
    edges = np.unique(np.quantile(values_N[known_N], np.linspace(0, 1, count + 1)))
    ends = edges[1:]
    if len(values) <= count:
        edges = ends = values
    place_N = np.clip(np.searchsorted(edges, values_N, side="right") - 1, 0, len(ends) - 1)
    digits = digits_that_tell(list(zip(edges, ends, strict=False)))
    for place, end in enumerate(ends):
        yield _Part(
            kind=kind,
            inside_N=known_N & (place_N == place),
            part=place + 1,
            least=float(edges[place]),
            most=float(end),
            digits=digits,
            known_N=known_N,
        )


def _is_testable(part: _Part) -> bool:
    """Whether there are images enough inside, and any outside."""
    among = len(part.inside_N) if part.known_N is None else int(part.known_N.sum())
    return MIN_IMAGES <= int(part.inside_N.sum()) < among


@dataclass(frozen=True, kw_only=True)
class _Tested:
    part: _Part
    num_images: int
    wrong_n: np.ndarray
    """Positions of its mistakes."""
    expected: float
    p_value: float

    @property
    def accuracy(self) -> float:
        return 1 - len(self.wrong_n) / self.num_images


def _against_others(part: _Part, wrong_N: np.ndarray) -> _Tested:
    known_N = np.ones(len(wrong_N), bool) if part.known_N is None else part.known_N
    size, total = int(part.inside_N.sum()), int(known_N.sum())
    wrong, wrong_known = int((wrong_N & part.inside_N).sum()), int((wrong_N & known_N).sum())
    return _Tested(
        part=part,
        num_images=size,
        wrong_n=np.flatnonzero(wrong_N & part.inside_N),
        expected=1 - (wrong_known - wrong) / (total - size),
        p_value=hypergeometric_pvalue(wrong, size, wrong_known, total),
    )


def _pairs(probs_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> Iterator[_Tested]:
    """The pairs that are confused at all; the others can't be worse."""
    predicted_N, count = probs_NK.argmax(1), len(classes)
    wrong_n = np.flatnonzero(predicted_N != labels_N)
    true_n, called_n = labels_N[wrong_n], predicted_N[wrong_n]
    mistakes_K = np.bincount(true_n, minlength=count)
    support_K = np.bincount(labels_N, minlength=count)
    keys_n = np.minimum(true_n, called_n) * count + np.maximum(true_n, called_n)
    for key in np.unique(keys_n):
        first, second = divmod(int(key), count)
        images, mistakes = int(support_K[[first, second]].sum()), int(mistakes_K[[first, second]].sum())
        if images < MIN_IMAGES:
            continue
        confused_n = wrong_n[keys_n == key]
        rate = 1 / (count - 1)
        yield _Tested(
            part=_Part(
                kind="pair",
                inside_N=(labels_N == first) | (labels_N == second),
                classes=(classes[first], classes[second]),
            ),
            num_images=images,
            wrong_n=confused_n,
            expected=1 - mistakes * rate / images,
            p_value=binomial_pvalue(len(confused_n), mistakes, rate),
        )


def _adjusted(found: Sequence[_Tested], num_tests: int, num_groups: int) -> np.ndarray:
    """The p-values by Holm among `num_tests`, of which the others are 1; a group has its share of alpha alone."""
    p_values = np.ones(max(num_tests, len(found)))
    p_values[: len(found)] = [one.p_value for one in found]
    adjusted: np.ndarray = np.minimum(1.0, num_groups * holm(p_values)[: len(found)])
    return adjusted


def _told(one: _Tested, p_value: float, num_intervals: int, probs_NK: np.ndarray) -> Slice:
    """p_value: adjusted. num_intervals: how many are to hold together."""
    right, part = one.num_images - len(one.wrong_n), one.part
    low, high = exact_interval(right, one.num_images, confidence=1 - ALPHA / num_intervals)
    order = np.argsort(-probs_NK[one.wrong_n].max(1, initial=0), kind="stable")[:NUM_EXAMPLES]
    return Slice(
        kind=part.kind,
        classes=part.classes,
        part=part.part,
        least=part.least,
        most=part.most,
        digits=part.digits,
        num_images=one.num_images,
        num_wrong=len(one.wrong_n),
        accuracy=one.accuracy,
        low=low,
        high=high,
        expected=one.expected,
        p_value=p_value,
        is_worse=p_value <= ALPHA,
        examples=tuple(int(row) for row in one.wrong_n[order]),
    )
