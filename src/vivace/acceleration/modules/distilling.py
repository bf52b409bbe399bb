"""Trains a student on a module's own answers (arXiv:1503.02531), as many steps as a time budget allows.

The module sees the same varied images as the student (arXiv:2106.05237). They are varied in ways that are right for
images that were normalised in any way: moved by a few pixels, and mixed with each other; the answers for a mixture are
those of the module. They are not mirrored: which images may be is the user's to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vivace.acceleration.modules.students import ModuleStudent, StudentNetwork
from vivace.acceleration.modules.training_images import TrainingImages
from vivace.hardware import autocast, supported_precisions
from vivace.models.zoo import head_parameters
from vivace.optim.optimizers import create_optimizer
from vivace.optim.schedules import multiplier

__all__ = ["Limits", "distil"]

# by which the logits of both are divided
TEMPERATURE = 2.0
# weight of the module's answers; where labels are known they have the rest: so a student can become better than it
WITH_LABELS = 0.5
# images are moved by up to this fraction of their side, and mixed by shares of Beta(MIX, MIX)
MOVE, MIX = 1 / 12, 0.4
# progress is counted in so many steps, however many there are
RESOLUTION = 10_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What ends a training: epochs, or the time; and what is asked before each step."""

    epochs: int
    seconds: float
    """Infinite without a limit."""


def distil(
    student: ModuleStudent,
    images: TrainingImages,
    teacher: Callable[[Tensor], Tensor],
    limits: Limits,
    device: torch.device,
    *,
    sets: bool,
) -> int:
    """Train a student's network in place, on `device`, and leave it in evaluation mode; the images that it saw.

    teacher: images_BCHW on the device → logits_BK of the module. sets: whether an image has a set of labels.
    """
    network = student.network.to(device).train()
    generator = torch.Generator().manual_seed(0)
    _initialise(network, images, device)
    optimizer = create_optimizer(network.network, student.optimizer, head=head_parameters(network.network))
    precision = "bf16" if "bf16" in supported_precisions(device) else "fp32"
    size = min(student.batch_size, len(images))
    total, began, step = limits.epochs * max(1, len(images) // size), time.monotonic(), 0
    order = torch.empty(0, dtype=torch.long)
    with torch.enable_grad():
        while (progress := max(step / total, (time.monotonic() - began) / limits.seconds)) < 1:
            if len(order) < size:
                order = torch.randperm(len(images), generator=generator)
            rows, order = order[:size], order[size:]
            varied_BCHW, targets = _varied(images, rows, device, generator)
            with torch.no_grad():
                taught_BK = teacher(varied_BCHW).float()
            with autocast(device, precision):
                logits_BK = network(varied_BCHW).float()
            loss = _loss(logits_BK, taught_BK, targets, sets=sets)
            for group in optimizer.param_groups:
                rate = multiplier(student.schedule, int(progress * RESOLUTION), RESOLUTION)
                group["lr"] = group["initial_lr"] * rate
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0 if not student.from_scratch else float("inf"))
            optimizer.step()
            step += 1
    network.eval().requires_grad_(False)
    return step * size


def _initialise(network: StudentNetwork, images: TrainingImages, device: torch.device) -> None:
    """Filters that are made of images, where the network has such."""
    init = getattr(network.network, "init_from_images", None)
    if init is not None:
        some = images.images_NCHW[:: -(-len(images) // 512)].float().to(device)
        init(network.inputs(some))


# of a batch: labels of the images, labels of those that were mixed in, share of the former
Targets = tuple[Tensor, Tensor, float] | None


def _varied(
    images: TrainingImages, rows: Tensor, device: torch.device, generator: torch.Generator
) -> tuple[Tensor, Targets]:
    """Images, moved and mixed, and their labels."""
    images_BCHW = _moved(images.images_NCHW[rows].float(), generator).to(device)
    share = _share(generator)
    mixed_BCHW = share * images_BCHW + (1 - share) * images_BCHW.flip(0)
    if images.labels_N is None:
        return mixed_BCHW, None
    labels = images.labels_N[rows].to(device)
    return mixed_BCHW, (labels, labels.flip(0), share)


def _moved(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """The batch in groups, each moved by as many pixels; what comes in from outside is the edge."""
    height, width = images_BCHW.shape[-2:]
    most = round(MOVE * min(height, width))
    if not most:
        return images_BCHW
    padded = functional.pad(images_BCHW, (most,) * 4, mode="replicate")
    places = torch.randint(0, 2 * most + 1, (len(images_BCHW), 2), generator=generator).tolist()
    parts = [padded[row, :, top : top + height, left : left + width] for row, (top, left) in enumerate(places)]
    return torch.stack(parts)


def _share(generator: torch.Generator) -> float:
    """Of Beta(MIX, MIX), as a quotient of two gamma variates; at least a half."""
    # torch's own samplers of gamma variates take no generator
    uniform = torch.rand(2, generator=generator, dtype=torch.float64)
    first, second = (uniform ** (1 / MIX)).tolist()
    # Johnk's method rejects pairs whose sum exceeds 1
    while not 0 < first + second <= 1:
        first, second = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / MIX)).tolist()
    share = first / (first + second)
    return max(share, 1 - share)


def _loss(logits_BK: Tensor, taught_BK: Tensor, targets: Targets, *, sets: bool) -> Tensor:
    own = _taught_sets(logits_BK, taught_BK) if sets else _taught(logits_BK, taught_BK)
    if targets is None:
        return own
    first, second, share = targets
    compare = functional.binary_cross_entropy_with_logits if sets else functional.cross_entropy
    labelled = share * compare(logits_BK, first) + (1 - share) * compare(logits_BK, second)
    return WITH_LABELS * own + (1 - WITH_LABELS) * labelled


def _taught(logits_BK: Tensor, taught_BK: Tensor) -> Tensor:
    """T² · KL(module ‖ student); gradients of softened predictions are smaller by a factor of T²."""
    found, expected = (functional.log_softmax(one / TEMPERATURE, 1) for one in (logits_BK, taught_BK))
    return TEMPERATURE**2 * functional.kl_div(found, expected, log_target=True, reduction="batchmean")


def _taught_sets(logits_BK: Tensor, taught_BK: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits_BK, taught_BK.sigmoid())
