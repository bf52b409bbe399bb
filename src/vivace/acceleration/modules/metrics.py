"""Scores of samples: what is kept when a module is replaced. A score is in [0, 1], 1 is best.

A metric is a name, or a function of (outputs, targets) that returns a score for each sample of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from vivace.acceleration.modules.batches import Batch
from vivace.acceleration.modules.signature import flatten
from vivace.errors import ConfigError, DataError, first_line, nearest, one_line, shown

__all__ = ["METRICS", "Metric", "Scorer", "agreement", "top1"]

Metric = Callable[[Any, Any], Any]
# outputs that are no classes agree if they are this near, relative to their norm
NEAR = 0.05


def logits_of(outputs: Any) -> Tensor:
    """The logits [B, K] in the outputs of a classifier: `logits` where there is one, else the first tensor.

    Raises DataError where that has another shape.
    """
    found = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        found = next(iter(flatten(outputs)[0]), None)
    if _are_logits(found):
        return found
    got = "no tensor" if found is None else f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
    raise DataError(
        f"the metric top1 needs outputs of floats [B, K], K ≥ 2: got {got}. Give `metric=`, a function of "
        "(outputs, targets) that returns a score in [0, 1] for each sample."
    )


def _are_logits(found: Any) -> TypeGuard[Tensor]:
    return isinstance(found, Tensor) and found.ndim == 2 and found.shape[1] >= 2 and found.is_floating_point()


def top1(outputs: Any, targets: Any) -> Tensor:
    """bool [B]: whether the largest of logits_BK is that of the target. targets: class indices, int [B].

    Raises DataError for other shapes, and for indices that are none of the K classes.
    """
    logits_BK = logits_of(outputs)
    labels_B = _labels_of(targets, len(logits_BK)).to(logits_BK.device)
    outside = (labels_B < 0) | (labels_B >= logits_BK.shape[1])
    if bool(outside.any()):
        raise DataError(
            f"a target is none of the module's {logits_BK.shape[1]} classes: got {int(labels_B[outside][0])}. Correct "
            'it; of data without labels, `metric="agreement"` compares with the original.'
        )
    return logits_BK.argmax(1) == labels_B


def _labels_of(targets: Any, size: int) -> Tensor:
    """Whole numbers [B], as int or as float."""
    try:
        labels_B = torch.as_tensor(targets)
        got = f"{str(labels_B.dtype).removeprefix('torch.')} {list(labels_B.shape)}"
    except (TypeError, ValueError, RuntimeError):
        labels_B, got = torch.empty(0), shown(targets)
    fits = labels_B.shape == (size,) and labels_B.dtype != torch.bool and not labels_B.is_complex()
    if not fits or (labels_B.is_floating_point() and bool((labels_B != labels_B.round()).any())):
        raise DataError(
            f"the metric top1 needs an integer for each of {size} samples as targets: got {got}. Give class indices, "
            "or `metric=`."
        )
    return labels_B.long()


def agreement(outputs: Any, original: Any, *, size: int | None = None) -> Tensor:
    """bool [B]: whether a sample's outputs are those of the original.

    For logits [B, K]: the same top-1 class. Else each tensor of floats is within 5 % of the original's, by the norm of
    the difference of a sample relative to that of the original's; tensors without a row for each of the `size` samples
    count as a whole. Raises DataError where no tensor of floats has such rows.
    """
    mine, theirs = flatten(outputs)[0], flatten(original)[0]
    if theirs and all(map(_are_logits, theirs)):
        return logits_of(outputs).argmax(1) == logits_of(original).argmax(1)
    floats = [(one, other) for one, other in zip(mine, theirs, strict=True) if other.is_floating_point() and other.ndim]
    size = size or next((len(other) for _, other in floats), 0)
    if all(len(other) != size for _, other in floats):
        raise DataError(
            f"the metric agreement needs outputs with a tensor of floats [B, …], B = {size}: got "
            f"{[list(other.shape) for _, other in floats]}. Give `metric=`."
        )
    near = []
    for one, other in floats:
        # what is infinite on both sides, such as a masked score, is no difference
        same = one == other
        other = other.float().masked_fill(same & ~other.isfinite(), 0)
        difference = (one.float().masked_fill(same, 0) - other.masked_fill(same, 0)).reshape(len(other), -1)
        if len(other) == size:
            near.append(difference.norm(dim=1) <= NEAR * other.reshape(len(other), -1).norm(dim=1))
        else:
            near.append((difference.norm() <= NEAR * other.norm()).expand(size))
    return torch.stack(near).all(0)


METRICS: dict[str, Metric] = {"top1": top1, "agreement": agreement}


def _name_of(metric: Any) -> str:
    try:
        return one_line(str(metric.__name__))
    except Exception:
        # an object, which may have none or raise what it likes
        return type(metric).__name__


class Scorer:
    """Scores of batches by a metric, checked."""

    def __init__(self, metric: str | Metric | None, *, has_targets: bool) -> None:
        """metric: None for top1, or agreement where there are no targets. Raises ConfigError for what is none."""
        self.name = metric if isinstance(metric, str) else "agreement" if not has_targets else "top1"
        self.guessed = metric is None and not has_targets
        if callable(metric):
            self.name = _name_of(metric)
            self._function = metric
        elif metric is not None and not isinstance(metric, str):
            raise ConfigError(f"`metric` has the wrong type: got {shown(metric)}. Give a name or a function.")
        elif self.name not in METRICS:
            raise ConfigError(
                f"`metric` is unknown: got {metric!r}.{nearest(self.name, METRICS)} Known: {', '.join(METRICS)}; "
                "or a function of (outputs, targets)."
            )
        else:
            self._function = METRICS[self.name]
        if self._function is top1 and not has_targets:
            raise DataError("the metric top1 needs targets, and the data have none. Give (inputs, targets) batches.")
        # what the original computes is the target where nothing else is
        self.by_original = not has_targets or self._function is agreement
        self.by_batch = False
        """Whether a score depends on the other samples of its batch: then batches are compared, by their mean score."""

    @property
    def is_own(self) -> bool:
        """Whether it is a function of the user's."""
        return self._function not in METRICS.values()

    def units(self, scores_B: np.ndarray, batch: Batch) -> np.ndarray:
        """What is compared, of a batch: the scores of the samples that count, or their mean. None depends on others."""
        counted = scores_B if batch.counted_B is None else scores_B[batch.counted_B]
        return counted.mean(keepdims=True) if self.by_batch and len(counted) else counted

    def scores(self, outputs: Any, batch: Batch, original: Any) -> np.ndarray:
        """float64 [B] in [0, 1]. original: the original's outputs. Raises DataError for what is no score."""
        try:
            if self._function is agreement:
                found = agreement(outputs, original, size=batch.size)
            else:
                found = self._function(outputs, original if self.by_original else batch.targets)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the metric {self.name} failed: {type(error).__name__}: {first_line(error)}. It is called with "
                "(outputs, targets) of a batch."
            ) from error
        return self._checked(found, batch.size)

    def _checked(self, found: Any, size: int) -> np.ndarray:
        kind = type(found).__name__
        try:
            if isinstance(found, list | tuple):
                found = [one.item() if isinstance(one, Tensor) else one for one in found]
            if isinstance(found, Tensor):
                # NumPy has no bfloat16, and complex numbers are no scores
                found = found.detach().cpu().to(torch.promote_types(found.dtype, torch.float64)).numpy()
            if np.iscomplexobj(found):
                raise TypeError
            array = np.asarray(found, np.float64)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(
                f"the metric {self.name} returned no numbers: got {kind}. Return a score in [0, 1] for each sample."
            ) from None
        if array.shape != (size,):
            raise DataError(
                f"the metric {self.name} returned the shape {list(array.shape)} for a batch of {size}. Return a score "
                "for each sample, [B], not their mean."
            )
        if not ((array >= 0) & (array <= 1)).all():
            wrong = array[~((array >= 0) & (array <= 1))][0]
            raise DataError(f"the metric {self.name} returned a score outside [0, 1]: got {wrong:g}. Scale it.")
        return array
