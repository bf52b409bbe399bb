"""Muon: momentum, orthogonalised per weight matrix.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, and arXiv:2502.16982. The quintic iteration's
coefficients are theirs: fast convergence from small singular values, at the cost of exactness (they end in about
[0.7, 1.2]).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from vivace.hardware import cpu_features, supported_precisions
from vivace.torch_private import foreach_add, foreach_add_, foreach_mul_

__all__ = ["Muon", "orthogonalize"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# where bf16 starts to be faster than fp32 on CPUs with AMX or AVX-512 BF16 (docs/log/2026-11-29.md)
MIN_BF16_VALUES = 100_000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def orthogonalize(
    matrices_BMN: Tensor, *, num_steps: int = 3, dtype: torch.dtype | None = None, epsilon: float = 1e-7
) -> Tensor:
    """Each matrix with its singular values brought near 1, same shape and dtype.

    Approximately U Vᵀ of the singular value decomposition, by Newton–Schulz iterations, which are matrix products only.
    A step maps each singular value s of a matrix of norm 1 to 3.4445 s - 4.775 s³ + 2.0315 s⁵. dtype: of the products;
    None: that of the matrices.
    """
    a, b, c = COEFFICIENTS
    tall = matrices_BMN.shape[-2] > matrices_BMN.shape[-1]
    # products on the shorter side are cheaper
    x = matrices_BMN.mT if tall else matrices_BMN
    # normalise before the conversion, so that tiny gradients keep their direction
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + epsilon)).to(dtype or x.dtype)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices_BMN.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for groups marked "muon", SGD or AdamW for the others; weights stay in their dtype.

    A group is a dict with "params", "lr" and optionally "weight_decay" (decoupled) and "muon" (default True: its
    parameters have two or more dimensions and are treated as matrices [out, rest]).
    momentum in [0, 1), nesterov: for the matrices, and for the others with aux "sgd". ns_steps: Newton–Schulz steps,
    1 to 10. ns_dtype: their compute dtype, "fp32", "bf16", or "auto" (bf16 where the hardware multiplies it faster).
    normalize_filters: before the update scale each weight to a norm of sqrt(number of output filters), as airbench94
    does (arXiv:2404.00498). aux: "sgd" or "adamw" for the groups that are not marked, with `betas` and `eps`.
    Weights of the same shape are multiplied as a batch.
    State: a momentum buffer per parameter; AdamW's moments and steps.
    Raises ValueError for an option out of range.
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
        ns_dtype: str = "auto",
        normalize_filters: bool = False,
        aux: str = "sgd",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        if ns_steps not in range(1, 11):
            raise ValueError(f"ns_steps is out of range: got {ns_steps}. Give a whole number in [1, 10].")
        if ns_dtype not in ("auto", *DTYPES):
            raise ValueError(f"ns_dtype is unknown: got {ns_dtype!r}. Give auto, fp32 or bf16.")
        if aux not in ("sgd", "adamw"):
            raise ValueError(f"aux is unknown: got {aux!r}. Give sgd or adamw.")
        for name, value, high in (
            ("lr", lr, math.inf),
            ("momentum", momentum, 1),
            ("weight_decay", weight_decay, math.inf),
            ("eps", eps, math.inf),
        ):
            if not 0 <= value < high:
                raise ValueError(f"{name} is out of range: got {value}. Give a number in [0, {high}).")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are out of range: got {betas}. Give two numbers in [0, 1).")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "ns_steps": int(ns_steps),
            "ns_dtype": ns_dtype,
            "normalize_filters": normalize_filters,
            "aux": aux,
            "betas": tuple(betas),
            "eps": eps,
            "muon": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; returns the value of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                update = self._orthogonal if group["muon"] else self._sgd if group["aux"] == "sgd" else self._adamw
                update(group, parameters)
        return loss

    def _orthogonal(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        updates = self._momentum(group, parameters)
        if group["normalize_filters"]:
            for parameter in parameters:
                parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=1e-8))
        self._decay(group, parameters)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, parameter in enumerate(parameters):
            by_shape.setdefault((len(parameter), parameter.numel() // len(parameter)), []).append(index)
        for (rows, columns), members in by_shape.items():
            stacked = torch.stack([updates[index].reshape(rows, columns) for index in members])
            orthogonal = orthogonalize(stacked, num_steps=group["ns_steps"], dtype=_dtype(group["ns_dtype"], stacked))
            # scales the update of tall matrices as in the reference implementation
            scale = max(1.0, rows / columns) ** 0.5
            for position, index in enumerate(members):
                weight = parameters[index]
                weight.add_(orthogonal[position].view(weight.shape), alpha=-group["lr"] * scale)

    def _sgd(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        updates = self._momentum(group, parameters)
        self._decay(group, parameters)
        foreach_add_(parameters, updates, alpha=-group["lr"])

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _momentum(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        """The update directions: new tensors, or the momentum buffers themselves."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        foreach_mul_(buffers, group["momentum"])
        foreach_add_(buffers, gradients)
        if not group["nesterov"]:
            return buffers
        return list(foreach_add(gradients, buffers, alpha=group["momentum"]))

    @staticmethod
    def _decay(group: dict[str, Any], parameters: list[Tensor]) -> None:
        if group["weight_decay"]:
            foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])


def _dtype(name: str, matrices_BMN: Tensor) -> torch.dtype | None:
    """The dtype of the products; None: that of the matrices."""
    if name != "auto":
        return DTYPES[name]
    if matrices_BMN.dtype != torch.float32:
        return None
    if matrices_BMN.device.type == "cpu":
        multiplies = not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_features())
        is_faster = multiplies and matrices_BMN.numel() >= MIN_BF16_VALUES
    else:
        is_faster = _multiplies_bf16(matrices_BMN.device)
    return torch.bfloat16 if is_faster else None


@functools.cache
def _multiplies_bf16(device: torch.device) -> bool:
    return "bf16" in supported_precisions(device)
