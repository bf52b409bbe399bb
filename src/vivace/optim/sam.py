"""Sharpness-aware minimisation: gradients are taken where the loss around the weights is worst.

SAM (Foret et al. 2020, arXiv:2010.01412) moves the weights by rho along their gradient; ASAM (Kwon et al. 2021,
arXiv:2102.11600) measures that move relative to each weight, so that scaling a layer up and the next one down changes
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["ascended", "ascent"]

# added to the size of each weight in ASAM, as in its paper: weights of 0 move too
ETA = 0.01


def ascent(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, *, adaptive: bool) -> list[Tensor]:
    """The change of each weight along which the loss grows most, to first order, at a distance of rho.

    SAM: rho · g / ‖g‖, with one norm over all weights. ASAM: rho · T² g / ‖T g‖, where T is |w| + 0.01. Gradients may
    be scaled by any positive number; where all are 0, nothing changes.
    """
    # a norm of what fp16 has scaled up would overflow in its square
    gradients = [gradient.float() if gradient.dtype != torch.float64 else gradient for gradient in gradients]
    sizes = [weight.abs() + ETA if adaptive else torch.ones_like(weight) for weight in weights]
    scaled = [gradient * size for gradient, size in zip(gradients, sizes, strict=True)]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(change) for change in scaled]))
    factor = rho / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return [change * size * factor for change, size in zip(scaled, sizes, strict=True)]


@contextlib.contextmanager
def ascended(model: nn.Module, rho: float, *, adaptive: bool) -> Iterator[None]:
    """The context in which the weights that have a gradient are moved by `ascent`; then all are bitwise what they were.

    Gradients stay for the caller to replace. Buffers, such as batch-norm statistics, are restored too: passes over
    moved weights must not count.
    """
    moved = [weight for weight in model.parameters() if weight.grad is not None]
    kept = [(tensor, tensor.detach().clone()) for tensor in (*moved, *model.buffers())]
    with torch.no_grad():
        changes = ascent(moved, [weight.grad for weight in moved if weight.grad is not None], rho, adaptive=adaptive)
        for weight, change in zip(moved, changes, strict=True):
            weight.add_(change)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
