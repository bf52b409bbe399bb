"""Muon: momentum whose matrices are made orthogonal before they are applied.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, and arXiv:2502.16982. The quintic iteration's
coefficients are theirs; they trade exactness (singular values end in about [0.7, 1.2]) for a steep slope at zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalize"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices_BMN: Tensor, *, num_steps: int = 3, epsilon: float = 1e-7) -> Tensor:
    """Each matrix with its singular values brought near 1, same shape and dtype.

    About U Vᵀ of the singular value decomposition, by Newton–Schulz iterations: matrix products only.
    """
    a, b, c = COEFFICIENTS
    tall = matrices_BMN.shape[-2] > matrices_BMN.shape[-1]
    # the products are formed on the shorter side
    x = matrices_BMN.mT if tall else matrices_BMN
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + epsilon)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for groups marked "muon", SGD with momentum for the others.

    A group is a dict with "params", "lr" and, perhaps, "weight_decay" (decoupled) and "muon" (default True: then its
    parameters have two or more dimensions and count as matrices [out, rest]).
    momentum in [0, 1), nesterov; ns_steps: Newton–Schulz steps, 1 to 10; normalize_filters: before the update scale
    each weight to the norm that airbench94 gives it, the root of its number of output filters.
    Weights of one shape share one batched product. State: one momentum buffer per parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 3,
        normalize_filters: bool = False,
    ) -> None:
        if not 1 <= ns_steps <= 10:
            raise ValueError(f"ns_steps is out of range: got {ns_steps}, give 1 to 10")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "normalize_filters": normalize_filters,
            "muon": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            updates = self._momentum(group, parameters)
            if group["muon"]:
                self._apply_orthogonal(group, parameters, updates)
            else:
                if group["weight_decay"]:
                    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])
        return loss

    def _momentum(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        if not group["nesterov"]:
            return buffers
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))

    def _apply_orthogonal(self, group: dict[str, Any], parameters: list[Tensor], updates: list[Tensor]) -> None:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, parameter in enumerate(parameters):
            rows = parameter.shape[0]
            by_shape.setdefault((rows, parameter.numel() // rows), []).append(index)
        for (rows, columns), members in by_shape.items():
            stacked = torch.stack([updates[index].reshape(rows, columns) for index in members])
            orthogonal = orthogonalize(stacked, num_steps=group["ns_steps"])
            # a tall matrix would otherwise move its outputs more than a wide one
            scale = max(1.0, rows / columns) ** 0.5
            for position, index in enumerate(members):
                weight = parameters[index]
                if group["normalize_filters"]:
                    weight.mul_(rows**0.5 / weight.norm().clamp(min=1e-8))
                if group["weight_decay"]:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal[position].view(weight.shape), alpha=-group["lr"] * scale)
