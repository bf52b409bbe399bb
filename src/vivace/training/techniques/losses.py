"""The loss of a recipe: cross-entropy with label smoothing and class weights. B images in a batch, K classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vivace.training.recipes.recipe import LossConfig

__all__ = ["class_weights", "image_weights", "make_loss", "recipe_weights"]


def class_weights(labels_N: np.ndarray, num_classes: int) -> Tensor:
    """N / (K · count) for each class, float32 [K], with mean 1 over the images: scikit-learn's "balanced"."""
    counts = np.bincount(labels_N, minlength=num_classes)
    return torch.from_numpy(len(labels_N) / (num_classes * np.maximum(counts, 1))).float()


def recipe_weights(config: LossConfig, labels_N: np.ndarray, num_classes: int, device: torch.device) -> Tensor | None:
    """The class weights of a recipe, float32 [K] on the device; None: all classes have the same weight."""
    return class_weights(labels_N, num_classes).to(device) if config.class_weights == "balanced" else None


def image_weights(weights_K: Tensor, targets: Tensor) -> Tensor:
    """The weight of each image, float32 [B]: that of its class; for a mixed image, the mean over its classes.

    targets: labels_B int64, or mixed labels_BK float before any smoothing.
    """
    return targets @ weights_K if targets.is_floating_point() else weights_K[targets]


def make_loss(
    config: LossConfig, labels_N: np.ndarray, num_classes: int, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (logits_BK float, labels_B int64 or mixed labels_BK float) → mean loss, a float32 scalar.

    The target is smoothed first, and the loss is then weighted by the class of the image. The `weight` argument of
    torch's cross_entropy instead weights each part of a smoothed target by its own class: if one class is more than
    K · (1 - s) / s + 1 times as frequent as another (s: smoothing), predicting the rare class would minimise the loss
    of a common image. Weighted losses are divided by the number of images, not by the sum of their weights, so that
    micro-batches add up to the batch.
    """
    weights_K = recipe_weights(config, labels_N, num_classes, device)

    def loss(logits_BK: Tensor, targets: Tensor) -> Tensor:
        # in fp32 whatever the forward pass used: log-sum-exp in bf16 loses small probabilities
        losses_B = functional.cross_entropy(
            logits_BK.float(), targets, label_smoothing=config.label_smoothing, reduction="none"
        )
        if weights_K is not None:
            losses_B = losses_B * image_weights(weights_K, targets)
        return losses_B.mean()

    return loss
