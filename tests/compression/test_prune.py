"""Structured pruning: what is least missed for a millisecond goes, the rest computes as before, and builds again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vivace.compression.prune import layer_milliseconds, prune
from vivace.errors import ModelError
from vivace.models.narrowing import narrow, narrowed_layers
from vivace.models.normalize import Normalize
from vivace.models.zoo import create_model, forward_flops

NORMALIZE = Normalize((0.5,) * 3, (0.25,) * 3)


def images(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), rng.integers(0, 4, count)


@pytest.mark.parametrize("name", ["timm/resnet18", "fast_photo", "timm/mobilenetv3_small_050"])
def test_a_pruned_network_has_fewer_operations_and_builds_again_from_names_and_numbers(name: str) -> None:
    model = create_model(name, 4, size=64).eval()
    before = forward_flops(model, in_channels=3, size=64)
    pruned = prune(model, NORMALIZE, *images(8, 64), shares=[0.7, 0.4])
    flops = [forward_flops(pruned[share].model, in_channels=3, size=64) for share in pruned]
    assert pruned
    assert before > flops[0] >= flops[-1]
    # what is given is not changed
    assert forward_flops(model, in_channels=3, size=64) == before
    smallest = pruned[min(pruned)].model
    again = create_model(name, 4, size=64)
    narrow(again, narrowed_layers(smallest, model))
    again.load_state_dict(smallest.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), smallest(x))
    assert smallest(x).shape == (2, 4)


def test_channels_that_do_nothing_go_first_and_nothing_changes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 4),
    ).eval()
    with torch.no_grad():
        # half of the first layer is not listened to
        model[2].weight[:, 32:] = 0
    pruned = prune(model, NORMALIZE, *images(8, 16), shares=[0.8])[0.8].model
    assert pruned[0].out_channels == 48
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_head_keeps_its_classes_and_a_residual_stream_its_width_in_a_transformer() -> None:
    model = create_model("timm/vit_tiny_patch16_224", 4, size=32, depth=2).eval()
    pruned = prune(model, NORMALIZE, *images(4, 32), shares=[0.8])[0.8].model
    assert pruned(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    narrowed = narrowed_layers(pruned, model)
    assert narrowed
    assert all(".mlp." in name for name in narrowed)


def test_a_network_without_channels_to_spare_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4))
    with pytest.raises(ModelError, match="nothing of a Sequential can be pruned"):
        prune(model, NORMALIZE, *images(4, 16), shares=[0.5])


def test_layers_are_timed_by_name() -> None:
    model = create_model("fast_photo", 4, size=64).eval()
    times = layer_milliseconds(model, torch.zeros(2, 3, 64, 64))
    names = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert set(times) == names
    assert all(value > 0 for value in times.values())
