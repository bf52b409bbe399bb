"""Muon against singular value decompositions and plain implementations of its step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vivace.optim import muon
from vivace.optim.muon import COEFFICIENTS, Muon, orthogonalize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 8, 40), (3, 40, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    # singular values over a range of 1 : 50
    u, _, vh = torch.linalg.svd(random(*shape), full_matrices=False)
    matrices = u @ torch.diag(torch.logspace(0, -1.7, u.shape[2])) @ vh
    result = orthogonalize(matrices, num_steps=5)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert float(values.min()) >= 0.65
    assert float(values.max()) <= 1.25
    # singular vectors are kept: U^T result V is diagonal
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


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_a_tall_matrix_is_its_transpose_turned() -> None:
    matrices = random(2, 30, 6)
    torch.testing.assert_close(orthogonalize(matrices), orthogonalize(matrices.mT).mT, atol=1e-6, rtol=1e-5)


def test_half_precision_comes_near_and_is_of_the_products_alone() -> None:
    matrices = random(2, 32, 48)
    half, full = orthogonalize(matrices, dtype=torch.bfloat16), orthogonalize(matrices)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.04, rtol=0.1)
    assert orthogonalize(matrices.bfloat16()).dtype == torch.bfloat16
    # the norm is taken before: values that fp16 can't hold keep their direction
    tiny, full = orthogonalize(matrices * 1e-8, dtype=torch.float16, epsilon=0.0), orthogonalize(matrices)
    torch.testing.assert_close(tiny, full, atol=0.04, rtol=0.1)


def plain_step(weight: Tensor, gradient: Tensor, buffer: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """One parameter, one step, as the definition has it."""
    buffer = options["momentum"] * buffer + gradient
    direction = gradient + options["momentum"] * buffer if options["nesterov"] else buffer
    if options["normalize_filters"]:
        weight = weight * len(weight) ** 0.5 / weight.norm()
    weight = weight * (1 - options["lr"] * options["weight_decay"])
    matrix = direction.reshape(1, len(weight), -1)
    update = orthogonalize(matrix, num_steps=options["ns_steps"])[0].view_as(weight)
    scale = max(1.0, len(weight) / matrix.shape[2]) ** 0.5
    return weight - options["lr"] * scale * update, buffer


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("normalize_filters", [True, False])
def test_steps_are_those_of_the_definition(nesterov: bool, weight_decay: float, normalize_filters: bool) -> None:
    # two of one shape, one tall, one that shares its matrix' shape with the first but not its own, one in channels_last
    shapes = [(8, 3, 3, 3), (8, 3, 3, 3), (40, 2, 3, 3), (5, 7), (8, 27), (8, 4, 3, 3)]
    weights = [nn.Parameter(random(*shape, seed=index)) for index, shape in enumerate(shapes)]
    weights[-1].data = weights[-1].data.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {
        "lr": 0.1,
        "momentum": 0.6,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "ns_steps": 4,
        "normalize_filters": normalize_filters,
    }
    optimizer = Muon(weights, **options, ns_dtype="fp32")
    expected = [(weight.detach().clone(), torch.zeros_like(weight)) for weight in weights]
    for step in range(3):
        for index, weight in enumerate(weights):
            weight.grad = random(*weight.shape, seed=100 * step + index)
            expected[index] = plain_step(expected[index][0], weight.grad, expected[index][1], options)
        optimizer.step()
    for weight, (value, buffer) in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], buffer)


@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_move_as_under_torchs_muon(nesterov: bool) -> None:
    shapes = [(6, 10), (24, 6)]
    mine, theirs = ([nn.Parameter(random(*shape)) for shape in shapes] for _ in range(2))
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1, "ns_steps": 5}
    optimizers = Muon(mine, **options, ns_dtype="bf16"), torch.optim.Muon(theirs, **options)
    for step in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = b.grad = random(*a.shape, seed=step)
        for optimizer in optimizers:
            optimizer.step()
    # both multiply in bf16; four steps of 0.1 at most 2 / sqrt(6) each
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=0.015, rtol=0)


def test_a_step_uses_the_rate_that_its_group_has_by_then() -> None:
    weights = [nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(3))]
    optimizer = Muon([{"params": weights[:1]}, {"params": weights[1:], "muon": False}], lr=1.0, momentum=0.0)
    gradients = [random(4, 6), random(3)]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), -0.25 * orthogonalize(gradients[0][None])[0])
    torch.testing.assert_close(weights[1].detach(), -0.25 * gradients[1])


def test_a_step_multiplies_in_the_dtype_asked_for() -> None:
    weight = nn.Parameter(torch.zeros(4, 6))
    weight.grad = random(4, 6)
    Muon([weight], lr=1.0, ns_dtype="bf16").step()
    assert torch.equal(-weight.detach(), orthogonalize(weight.grad[None] * 1.95, dtype=torch.bfloat16)[0])


def test_products_are_in_half_precision_only_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = torch.zeros(1, 400, 400), torch.zeros(1, 4, 4)
    for feature, expected in (("amx_bf16", torch.bfloat16), ("avx512_bf16", torch.bfloat16), ("avx2", None)):
        monkeypatch.setattr(muon, "cpu_features", lambda feature=feature: (feature,))
        assert muon._dtype("auto", large) == expected
        assert muon._dtype("auto", small) is None
        assert muon._dtype("auto", large.double()) is None
    assert muon._dtype("bf16", small) == torch.bfloat16
    assert muon._dtype("fp32", large) == torch.float32


def test_a_closure_is_evaluated_with_gradients_and_its_loss_handed_back() -> None:
    weight = nn.Parameter(random(3, 4))
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=0.1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(before.square().sum().item())
    assert not torch.equal(weight, before)


def test_filters_are_brought_to_the_norm_of_airbench() -> None:
    weight = nn.Parameter(random(16, 3, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, normalize_filters=True).step()
    assert float(weight.detach().norm()) == pytest.approx(4.0, rel=1e-5)


def other_steps(options: dict[str, Any], reference: torch.optim.Optimizer, theirs: list[nn.Parameter]) -> None:
    """Five steps of a group that muon does not treat are those of `reference` over `theirs`."""
    mine = [nn.Parameter(weight.detach().clone()) for weight in theirs]
    optimizer = Muon([{"params": mine, "muon": False}], lr=0.05, **options)
    for step in range(5):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = b.grad = random(*a.shape, seed=step)
        optimizer.step()
        reference.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_the_other_groups_follow_sgd(momentum: float, nesterov: bool) -> None:
    theirs = [nn.Parameter(random(6)), nn.Parameter(random(4, 3))]
    options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov}
    other_steps(options, torch.optim.SGD(theirs, lr=0.05, **options), theirs)


def test_the_other_groups_decay_apart_from_the_gradient() -> None:
    weight = nn.Parameter(random(6))
    expected = weight.detach() * (1 - 0.1 * 0.5) - 0.1
    weight.grad = torch.ones(6)
    Muon([{"params": [weight], "muon": False}], lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), expected)


def test_the_other_groups_follow_adamw() -> None:
    theirs = [nn.Parameter(random(6)), nn.Parameter(random(4, 3))]
    options: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    other_steps({"aux": "adamw", **options}, torch.optim.AdamW(theirs, lr=0.05, **options), theirs)


@pytest.mark.parametrize("aux", ["sgd", "adamw"])
def test_a_saved_state_goes_on_bitwise(aux: str) -> None:
    def make() -> tuple[list[nn.Parameter], Muon]:
        weights = [nn.Parameter(random(8, 12)), nn.Parameter(random(5))]
        groups = [{"params": weights[:1]}, {"params": weights[1:], "muon": False}]
        return weights, Muon(groups, lr=0.1, aux=aux)

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
    ("options", "message"),
    [
        ({"ns_steps": 0}, r"ns_steps is out of range: got 0\. Give a whole number in \[1, 10\]\."),
        ({"ns_steps": 11}, r"ns_steps is out of range: got 11\. .*"),
        ({"ns_steps": 2.5}, r"ns_steps is out of range: got 2\.5\. .*"),
        ({"ns_dtype": "fp8"}, r"ns_dtype is unknown: got 'fp8'\. Give auto, fp32 or bf16\."),
        ({"aux": "adam"}, r"aux is unknown: got 'adam'\. Give sgd or adamw\."),
        ({"betas": (0.9,)}, r"betas are out of range: got \(0\.9,\)\. Give two numbers in \[0, 1\)\."),
        ({"betas": (1.0, 0.9)}, r"betas are out of range: got \(1\.0, 0\.9\)\. .*"),
        ({"momentum": 1.0}, r"momentum is out of range: got 1\.0\. Give a number in \[0, 1\)\."),
        ({"lr": -1.0}, r"lr is out of range: got -1\.0\. Give a number in \[0, inf\)\."),
        ({"weight_decay": -0.1}, r"weight_decay is out of range: got -0\.1\. .*"),
        ({"eps": -1e-8}, r"eps is out of range: got -1e-08\. .*"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Muon([nn.Parameter(random(2, 2))], **options)
