"""DP-SGD on one linear layer over fixed features, with the clipped gradient of each image in closed form.

The gradient of an image is δ zᵀ, with z its features and a constant 1 for the bias and δ what the logits are wrong by.
Over V views it is averaged before it is clipped (augmentation multiplicity, arXiv:2204.13650); its squared norm is then
a sum of products of inner products, (1/V²) Σ_kl (δ_k·δ_l)(z_k·z_l), so that no gradient of an image is ever made. The
sum of the clipped ones goes to Opacus's optimizer for such sums, which adds the noise; Opacus's sampler draws the
batches. A test compares this with the gradients that Opacus takes image by image.

N images, V views, D features, K classes, B images of a batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vivace.libraries.opacus import opacus_module
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.optim.optimizers import create_optimizer
from vivace.optim.schedules import multiplier

__all__ = ["Features", "PrivateHead", "clipped_sums", "fit_private_head", "private_mean", "secret_generator"]

# rows that are made float32 at once
CHUNK = 1024
# rounding of float32 could leave a gradient longer than it is clipped to
SLACK = 1 - 1e-5


def secret_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose seed is the system's, and kept nowhere: whoever knew it could take the noise away again."""
    return torch.Generator(device).manual_seed(secrets.randbits(63))


class Features:
    """Features z = (x - mean) / scale of images in several views x, each with a constant 1 beside it.

    views: V tensors [N, D], of any float dtype; they are never copied as a whole.
    """

    def __init__(self, views: Sequence[Tensor], mean_D: Tensor, scale: float) -> None:
        self.views, self.mean_D, self.scale = views, mean_D, scale
        # z_k·z_l + 1 of each image, which no step changes
        chunks = torch.arange(len(views[0])).split(CHUNK)
        self.products_NVV = torch.cat([_products(self.rows(rows_b)) for rows_b in chunks])

    def __len__(self) -> int:
        return len(self.views[0])

    def given(self, rows_b: Tensor) -> Tensor:
        """x_bVD, float32, of some images."""
        return torch.stack([view[rows_b].float() for view in self.views], 1)

    def rows(self, rows_b: Tensor) -> Tensor:
        """z_bVD, float32, of some images, without the constant."""
        return (self.given(rows_b) - self.mean_D) / self.scale


@dataclass(frozen=True, kw_only=True)
class PrivateHead:
    """A linear layer for the features as they were given."""

    weight_KD: Tensor
    bias_K: Tensor
    steps: int


def private_mean(
    views: Sequence[Tensor], norm: float, noise_multiplier: float | None, generator: torch.Generator
) -> Tensor:
    """mean_D of the features, each image's (averaged over its views) clipped to `norm`, with noise; 0 for no noise.

    The number of images is taken to be known, as DP-SGD's sampling rate is.
    """
    count, width = views[0].shape
    if noise_multiplier is None:
        return torch.zeros(width)
    total_D = torch.zeros(width)
    for start in range(0, count, CHUNK):
        rows_bD = torch.stack([view[start : start + CHUNK].float() for view in views]).mean(0)
        norms_b = torch.linalg.vector_norm(rows_bD, dim=1)
        total_D += (rows_bD * (norm * SLACK / norms_b.clamp_min(1e-12)).clamp_max(1.0)[:, None]).sum(0)
    noise_D = torch.normal(0.0, noise_multiplier * norm, (width,), generator=generator)
    return (total_D + noise_D) / count


def clipped_sums(
    features: Features, labels_N: Tensor, rows_B: Tensor, weight_KD: Tensor, bias_K: Tensor, clip_norm: float
) -> tuple[Tensor, Tensor]:
    """(Σ of the weights' gradients [K, D], of the biases' [K]) of the images in `rows_B`, each clipped to `clip_norm`.

    The loss of an image is the mean cross-entropy of its views.
    """
    weight_sum, bias_sum = torch.zeros_like(weight_KD), torch.zeros_like(bias_K)
    # of z, by products with x: nothing as large as the features is written
    weights, biases = weight_KD / features.scale, bias_K - weight_KD @ features.mean_D / features.scale
    for rows_b in rows_B.split(CHUNK):
        x_bVD = features.given(rows_b)
        wrong_bVK = (x_bVD @ weights.t() + biases).softmax(2)
        wrong_bVK -= functional.one_hot(labels_N[rows_b], len(bias_K)).float()[:, None]
        wrong_bVK /= x_bVD.shape[1]
        squares_b = (features.products_NVV[rows_b] * (wrong_bVK @ wrong_bVK.transpose(1, 2))).sum((1, 2))
        wrong_bVK *= (clip_norm * SLACK / squares_b.clamp_min(1e-24).sqrt()).clamp_max(1.0)[:, None, None]
        weight_sum += wrong_bVK.flatten(0, 1).t() @ x_bVD.flatten(0, 1)
        bias_sum += wrong_bVK.sum((0, 1))
    return (weight_sum - bias_sum[:, None] * features.mean_D) / features.scale, bias_sum


def _products(z_bVD: Tensor) -> Tensor:
    return z_bVD @ z_bVD.transpose(1, 2) + 1


def fit_private_head(
    features: Features,
    labels_N: Tensor,
    num_classes: int,
    *,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    clip_norm: float,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    averaged: float = 0.5,
    generator: torch.Generator | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> PrivateHead:
    """A linear head by DP-SGD from weights of 0; the weights of the last steps, `averaged` of all, are averaged.

    labels_N: int64 in [0, K). generator: of sampling and noise; None: a secret one. The average is of what DP-SGD has
    released already, so that it costs no privacy. Raises MissingExtra without Opacus.
    """
    generator = generator or secret_generator()
    layer = nn.Linear(features.mean_D.numel(), num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    inner = create_optimizer(layer, optimizer, head=["weight", "bias"])
    private = opacus_module("optimizers").DPOptimizerFastGradientClipping(
        inner,
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip_norm,
        expected_batch_size=max(1, round(sample_rate * len(labels_N))),
        generator=generator,
    )
    sampler = opacus_module("utils.uniform_sampler").UniformWithReplacementSampler(
        num_samples=len(labels_N), sample_rate=sample_rate, generator=generator, steps=steps
    )
    first_averaged = min(steps - 1, int((1 - averaged) * steps))
    totals = [torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)]
    for step, rows in enumerate(sampler):
        rate = multiplier(schedule, step, steps)
        for group in inner.param_groups:
            group["lr"] = group["initial_lr"] * rate
        with torch.no_grad():
            sums = clipped_sums(
                features, labels_N, torch.tensor(rows, dtype=torch.int64), layer.weight, layer.bias, clip_norm
            )
        for parameter, total in zip((layer.weight, layer.bias), sums, strict=True):
            parameter.grad = total
        private.step()
        private.zero_grad(set_to_none=True)
        if step >= first_averaged:
            for total, parameter in zip(totals, (layer.weight, layer.bias), strict=True):
                total += parameter.detach()
        on_step(step)
    weight_KD, bias_K = (total / (steps - first_averaged) for total in totals)
    # for features as they were given
    weight_KD = weight_KD / features.scale
    return PrivateHead(weight_KD=weight_KD, bias_K=bias_K - weight_KD @ features.mean_D, steps=steps)
