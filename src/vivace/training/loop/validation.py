"""A forward pass over a split: the logits of every image, in order."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vivace.data.caching.stored import Pixels
from vivace.data.loader import iterate_eval
from vivace.hardware import autocast
from vivace.metrics.accuracy import balanced_accuracy, confusion_matrix, macro_f1, topk_accuracy
from vivace.models.normalize import Normalize
from vivace.training.execution import ExecutionConfig, own_kernels

__all__ = ["Trained", "Validation", "central_view", "eval_batch_size", "split_logits"]

# 500 images of 64 px use a processor well; 500 images of 224 px would take more memory than a training step
MAX_BATCH = 500
MAX_BATCH_SIDE = 64


@dataclass(frozen=True)
class Validation:
    """The metrics of a pass over the validation split."""

    loss: float
    """Cross-entropy, without smoothing and weights, so that it can be compared between recipes."""
    top1: float
    macro_f1: float
    balanced_accuracy: float

    @classmethod
    def of(cls, logits_NK: Tensor, labels_N: Tensor) -> Validation:
        """From logits_NK float32 and labels_N int64 of all images, on the CPU."""
        # as topk_accuracy breaks ties: the class with the lower index
        confusion_KK = confusion_matrix(logits_NK.numpy().argmax(1), labels_N.numpy(), logits_NK.shape[1])
        return cls(
            loss=float(torch.nn.functional.cross_entropy(logits_NK, labels_N)),
            top1=topk_accuracy(logits_NK, labels_N, k=1),
            macro_f1=macro_f1(confusion_KK),
            balanced_accuracy=balanced_accuracy(confusion_KK),
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What was trained before the loop, and how well."""

    validation: Validation
    loss: float
    """On `num_images` training images, as are the next two."""
    top1: float
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
