"""Sharpness-aware steps: against a step by hand in float64, and what they leave as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vivace.errors import ConfigError
from vivace.optim.config import OptimizerConfig
from vivace.optim.sam import ascended, ascent

RHO, LR = 0.05, 0.1


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def test_a_step_is_that_by_hand_in_float64() -> None:
    """A logistic regression whose gradient is known: softmax(x W) - onehot, times x."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (20,), generator=draw)
    start = torch.randn(3, 5, generator=draw, dtype=torch.float64)

    def gradient(weight: Tensor) -> Tensor:
        errors = (x @ weight.T).softmax(1) - nn.functional.one_hot(y, 3)
        return errors.T @ x / len(x)

    for adaptive in (False, True):
        first, size = gradient(start), start.abs() + 0.01 if adaptive else torch.ones_like(start)
        moved = start + RHO * size**2 * first / (size * first).square().sum().sqrt()
        expected = start - LR * gradient(moved)

        model = nn.Linear(5, 3, bias=False, dtype=torch.float64)
        model.weight.data.copy_(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        loss_of(model, x, y).backward()
        with ascended(model, RHO, adaptive=adaptive):
            torch.testing.assert_close(model.weight.detach(), moved, rtol=1e-12, atol=1e-12)
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
        assert torch.equal(model.weight.detach(), start)
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_one_norm_is_over_all_weights() -> None:
    weights = [torch.zeros(2), torch.zeros(3, 3)]
    gradients = [torch.full((2,), 3.0), torch.full((3, 3), -4.0)]
    changes = ascent(weights, gradients, RHO, adaptive=False)
    length = torch.cat([change.flatten() for change in changes]).norm()
    assert float(length) == pytest.approx(RHO)
    assert float(changes[0][0] / changes[1][0, 0]) == pytest.approx(-3 / 4)


def test_the_scale_of_gradients_does_not_matter_and_none_is_no_change() -> None:
    weights, gradients = [torch.tensor([1.0, -2.0])], [torch.tensor([0.3, 0.4])]
    plain = ascent(weights, gradients, RHO, adaptive=True)
    scaled = ascent(weights, [65536 * gradients[0]], RHO, adaptive=True)
    torch.testing.assert_close(plain, scaled)
    assert torch.equal(ascent(weights, [torch.zeros(2)], RHO, adaptive=False)[0], torch.zeros(2))


def test_adaptive_steps_do_not_change_when_layers_are_rescaled() -> None:
    """The point of ASAM: w · v is the same for (10 w, v / 10), and so is what it looks at (but for its 0.01)."""
    first, second = torch.tensor([2.0]), torch.tensor([3.0])

    def product(w: Tensor, v: Tensor, *, adaptive: bool) -> float:
        changes = ascent([w, v], [v, w], RHO, adaptive=adaptive)
        return float((w + changes[0]) * (v + changes[1]))

    pairs = [(first, second), (10 * first, second / 10)]
    adaptive = [product(w, v, adaptive=True) for w, v in pairs]
    plain = [product(w, v, adaptive=False) for w, v in pairs]
    assert adaptive[0] == pytest.approx(adaptive[1], rel=2e-3)
    assert plain[0] != pytest.approx(plain[1], rel=0.1)


def test_batch_norm_statistics_are_those_of_the_weights_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    x, y = torch.randn(6, 4), torch.randint(0, 2, (6,))
    loss_of(model, x, y).backward()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ascended(model, 1.0, adaptive=False):
        loss_of(model, x, y).backward()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_weights_come_back_after_an_error() -> None:
    model = nn.Linear(2, 2)
    loss_of(model, torch.ones(3, 2), torch.tensor([0, 1, 0])).backward()
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="any"), ascended(model, 1.0, adaptive=False):
        raise ValueError("any")
    assert torch.equal(model.weight.detach(), before)


def test_options_that_do_nothing_or_too_much_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.sam_adaptive needs optimizer.sam: got sam 0"):
        OptimizerConfig(sam_adaptive=True)
    with pytest.raises(ConfigError, match=r"optimizer.sam is out of range: got 11"):
        OptimizerConfig(sam=11)
