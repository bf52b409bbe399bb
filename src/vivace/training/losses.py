"""The loss of a recipe: cross-entropy with smoothing and class weights. B images of a batch, K classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vivace.training.recipe import LossConfig

__all__ = ["class_weights", "image_weights", "make_loss", "recipe_weights"]


def class_weights(labels_N: np.ndarray, num_classes: int) -> Tensor:
    """Weights inverse to each class's share, mean 1 over the images, as float32 [K].

    The rule is N / (K · count), that of scikit-learn's "balanced".
    """
    counts = np.bincount(labels_N, minlength=num_classes)
    return torch.from_numpy(len(labels_N) / (num_classes * np.maximum(counts, 1))).float()


def recipe_weights(config: LossConfig, labels_N: np.ndarray, num_classes: int, device: torch.device) -> Tensor | None:
    """The class weights that a recipe asks for, float32 [K] on the device; None: all images weigh alike."""
    return class_weights(labels_N, num_classes).to(device) if config.class_weights == "balanced" else None


def image_weights(weights_K: Tensor, targets: Tensor) -> Tensor:
    """The weight of each image, float32 [B]: that of its class; of a mixed image, the mean over its classes.

    targets: labels_B int64, or mixed labels_BK float before any smoothing.
    """
    return targets @ weights_K if targets.is_floating_point() else weights_K[targets]


def make_loss(
    config: LossConfig, labels_N: np.ndarray, num_classes: int, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (logits_BK float, labels_B int64 or mixed labels_BK float) → mean loss, a float32 scalar.

    An image's target is smoothed first, then its loss weighs as its own class does. The `weight` of torch's
    cross_entropy would weigh each part of a smoothed target by the class that the part goes to: with classes more
    uneven than K · (1 - s) / s + 1 to 1 the best answer to a common image would be the rare class.
    The weighted losses are divided by the number of images, not by the weights of those that happen to be in the
    batch: so hard labels and mixed ones weigh alike, and micro-batches add up to the batch.
    """
    weights_K = recipe_weights(config, labels_N, num_classes, device)

    def loss(logits_BK: Tensor, targets: Tensor) -> Tensor:
        # in fp32 whatever the forward used: a bf16 log-sum-exp loses the small probabilities
        losses_B = functional.cross_entropy(
            logits_BK.float(), targets, label_smoothing=config.label_smoothing, reduction="none"
        )
        if weights_K is not None:
            losses_B = losses_B * image_weights(weights_K, targets)
        return losses_B.mean()

    return loss
