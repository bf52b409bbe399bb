"""The loss of a recipe: cross-entropy with smoothing and class weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vivace.training.recipe import LossConfig

__all__ = ["class_weights", "make_loss"]


def class_weights(labels_N: np.ndarray, num_classes: int) -> Tensor:
    """Weights inverse to each class's share, mean 1 over the images, as float32 [K].

    The rule is N / (K · count), that of scikit-learn's "balanced".
    """
    counts = np.bincount(labels_N, minlength=num_classes)
    return torch.from_numpy(len(labels_N) / (num_classes * np.maximum(counts, 1))).float()


def make_loss(
    config: LossConfig, labels_N: np.ndarray, num_classes: int, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (logits_BK float, labels_B int64 or soft labels_BK float) → mean loss, a float32 scalar.

    With class weights the weighted losses are summed and divided by the number of images, not by the weights of those
    that happen to be in the batch: so hard labels and mixed ones weigh alike, and micro-batches add up to the batch.
    """
    weights = class_weights(labels_N, num_classes).to(device) if config.class_weights == "balanced" else None

    def loss(logits_BK: Tensor, labels: Tensor) -> Tensor:
        # in fp32 whatever the forward used: a bf16 log-sum-exp loses the small probabilities
        total = functional.cross_entropy(
            logits_BK.float(), labels, weight=weights, label_smoothing=config.label_smoothing, reduction="sum"
        )
        return total / len(logits_BK)

    return loss
