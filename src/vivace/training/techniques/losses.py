"""The loss of a recipe: cross-entropy, focal loss, and two for wrong labels, with label smoothing and class weights.

B images in a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vivace.errors import ConfigError
from vivace.training.recipes.balance import check_class_names
from vivace.training.recipes.recipe import LossConfig

__all__ = [
    "class_weights",
    "focal_losses",
    "generalized_losses",
    "image_weights",
    "make_loss",
    "own_weights",
    "recipe_weights",
    "symmetric_losses",
]

# below this, 1 - p is rounding: the slope of its power would be infinite there for an exponent below 1
SMALLEST_MISS = 1e-7
# what log 0 counts as in the reverse cross-entropy
LOG_OF_ZERO = -6.0


def class_weights(labels_N: np.ndarray, num_classes: int) -> Tensor:
    """N / (K · count) for each class, float32 [K], with mean 1 over the images: scikit-learn's "balanced"."""
    counts = np.bincount(labels_N, minlength=num_classes)
    return torch.from_numpy(len(labels_N) / (num_classes * np.maximum(counts, 1))).float()


def own_weights(weights: Mapping[str, float], labels_N: np.ndarray, classes: Sequence[str]) -> Tensor:
    """The weights by class name as float32 [K], 1 for a class without one, scaled to a mean of 1 over the images.

    Raises ConfigError for the name of no class, and where every image has the weight 0.
    """
    check_class_names(weights, classes)
    given_K = np.array([weights.get(name, 1.0) for name in classes], dtype=np.float64)
    mean = float(given_K[labels_N].mean())
    if mean == 0:
        raise ConfigError(
            f"loss.class_weights is 0 for all training images: got {dict(weights)!r:.200}. Give a weight above 0 to a "
            "class that has images."
        )
    return torch.from_numpy(given_K / mean).float()


def recipe_weights(
    config: LossConfig, labels_N: np.ndarray, classes: Sequence[str], device: torch.device
) -> Tensor | None:
    """The class weights of a recipe, float32 [K] on the device; None: all classes have the same weight.

    Raises ConfigError as `own_weights` does.
    """
    if isinstance(config.class_weights, Mapping):
        return own_weights(config.class_weights, labels_N, classes).to(device)
    return class_weights(labels_N, len(classes)).to(device) if config.class_weights == "balanced" else None


def image_weights(weights_K: Tensor, targets: Tensor) -> Tensor:
    """The weight of each image, float32 [B]: that of its class; for a mixed image, the mean over its classes.

    targets: labels_B int64, or mixed labels_BK float before any smoothing.
    """
    return targets @ weights_K if targets.is_floating_point() else weights_K[targets]


def focal_losses(logits_BK: Tensor, targets: Tensor, gamma: float, *, label_smoothing: float = 0.0) -> Tensor:
    """Focal loss of each image, float32 [B]: the sum over classes of -t · (1 - p)^gamma · ln p.

    targets: labels_B int64, or labels_BK float (mixup). For a label it is -(1 - p)^gamma · ln p with p the probability
    of its class (arXiv:1708.02002, equation 4 for several classes, alpha 1). It is linear in the target, as
    cross-entropy is: the loss of a mixed image is the mean of those of its two labels, and a smoothed target is a
    mixture of the label with all classes.
    """
    log_probs_BK = functional.log_softmax(logits_BK.float(), 1)
    # 1 - p without cancellation for p near 1
    misses_BK = (-torch.expm1(log_probs_BK)).clamp_min(SMALLEST_MISS)
    losses_BK = -(misses_BK**gamma) * log_probs_BK
    if targets.is_floating_point():
        losses_B = (targets * losses_BK).sum(1)
    else:
        losses_B = losses_BK.gather(1, targets[:, None])[:, 0]
    return torch.lerp(losses_B, losses_BK.mean(1), label_smoothing) if label_smoothing else losses_B


def symmetric_losses(
    logits_BK: Tensor, targets: Tensor, alpha: float, beta: float, *, label_smoothing: float = 0.0
) -> Tensor:
    """alpha · cross-entropy + beta · reverse cross-entropy of each image, float32 [B] (arXiv:1908.06112).

    targets: labels_B int64, or labels_BK float (mixup). The reverse one is -Σ p · ln t, where ln 0 counts as -6: of a
    label, 6 · (1 - p) with p its probability, which is bounded. Smoothing is of the cross-entropy alone.
    """
    losses_B = functional.cross_entropy(logits_BK.float(), targets, label_smoothing=label_smoothing, reduction="none")
    probs_BK = logits_BK.float().softmax(1)
    if targets.is_floating_point():
        logs_BK = targets.clamp_min(math.exp(LOG_OF_ZERO)).log()
        reverse_B = -(probs_BK * logs_BK).sum(1)
    else:
        reverse_B = -LOG_OF_ZERO * (1 - probs_BK.gather(1, targets[:, None])[:, 0])
    return alpha * losses_B + beta * reverse_B


def generalized_losses(logits_BK: Tensor, targets: Tensor, q: float, *, label_smoothing: float = 0.0) -> Tensor:
    """Generalised cross-entropy of each image, float32 [B]: the sum over classes of t · (1 - p^q) / q.

    targets: labels_B int64, or labels_BK float (mixup). q in (0, 1]: towards 0 it is cross-entropy, at 1 half of the
    mean absolute error, whose gradient does not grow with how wrong an answer is (arXiv:1805.07836, equation 6). It
    is linear in the target, which is smoothed as that of focal loss.
    """
    # 1 - p^q without cancellation for p near 1
    losses_BK = -torch.expm1(q * functional.log_softmax(logits_BK.float(), 1)) / q
    if targets.is_floating_point():
        losses_B = (targets * losses_BK).sum(1)
    else:
        losses_B = losses_BK.gather(1, targets[:, None])[:, 0]
    return torch.lerp(losses_B, losses_BK.mean(1), label_smoothing) if label_smoothing else losses_B


def make_loss(config: LossConfig, weights_K: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (logits_BK float, labels_B int64 or mixed labels_BK float) → mean loss, a float32 scalar.

    weights_K: those of `recipe_weights`.

    The target is smoothed first, and the loss is then weighted by the class of the image. The `weight` argument of
    torch's cross_entropy instead weights each part of a smoothed target by its own class: if one class is more than
    K · (1 - s) / s + 1 times as frequent as another (s: smoothing), predicting the rare class would minimise the loss
    of a common image. Weighted losses are divided by the number of images, not by the sum of their weights, so that
    micro-batches add up to the batch.
    """

    def loss(logits_BK: Tensor, targets: Tensor) -> Tensor:
        # in fp32 whatever the forward pass used: log-sum-exp in bf16 loses small probabilities
        logits_BK, smoothing = logits_BK.float(), config.label_smoothing
        if config.focal_gamma:
            losses_B = focal_losses(logits_BK, targets, config.focal_gamma, label_smoothing=smoothing)
        elif config.name == "symmetric":
            losses_B = symmetric_losses(logits_BK, targets, config.alpha, config.beta, label_smoothing=smoothing)
        elif config.name == "generalized":
            losses_B = generalized_losses(logits_BK, targets, config.q, label_smoothing=smoothing)
        else:
            losses_B = functional.cross_entropy(logits_BK, targets, label_smoothing=smoothing, reduction="none")
        if weights_K is not None:
            losses_B = losses_B * image_weights(weights_K, targets)
        return losses_B.mean()

    return loss
