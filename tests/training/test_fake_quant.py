"""Fake quantization: which values come out, that gradients pass, and that a run learns to live with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vivace.bundle import load_bundle
from vivace.errors import ConfigError
from vivace.kernels.pooled import convolve_and_pool
from vivace.training.result import TrainResult
from vivace.training.techniques.fake_quant import FakeQuantization, fake_quantize_activation, fake_quantize_weight

RunTiny = Callable[..., TrainResult]


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shift", "levels"), [(0.0, 127), (5.0, 255), (-5.0, 127)])
def test_activations_are_one_of_256_values_no_further_than_half_a_step(shift: float, levels: int) -> None:
    x = (tensor(4, 3, 16, 16) + shift).requires_grad_()
    rounded = fake_quantize_activation(x)
    # symmetric where there are negative ones; 0 is one of the values: padding stays what it is
    step = x.abs().max().item() / levels
    assert (rounded - x).abs().max() <= step * 0.501
    steps = rounded.detach().unique() / step
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert steps.abs().max() <= levels + 1e-3
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.eq(1).all()
    assert fake_quantize_activation(torch.zeros(2, 2)).eq(0).all()
    assert fake_quantize_activation(x.bfloat16()).dtype == torch.bfloat16


def test_each_output_channel_of_a_weight_has_its_own_step() -> None:
    weight = tensor(5, 3, 3, 3) * torch.tensor([1e-3, 0.1, 1.0, 10.0, 0.0]).view(5, 1, 1, 1)
    rounded = fake_quantize_weight(weight)
    for channel in range(4):
        step = weight[channel].abs().max() / 127
        assert (rounded[channel] - weight[channel]).abs().max() <= step * 0.501
        levels = rounded[channel] / step
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert rounded[4].eq(0).all()


def test_layers_compute_with_rounded_tensors_while_it_is_entered() -> None:
    conv, linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
    images = tensor(2, 3, 8, 8)

    def forward() -> torch.Tensor:
        out: torch.Tensor = linear(conv(images).mean((2, 3)))
        return out

    plain = forward()
    with FakeQuantization():
        rounded = forward()
    hidden = nn.functional.conv2d(
        fake_quantize_activation(images), fake_quantize_weight(conv.weight), conv.bias, padding=1
    ).mean((2, 3))
    expected = fake_quantize_activation(hidden) @ fake_quantize_weight(linear.weight).T + linear.bias
    torch.testing.assert_close(rounded, expected)
    assert not torch.equal(rounded, plain)
    assert torch.equal(forward(), plain)
    rounded.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*conv.parameters(), *linear.parameters()])


def test_a_convolution_asked_for_with_its_pooling_is_given_rounded_tensors_too() -> None:
    x, weight = tensor(2, 3, 8, 8), tensor(4, 3, 3, 3, seed=1)
    seen: list[torch.Tensor] = []

    class Both(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is convolve_and_pool:
                seen.extend(args)
                return nn.functional.max_pool2d(nn.functional.conv2d(*args, padding=1), 2)
            return func(*args, **(kwargs or {}))

    with Both(), FakeQuantization():
        out = convolve_and_pool(x, weight)
    assert out is not None
    assert torch.equal(seen[0], fake_quantize_activation(x))
    assert torch.equal(seen[1], fake_quantize_weight(weight))
    with FakeQuantization():
        assert convolve_and_pool(x, weight) is None, "nobody does both"


def test_a_run_that_rounds_learns_other_weights(run_tiny: RunTiny) -> None:
    plain, rounded = run_tiny("plain", epochs=1), run_tiny("rounded", {"fake_quant": True}, epochs=1)
    assert load_bundle(rounded.bundle).info.recipe["fake_quant"] is True
    weights = [load_bundle(result.bundle).build_model().state_dict() for result in (plain, rounded)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_compiler_does_not_see_what_is_rounded(run_tiny: RunTiny) -> None:
    with pytest.raises(ConfigError, match="fake_quant can't be compiled: got compile true"):
        run_tiny("compiled", {"fake_quant": True, "compile": True})
