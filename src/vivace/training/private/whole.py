"""DP-SGD on all of a network, by Opacus: the gradient of each image, averaged over its views, clipped, noised.

Opacus computes gradients image by image with hooks of its own, so that a network must not mix images. It takes several
times the time and the memory of plain training; for most purposes a head on fixed features is better (`head`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vivace.errors import ConfigError, first_line
from vivace.libraries.opacus import opacus_module
from vivace.models.zoo import head_parameters
from vivace.optim.optimizers import create_optimizer
from vivace.optim.schedules import multiplier
from vivace.torch_private import BatchNorm
from vivace.training.loop.session import Session
from vivace.training.private.head import secret_generator

__all__ = ["check_whole", "train_whole"]

# views whose gradients are held at once
MAX_VIEWS = 64


def check_whole(model: nn.Module, name: str) -> None:
    """Raises ConfigError for a network that can't be trained privately as a whole, with what can."""
    norms = [path for path, module in model.named_modules() if isinstance(module, BatchNorm)]
    if norms:
        raise ConfigError(
            f"batch norm can't be trained with differential privacy: {name} has {len(norms)}, such as {norms[0]}. It "
            "mixes the images of a batch, so that none has a gradient of its own. Take a network with group or layer "
            "norm, such as timm/resnet50_gn or timm/convnext_atto, or set privacy.trains=head, which freezes it."
        )
    found = opacus_module("validators").ModuleValidator.validate(model, strict=False)
    if found:
        raise ConfigError(
            f"{name} can't be trained with differential privacy: {first_line(found[0])}. Set privacy.trains=head."
        )


def train_whole(
    session: Session,
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    generator: torch.Generator | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train the session's network in place; its weights are the average of those of the last half of the steps.

    generator: of sampling and noise; None: a secret one. Raises ConfigError as `check_whole`, and for layers that
    Opacus knows no gradient of.
    """
    recipe, model, device = session.recipe, session.model, session.device
    check_whole(model, recipe.model.name)
    secret = generator or secret_generator(device)
    # where noise is drawn on a GPU, images are still drawn here
    drawing = secret if device.type == "cpu" else secret_generator()
    count = len(session.data.train_indices)
    with warnings.catch_warnings():
        # of hooks that torch will call otherwise one day
        warnings.simplefilter("ignore")
        try:
            sampled = opacus_module("grad_sample").GradSampleModule(model, loss_reduction="sum")
        except NotImplementedError as error:
            # of layers with weights of their own, or that keep what they see
            raise ConfigError(
                f"{recipe.model.name} can't be trained with differential privacy: {first_line(error)}. Set "
                "privacy.trains=head."
            ) from None
        inner = create_optimizer(model, recipe.optimizer, head=head_parameters(model))
        private = opacus_module("optimizers").DPOptimizer(
            inner,
            noise_multiplier=noise_multiplier,
            max_grad_norm=recipe.privacy.clip_norm,
            expected_batch_size=max(1, round(sample_rate * count)),
            generator=secret,
        )
        sampler = opacus_module("utils.uniform_sampler").UniformWithReplacementSampler(
            num_samples=count, sample_rate=sample_rate, generator=drawing, steps=steps
        )
        averaged = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        first_averaged = steps // 2
        try:
            model.train()
            for step, rows in enumerate(sampler):
                for group in inner.param_groups:
                    group["lr"] = group["initial_lr"] * multiplier(recipe.schedule, step, steps)
                _step(session, sampled, private, np.asarray(rows, np.int64), step / steps)
                if step >= first_averaged:
                    for name, value in model.named_parameters():
                        averaged[name] += value.detach() / (steps - first_averaged)
                on_step(step)
        finally:
            sampled.remove_hooks()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(averaged[name])
            value.grad = None
    model.eval()


def _step(session: Session, sampled: nn.Module, private: Any, rows_B: np.ndarray, progress: float) -> None:
    """A step on some training images, few at a time; without any it is a step of noise alone."""
    views = session.recipe.privacy.views
    size = max(1, MAX_VIEWS // views)
    parts = [rows_B[start : start + size] for start in range(0, len(rows_B), size)] or [rows_B]
    for number, rows_b in enumerate(parts):
        if len(rows_b):
            images, labels_b = _views(session, rows_b, views, progress)
            losses = functional.cross_entropy(sampled(images), labels_b.repeat_interleave(views), reduction="sum")
            losses.backward()
        for parameter in private.params:
            if not len(rows_b):
                parameter.grad_sample = torch.zeros(0, *parameter.shape, device=parameter.device)
                continue
            if parameter.grad_sample is None:
                # the network does not use it
                parameter.grad_sample = torch.zeros(len(rows_b), *parameter.shape, device=parameter.device)
                continue
            # one gradient for each image: the mean over its views
            parameter.grad_sample = parameter.grad_sample.unflatten(0, (len(rows_b), views)).mean(1)
        private.signal_skip_step(do_skip=number + 1 < len(parts))
        private.step()
        private.zero_grad(set_to_none=True)


def _views(session: Session, rows_b: np.ndarray, views: int, progress: float) -> tuple[Tensor, Tensor]:
    """(normalised views, those of an image after each other [bV, C, H, W]; labels_b)."""
    data, split = session.data, session.data.cache.splits["train"]
    indices = data.train_indices[rows_b]
    stored = np.asarray(split.images_NHWC[np.sort(indices)])
    order = np.argsort(np.argsort(indices))
    images_BCHW = torch.from_numpy(np.ascontiguousarray(stored[order])).permute(0, 3, 1, 2).to(session.device)
    labels_b = torch.from_numpy(np.asarray(split.labels_N[indices], np.int64)).to(session.device)
    repeated = images_BCHW.repeat_interleave(views, 0)
    generator = torch.Generator(session.device).manual_seed(int(torch.randint(2**31, ()).item()))
    augmented, _ = session.augment(
        repeated,
        labels_b.repeat_interleave(views),
        torch.from_numpy(indices).to(session.device).repeat_interleave(views),
        # alternating flips show an image and its mirror image
        times_seen=torch.arange(views, device=session.device).repeat(len(rows_b)),
        generator=generator,
        progress=progress,
    )
    return session.normalize(augmented), labels_b
