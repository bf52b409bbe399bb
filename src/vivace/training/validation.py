"""A pass of a network over a split: class probabilities of every image, in order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vivace.data.loader import iterate_eval
from vivace.models.normalize import Normalize
from vivace.training.step import Setup, autocast

__all__ = ["central_view", "split_logits"]


def central_view(images_BCHW: Tensor, size: int) -> Tensor:
    """The central `size` × `size` of stored images: the pixels that `Preprocess.load` gives."""
    margin = (images_BCHW.shape[-1] - size) // 2
    return images_BCHW[..., margin : margin + size, margin : margin + size]


@torch.inference_mode()
def split_logits(
    model: nn.Module,
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    *,
    size: int,
    normalize: Normalize,
    setup: Setup,
    device: torch.device,
    batch_size: int = 500,
    indices: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """logits_NK float32 and labels_N int64, both on the CPU; the network is put in eval mode."""
    model.eval()
    logits, labels = [], []
    for batch in iterate_eval(images_NHWC, labels_N, batch_size=batch_size, device=device, indices=indices):
        images_BCHW = normalize(central_view(batch.images_BCHW, size))
        with autocast(device, setup.precision):
            logits.append(model(images_BCHW).float().cpu())
        labels.append(batch.labels_B.cpu())
    return torch.cat(logits), torch.cat(labels)
