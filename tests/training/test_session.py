"""What a session is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from killing import Killed, die_after
from same_weights import assert_same_weights

from vivace.errors import ConfigError
from vivace.training.loop.arrays import _channel_statistics
from vivace.training.loop.step import Stepper
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


def test_channel_statistics_are_those_of_all_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8)
    images[..., 1] //= 3
    mean, std = _channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_a_start_size_that_the_network_pools_to_nothing_is_refused_before_training(run_tiny: RunTiny) -> None:
    changes = {"augment.start_size": 8, "model.name": "simple_cnn", "model.arguments": {}, "data.size": 32}
    changes["data.store_size"] = 32
    with pytest.raises(ConfigError, match=r"augment\.start_size is too small for simple_cnn: got 8"):
        run_tiny(changes=changes)


def test_images_that_grow_are_trained_on_and_resumed_bitwise(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []
    plain = Stepper._gradients

    def spy(self: Stepper, images_BCHW: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sides.append(images_BCHW.shape[-1])
        return plain(self, images_BCHW, *rest)

    monkeypatch.setattr(Stepper, "_gradients", spy)
    changes = {"augment.start_size": 8, "augment.full_size_from": 0.9}
    unbroken = run_tiny("unbroken", changes)
    assert sides[0] == 8
    assert sides[-1] == 16
    assert sides == sorted(sides)
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", changes)
    assert_same_weights(unbroken, run_tiny("killed", resume=True))
