"""What the labels of a run mean: one class an image, or a set of labels; and the losses and scores that follow.

B or N images, K classes, M combinations of labels. A combination's number stands for it in labels_B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vivace.data.labelsets import class_counts
from vivace.errors import ConfigError
from vivace.metrics.accuracy import topk_accuracy
from vivace.metrics.multilabel import best_thresholds, evaluate_sets, macro_average_precision
from vivace.metrics.summary import evaluate_probs
from vivace.training.recipes.balance import check_class_names
from vivace.training.recipes.recipe import LossConfig, Recipe
from vivace.training.techniques.losses import make_loss, recipe_weights

__all__ = ["ONE_CLASS", "LabelSets", "OneClass", "Task", "positive_weights", "task_of"]

# of the weight of an image with a rare label; beyond it a few images decide
MAX_POSITIVE_WEIGHT = 20.0
Loss = Callable[[Tensor, Tensor], Tensor]


class Task(Protocol):
    """What a run is trained for."""

    @property
    def score(self) -> str:
        """The name of the metric that is validated: val_ and this are its key in a run's history."""
        ...

    @property
    def train_score(self) -> str:
        """The name of what is measured in training steps."""
        ...

    @property
    def label_sets_MK(self) -> Tensor | None:  # noqa: N802
        """The labels of each combination, float32; None: an image has one class."""
        ...

    def class_weights(
        self, config: LossConfig, labels_N: np.ndarray, classes: Sequence[str], device: torch.device
    ) -> Tensor | None:
        """What the loss of an image is multiplied by, for its class; None: nothing."""
        ...

    def loss(self, config: LossConfig, labels_N: np.ndarray, classes: Sequence[str], device: torch.device) -> Loss:
        """(logits_BK, labels_B or mixed targets_BK) → mean loss. labels_N: of the training images."""
        ...

    def losses(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The loss of each image without smoothing and weights, float32 [B]."""
        ...

    def mean_loss(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The mean of `losses`."""
        ...

    def rightness(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """How right each answer is, [B] in [0, 1]; its mean is `train_score`."""
        ...

    def validation_score(self, logits_NK: Tensor, labels_N: Tensor) -> float:
        """`score`, in [0, 1]."""
        ...

    def probs(self, logits_BK: Tensor) -> Tensor: ...

    def targets(self, labels_B: Tensor, num_classes: int) -> Tensor:
        """float32 [B, K]: 1 for each class of an image."""
        ...

    def summary(
        self, probs_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], thresholds_K: Sequence[float]
    ) -> Mapping[str, Any]:
        """The metrics of a split, numbers alone."""
        ...

    def thresholds(self, probs_NK: np.ndarray, labels_N: np.ndarray) -> tuple[float, ...]:
        """Probabilities from which on each label is predicted, chosen on these images; () where none are needed."""
        ...


@dataclass(frozen=True)
class OneClass:
    """Each image has one class: softmax, cross-entropy, accuracy."""

    score: str = "top1"
    train_score: str = "top1"
    label_sets_MK: None = None

    def class_weights(
        self, config: LossConfig, labels_N: np.ndarray, classes: Sequence[str], device: torch.device
    ) -> Tensor | None:
        return recipe_weights(config, labels_N, classes, device)

    def loss(self, config: LossConfig, labels_N: np.ndarray, classes: Sequence[str], device: torch.device) -> Loss:
        return make_loss(config, self.class_weights(config, labels_N, classes, device))

    def losses(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return functional.cross_entropy(logits_BK, labels_B, reduction="none")

    def mean_loss(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return functional.cross_entropy(logits_BK, labels_B)

    def rightness(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return logits_BK.argmax(1) == labels_B

    def validation_score(self, logits_NK: Tensor, labels_N: Tensor) -> float:
        return topk_accuracy(logits_NK, labels_N, k=1)

    def probs(self, logits_BK: Tensor) -> Tensor:
        return logits_BK.softmax(1)

    def targets(self, labels_B: Tensor, num_classes: int) -> Tensor:
        return functional.one_hot(labels_B, num_classes).float()

    def summary(
        self, probs_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], thresholds_K: Sequence[float]
    ) -> Mapping[str, Any]:
        return evaluate_probs(probs_NK, labels_N, classes).summary()

    def thresholds(self, probs_NK: np.ndarray, labels_N: np.ndarray) -> tuple[float, ...]:
        return ()


@dataclass(frozen=True)
class LabelSets:
    """Each image has a set of labels: a sigmoid and a binary cross-entropy for each label, mean average precision."""

    label_sets_MK: Tensor
    """float32, on the device of the run."""
    score: str = "map"
    train_score: str = "label_accuracy"
    _on_cpu_MK: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_on_cpu_MK", self.label_sets_MK.cpu().numpy() > 0)

    def class_weights(
        self, config: LossConfig, labels_N: np.ndarray, classes: Sequence[str], device: torch.device
    ) -> Tensor | None:
        # the weights of labels are in their loss: none of an image follows from them
        return None

    def loss(self, config: LossConfig, labels_N: np.ndarray, classes: Sequence[str], device: torch.device) -> Loss:
        """Binary cross-entropy, summed over the labels, so that a label's gradient is as large as a class's would be.

        Smoothing takes a target to 1 - s/2 and s/2. Class weights: "balanced" weights the images that have a label by
        how many more have not (up to 20); weights by name are those of the labels, with a mean of 1. Focal loss
        multiplies a label's loss by (1 - p)^gamma with p the probability of the truth (arXiv:1708.02002).
        """
        weights_K, positive_K = None, None
        if isinstance(config.class_weights, Mapping):
            check_class_names(config.class_weights, classes)
            named = torch.tensor([float(config.class_weights.get(name, 1.0)) for name in classes])
            weights_K = (named / named.mean().clamp_min(1e-12)).to(device)
        elif config.class_weights == "balanced":
            counts_K = class_counts(labels_N, len(classes), self._on_cpu_MK)
            positive_K = positive_weights(counts_K, len(labels_N)).to(device)
        smoothing, gamma = config.label_smoothing, config.focal_gamma

        def loss(logits_BK: Tensor, targets: Tensor) -> Tensor:
            logits_BK, targets_BK = logits_BK.float(), self._targets(targets)
            smooth_BK = targets_BK * (1 - smoothing) + smoothing / 2 if smoothing else targets_BK
            losses_BK = functional.binary_cross_entropy_with_logits(
                logits_BK, smooth_BK, pos_weight=positive_K, reduction="none"
            )
            if gamma:
                probs_BK = logits_BK.sigmoid()
                missed_BK = targets_BK * (1 - probs_BK) + (1 - targets_BK) * probs_BK
                losses_BK = losses_BK * missed_BK**gamma
            if weights_K is not None:
                losses_BK = losses_BK * weights_K
            return losses_BK.sum(1).mean()

        return loss

    def _targets(self, targets: Tensor) -> Tensor:
        return targets if targets.is_floating_point() else self.label_sets_MK.to(targets.device)[targets]

    def losses(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        targets_BK = self._targets(labels_B)
        return functional.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK, reduction="none").sum(1)

    def mean_loss(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return self.losses(logits_BK, labels_B).mean()

    def rightness(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return ((logits_BK > 0) == (self._targets(labels_B) > 0.5)).float().mean(1)

    def validation_score(self, logits_NK: Tensor, labels_N: Tensor) -> float:
        value = macro_average_precision(logits_NK.numpy(), self._on_cpu_MK[labels_N.numpy()])
        # no image of validation has a label: nothing can be ranked
        return value if value == value else 0.0

    def probs(self, logits_BK: Tensor) -> Tensor:
        return logits_BK.sigmoid()

    def targets(self, labels_B: Tensor, num_classes: int) -> Tensor:
        return self._targets(labels_B)

    def summary(
        self, probs_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], thresholds_K: Sequence[float]
    ) -> Mapping[str, Any]:
        return evaluate_sets(probs_NK, self._on_cpu_MK[labels_N], classes, thresholds_K).summary()

    def thresholds(self, probs_NK: np.ndarray, labels_N: np.ndarray) -> tuple[float, ...]:
        return tuple(float(value) for value in best_thresholds(probs_NK, self._on_cpu_MK[labels_N]))


ONE_CLASS = OneClass()


def task_of(label_sets_MK: np.ndarray | None, recipe: Recipe, device: torch.device, *, has_teacher: bool) -> Task:
    """The task of data with these `label_sets`. Raises ConfigError for a recipe that can't be used with them."""
    if label_sets_MK is None:
        return ONE_CLASS
    _check_for_sets(recipe, has_teacher=has_teacher)
    return LabelSets(torch.from_numpy(label_sets_MK.astype(np.float32)).to(device))


def positive_weights(counts_K: np.ndarray, num_images: int) -> Tensor:
    """Images without a label for each that has it, float32 [K], from 1 / 20 to 20."""
    ratio_K = (num_images - counts_K) / np.maximum(counts_K, 1)
    return torch.from_numpy(np.clip(ratio_K, 1 / MAX_POSITIVE_WEIGHT, MAX_POSITIVE_WEIGHT)).float()


def _check_for_sets(recipe: Recipe, *, has_teacher: bool) -> None:
    """Raise ConfigError for what a recipe asks for that is defined for one class an image alone."""
    if has_teacher or recipe.distill.teacher is not None:
        raise ConfigError(
            f"distill.teacher can't go with sets of labels: got {recipe.distill.teacher}. Train without a teacher."
        )
    if recipe.attack.eps:
        raise ConfigError(
            f"attack.eps can't go with sets of labels (its probe counts images whose class is right): got "
            f"{recipe.attack.eps:g}. Set attack.eps=0."
        )
    if recipe.loss.name != "cross_entropy":
        raise ConfigError(
            f"loss.name={recipe.loss.name} is for one class an image: got sets of labels. Set loss.name=cross_entropy."
        )
    if recipe.data.balanced_sampling:
        raise ConfigError(
            "data.balanced_sampling can't go with sets of labels: an image of a rare label has common ones too. Set "
            "`loss.class_weights='balanced'` instead."
        )
    if recipe.monitor not in ("top1", "loss"):
        raise ConfigError(
            f"monitor={recipe.monitor} is for one class an image: got sets of labels. Set monitor=loss, or leave it "
            "out for mAP."
        )
