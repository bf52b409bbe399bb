"""Small networks under attack, the same on every machine: a linear one, whose margins are known, and a convnet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["convnet", "linear", "margins", "some_images"]


def some_images(count: int, side: int) -> Tensor:
    """float32 [count, 3, side, side] from 0.2 to 0.8, of 8 bits."""
    levels = np.random.RandomState(5).randint(51, 205, (count, 3, side, side))
    return torch.from_numpy(levels).float() / 255


def linear(num_classes: int, side: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(network, its weights [K, 3 * side * side])."""
    weights = torch.from_numpy(np.random.RandomState(6).normal(size=(num_classes, 3 * side * side))).float()
    return (lambda images_BCHW: images_BCHW.flatten(1) @ weights.T), weights


def margins(network: Callable[[Tensor], Tensor], weights_KD: Tensor, images: Tensor, norm: str) -> Tensor:
    """[B]: the norm of the smallest change that reaches another class, while no pixel reaches 0 or 1."""
    logits = network(images)
    labels = logits.argmax(1)
    differences = weights_KD[None] - weights_KD[labels][:, None]
    lengths = differences.abs().sum(2) if norm == "linf" else differences.norm(dim=2)
    distances = (logits.gather(1, labels[:, None]) - logits) / lengths.clamp_min(1e-9)
    return distances.scatter(1, labels[:, None], torch.inf).amin(1)


def convnet() -> Callable[[Tensor], Tensor]:
    """Six classes of 12 px images: two convolutions, ReLU, mean pooling, a linear layer; weights by numpy."""
    draw = np.random.RandomState(7)

    def weights(*shape: int) -> Tensor:
        return torch.from_numpy(draw.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).float()

    first, second, head = weights(12, 3, 3, 3), weights(24, 12, 3, 3), weights(6, 24 * 9)

    def network(images_BCHW: Tensor) -> Tensor:
        x = functional.conv2d(images_BCHW - 0.5, first, padding=1).relu()
        x = functional.avg_pool2d(functional.conv2d(x, second, padding=1).relu(), 4)
        return 20 * x.flatten(1) @ head.T

    # no class is the answer to everything
    middle = network(some_images(60, 12)).mean(0)
    return lambda images_BCHW: network(images_BCHW) - middle
