"""A forward pass over a split: the logits of every image, in order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivace.data.caching.stored import Pixels
from vivace.data.loader import iterate_eval
from vivace.hardware import autocast
from vivace.metrics.accuracy import balanced_accuracy, confusion_matrix, macro_f1
from vivace.models.normalize import Normalize
from vivace.training.execution import ExecutionConfig, own_kernels
from vivace.training.techniques.tasks import ONE_CLASS, Task

__all__ = ["Robustness", "Trained", "Validation", "central_view", "eval_batch_size", "split_logits"]

# the fields of a Validation, which are columns of the history
NAMES = ("loss", "top1", "macro_f1", "balanced_accuracy", "map")
# 500 images of 64 px use a processor well; 500 images of 224 px would take more memory than a training step
MAX_BATCH = 500
MAX_BATCH_SIDE = 64


@dataclass(frozen=True)
class Robustness:
    """Accuracy under PGD of held-out images, in [0, 1]."""

    averaged: float
    """Of the network that is validated and bundled."""
    newest: float
    """Of the weights that are trained, which collapse before their average does."""
    num_images: int


@dataclass(frozen=True)
class Validation:
    """The metrics of a pass over the validation split."""

    loss: float
    """Cross-entropy, without smoothing and weights, so that it can be compared between recipes; of sets of labels the
    binary ones, summed over the labels."""
    top1: float = math.nan
    """This and the next two are NaN with sets of labels."""
    macro_f1: float = math.nan
    balanced_accuracy: float = math.nan
    map: float | None = None
    """Mean average precision, where images have sets of labels; None: they have one class."""
    robust: Robustness | None = None
    """In adversarial training."""

    @property
    def score(self) -> float:
        """What a target is about: `top1`, or `map`."""
        return self.top1 if self.map is None else self.map

    @classmethod
    def of(cls, logits_NK: Tensor, labels_N: Tensor, task: Task = ONE_CLASS) -> Validation:
        """From logits_NK float32 and labels_N int64 of all images, on the CPU."""
        loss, score = float(task.mean_loss(logits_NK, labels_N)), task.validation_score(logits_NK, labels_N)
        if task.label_sets_MK is not None:
            return cls(loss=loss, map=score)
        # as topk_accuracy breaks ties: the class with the lower index
        confusion_KK = confusion_matrix(logits_NK.numpy().argmax(1), labels_N.numpy(), logits_NK.shape[1])
        return cls(
            loss=loss,
            top1=score,
            macro_f1=macro_f1(confusion_KK),
            balanced_accuracy=balanced_accuracy(confusion_KK),
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Validation:
        """That of a row of the history."""
        return cls(**{name: row[f"val_{name}"] for name in NAMES if f"val_{name}" in row})

    def scores(self) -> dict[str, float]:
        """What it adds to the history beside the loss."""
        names = ("top1", "macro_f1", "balanced_accuracy") if self.map is None else ("map",)
        found = {f"val_{name}": getattr(self, name) for name in names}
        if self.robust is not None:
            found |= {"val_robust": self.robust.averaged, "val_robust_newest": self.robust.newest}
            found |= {"num_probed": self.robust.num_images}
        return found


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What was trained before the loop, and how well."""

    validation: Validation
    loss: float
    """On `num_images` training images, as are the next two."""
    score: float
    """Accuracy, or of sets of labels the fraction of them that are right."""
    num_images: int
    seconds: float


def eval_batch_size(size: int) -> int:
    """Images per forward pass without gradients, for images of `size` px: fewer if they are large."""
    return max(1, min(MAX_BATCH, MAX_BATCH * MAX_BATCH_SIDE**2 // size**2))


def central_view(images_BCHW: Tensor, size: int) -> Tensor:
    """The central `size` × `size` of stored images: the pixels that `Preprocess.load` returns."""
    margin = (images_BCHW.shape[-1] - size) // 2
    return images_BCHW[..., margin : margin + size, margin : margin + size]


@torch.inference_mode()
def split_logits(
    model: nn.Module,
    images_NHWC: Pixels,
    labels_N: np.ndarray,
    *,
    size: int,
    normalize: Normalize,
    execution: ExecutionConfig,
    device: torch.device,
    batch_size: int | None = None,
    indices: np.ndarray | None = None,
    kernels: Path | None = None,
) -> tuple[Tensor, Tensor]:
    """logits_NK float32 and labels_N int64, both on the CPU; the network is put in eval mode.

    batch_size None: `eval_batch_size`. kernels: the folder for those of our own; None: without them.
    """
    model.eval()
    batch_size = batch_size or eval_batch_size(size)
    logits, labels = [], []
    for batch in iterate_eval(images_NHWC, labels_N, batch_size=batch_size, device=device, indices=indices):
        images_BCHW = normalize(central_view(batch.images_BCHW, size))
        own = contextlib.nullcontext() if kernels is None else own_kernels(execution, kernels)
        with autocast(device, execution.precision), own:
            logits.append(model(images_BCHW).float().cpu())
        labels.append(batch.labels_B.cpu())
    return torch.cat(logits), torch.cat(labels)
