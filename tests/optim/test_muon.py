"""Muon against singular value decompositions and plain implementations of its step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vivace.optim.muon import COEFFICIENTS, Muon, orthogonalize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 8, 40), (3, 40, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = random(*shape)
    result = orthogonalize(matrices, num_steps=6)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    # singular vectors are kept: U^T result V is diagonal
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ result @ vh.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_each_step_is_the_quintic_polynomial_of_the_singular_values() -> None:
    matrix = random(1, 6, 9)
    values = torch.linalg.svdvals(matrix / matrix.norm())
    a, b, c = COEFFICIENTS
    for _ in range(2):
        values = a * values + b * values**3 + c * values**5
    found = torch.linalg.svdvals(orthogonalize(matrix, num_steps=2))
    torch.testing.assert_close(found.sort().values, values.abs().sort().values, atol=1e-5, rtol=1e-4)


def test_a_batch_is_each_of_its_matrices_and_scale_does_not_matter() -> None:
    matrices = random(4, 12, 20)
    batched = orthogonalize(matrices)
    for index in range(4):
        torch.testing.assert_close(batched[index], orthogonalize(matrices[index : index + 1])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(orthogonalize(matrices * 1e-3), batched, atol=1e-4, rtol=1e-3)


def test_zero_stays_zero_and_half_precision_comes_near() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))
    matrices = random(2, 32, 48)
    half = orthogonalize(matrices, dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, orthogonalize(matrices), atol=0.04, rtol=0.1)


def plain_step(weight: Tensor, gradient: Tensor, buffer: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """One parameter, one step, as the definition has it."""
    buffer = options["momentum"] * buffer + gradient
    direction = gradient + options["momentum"] * buffer if options["nesterov"] else buffer
    weight = weight * (1 - options["lr"] * options["weight_decay"])
    if options.get("normalize_filters"):
        weight = weight * len(weight) ** 0.5 / weight.norm()
    matrix = direction.reshape(1, len(weight), -1)
    update = orthogonalize(matrix, num_steps=options["ns_steps"])[0].view_as(weight)
    scale = max(1.0, len(weight) / matrix.shape[2]) ** 0.5
    return weight - options["lr"] * scale * update, buffer


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_the_definition(nesterov: bool, weight_decay: float) -> None:
    shapes = [(8, 3, 3, 3), (8, 3, 3, 3), (40, 2, 3, 3), (5, 7)]
    weights = [nn.Parameter(random(*shape, seed=index)) for index, shape in enumerate(shapes)]
    options = {"lr": 0.1, "momentum": 0.6, "nesterov": nesterov, "weight_decay": weight_decay, "ns_steps": 3}
    optimizer = Muon(weights, **options, ns_dtype="fp32")
    expected = [(weight.detach().clone(), torch.zeros_like(weight)) for weight in weights]
    for step in range(3):
        for index, weight in enumerate(weights):
            weight.grad = random(*weight.shape, seed=100 * step + index)
            expected[index] = plain_step(expected[index][0], weight.grad, expected[index][1], options)
        optimizer.step()
    for weight, (value, _) in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), value, atol=1e-5, rtol=1e-4)


def test_filters_are_brought_to_the_norm_of_airbench() -> None:
    weight = nn.Parameter(random(16, 3, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, normalize_filters=True).step()
    assert float(weight.detach().norm()) == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize(("aux", "reference"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_other_groups_follow_the_named_optimizer(aux: str, reference: type[torch.optim.Optimizer]) -> None:
    mine, theirs = nn.Parameter(random(6)), nn.Parameter(random(6))
    group = {"params": [mine], "muon": False, "weight_decay": 0.0 if aux == "sgd" else 0.1}
    optimizer = Muon([group], lr=0.05, momentum=0.9, nesterov=True, aux=aux)
    options: dict[str, Any] = (
        {"momentum": 0.9, "nesterov": True} if aux == "sgd" else {"betas": (0.9, 0.95), "weight_decay": 0.1}
    )
    other = reference([theirs], lr=0.05, **options)
    for step in range(5):
        mine.grad = theirs.grad = random(6, seed=step)
        optimizer.step()
        other.step()
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_a_saved_state_goes_on_bitwise() -> None:
    def make() -> tuple[list[nn.Parameter], Muon]:
        weights = [nn.Parameter(random(8, 12)), nn.Parameter(random(5))]
        groups = [{"params": weights[:1]}, {"params": weights[1:], "muon": False}]
        return weights, Muon(groups, lr=0.1, aux="adamw")

    def steps(weights: list[nn.Parameter], optimizer: Muon, numbers: range) -> None:
        for number in numbers:
            for index, weight in enumerate(weights):
                weight.grad = random(*weight.shape, seed=10 * number + index)
            optimizer.step()

    first_weights, first = make()
    steps(first_weights, first, range(3))
    state, values = copy.deepcopy(first.state_dict()), [weight.detach().clone() for weight in first_weights]
    steps(first_weights, first, range(3, 6))
    second_weights, second = make()
    for weight, value in zip(second_weights, values, strict=True):
        weight.data.copy_(value)
    second.load_state_dict(state)
    steps(second_weights, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(first_weights, second_weights, strict=True))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    still, moving = nn.Parameter(random(4, 4)), nn.Parameter(random(4, 4))
    before = still.detach().clone()
    moving.grad = torch.ones_like(moving)
    Muon([still, moving], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, before)


@pytest.mark.parametrize(
    "options",
    [{"ns_steps": 0}, {"ns_steps": 11}, {"ns_dtype": "fp8"}, {"aux": "adam"}, {"betas": (0.9,)}, {"betas": (1.0, 0.9)}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"^{name} (is|are) (out of range|unknown): got "):
        Muon([nn.Parameter(random(2, 2))], **options)
