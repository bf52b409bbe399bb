"""Probable label errors: each label is judged by a head that was solved without it, on a bundle's features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vivace.data.audit import Finding
from vivace.data.caching.cache import Cache
from vivace.data.decoding.decode import shown
from vivace.errors import DataError
from vivace.notices import warn
from vivace.predictor import Predictor
from vivace.statistics.mislabelled import mislabelled

__all__ = ["LabelCheck", "check_labels"]

FOLDS = 5
BATCH = 250
# images of a class: fewer could not be in every fold
MIN_OF_CLASS = 2 * FOLDS
# of the labels, the fraction that heads may disagree with without being called wrong, before that is said
HARD = 0.1


@dataclass(frozen=True)
class LabelCheck:
    """What was found about the labels."""

    num_judged: int
    fdr: float
    """The stated fraction of right labels among those called wrong, at most."""
    rate: float
    """The estimated fraction of wrong labels, in [0, 1]."""
    expected_fdr: float
    agreement: float
    """Of the labels, the fraction that the heads agree with."""
    findings: tuple[Finding, ...]

    def line(self) -> str:
        """What was found, for people."""
        most = f"{100 * self.fdr:g} %"
        named = f"None can be named so that at most {most} of those named are right; a higher `fdr` may name some."
        if not self.rate:
            named = "None is called wrong."
        if self.findings:
            named = f"{len(self.findings):,} can be named, of which at most {most} may be right."
        return (
            f"{self.num_judged:,} labels were judged by heads that had not seen them, which agree with "
            f"{100 * self.agreement:.1f} % of them. By estimate {100 * self.rate:.1f} % of all are wrong. {named}"
        )


def check_labels(
    predictor: Predictor,
    cache: Cache,
    *,
    fdr: float = 0.1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelCheck | None:
    """The labels of all splits that are probably wrong, the surest first; None, with a line, where none can be judged.

    cache: images as the bundle's Preprocess stores them, and its classes. The network's body may have been trained on
    the images; the head that judges a fold is solved on the other folds. progress: called with (images seen, images in
    all). Raises DataError for classes that are not the bundle's.
    """
    if cache.label_sets is not None:
        warn("labels are not judged: sets of labels are not known to be wrong one by one")
        return None
    classes = predictor.bundle.classes
    if cache.classes != classes:
        raise DataError(
            f"the classes are not the bundle's: {cache.source.name} has {len(cache.classes)} and the bundle "
            f"{len(classes)}. Give the bundle that was trained on these data."
        )
    names = [f"{split}:{name}" for split, part in cache.splits.items() for name in part.names]
    labels = np.concatenate([part.labels_N for part in cache.splits.values()])
    counts = np.bincount(labels, minlength=len(classes))
    if few := [shown(name) for name, count in zip(classes, counts, strict=True) if count < MIN_OF_CLASS]:
        warn(f"labels are not judged: {few[0]} has fewer than {MIN_OF_CLASS} images")
        return None
    features = _features(predictor, cache, len(names), progress)
    if features is None:
        warn("labels are not judged: the bundle's network has no last layer whose features could be read")
        return None
    logprobs = _out_of_fold(features, labels, len(classes))
    found = mislabelled(logprobs, labels, fdr=fdr)
    findings = tuple(
        Finding(
            kind="label_error",
            severity="warning",
            names=(names[row],),
            message=(
                f"labelled {shown(classes[labels[row]])}, probably {shown(classes[found.likely_N[row]])} "
                f"({100 * found.right_N[row]:.1f} % that the label is right): {shown(names[row])}"
            ),
        )
        for row in found.rows.tolist()
    )
    agreement = float((logprobs.argmax(1) == labels).mean())
    if 1 - agreement > max(HARD, 2 * found.rate):
        warn(
            f"the heads agree with {100 * agreement:.1f} % of the labels only. Images may be hard for this bundle, or "
            "wrong labels follow a pattern, as of one class that is taken for another: these are not told apart, and "
            "not called wrong"
        )
    return LabelCheck(len(names), fdr, found.rate, found.expected_fdr, agreement, findings)


def _features(
    predictor: Predictor, cache: Cache, total: int, progress: Callable[[int, int], None]
) -> np.ndarray | None:
    made, done, view = [], 0, predictor.bundle.preprocess.view
    for part in cache.splits.values():
        for start in range(0, len(part.names), BATCH):
            images = view(np.asarray(part.images_NHWC[start : start + BATCH]))
            features = predictor.answers(images, everything=True).features_ND
            if features is None:
                return None
            made.append(features)
            done += len(images)
            progress(done, total)
    return np.concatenate(made)


def _out_of_fold(features_ND: np.ndarray, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Logarithms of probabilities float64 [N, K], each by a head that was solved without the image's fold."""
    import torch

    from vivace.training.finetuning.head import fit_head

    features, labels = torch.from_numpy(features_ND), torch.from_numpy(labels_N)
    # dealt class by class, so that every fold has all classes
    order = np.lexsort((np.random.default_rng(0).permutation(len(labels_N)), labels_N))
    fold = np.empty(len(labels_N), np.int64)
    fold[order] = np.arange(len(labels_N)) % FOLDS
    logits = np.zeros((len(labels_N), num_classes))
    for number in range(FOLDS):
        rest, out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        head = fit_head(features[rest], labels[rest], num_classes, is_quick=True)
        logits[out] = (features[out] @ head.weight_KD.t() + head.bias_K).double().numpy()
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
