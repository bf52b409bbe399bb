"""What a session is made of."""

from __future__ import annotations

import numpy as np

from vivace.training.build import _channel_statistics


def test_channel_statistics_are_those_of_all_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8)
    images[..., 1] //= 3
    mean, std = _channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)
