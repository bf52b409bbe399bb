"""Factories of untrained bundles, and pixels for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.models.zoo import create_model

__all__ = ["make_bundle", "pixels"]


def make_bundle(folder: Path, name: str = "fast_cnn", *, size: int = 32, channels: int = 3, **arguments: Any) -> Bundle:
    """A bundle of an untrained network whose predictions still differ between images."""
    torch.manual_seed(0)
    model = create_model(name, 3, in_channels=channels, size=size, **arguments)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, channels, size, size))
    preprocess = Preprocess(
        size=size, store_size=size, channels=channels, mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.3, 0.1)[:channels]
    )
    info = BundleInfo(
        architecture=Architecture(name=name, num_classes=3, in_channels=channels, size=size, arguments=arguments),
        classes=("blue", "green", "red"),
        preprocess=preprocess,
        precision="bf16",
        metrics={"val": {"top1": 0.5}},
    )
    return save_bundle(folder, model, info)


def pixels(count: int, size: int = 32, channels: int = 3) -> np.ndarray:
    """uint8 [count, size, size, channels], random."""
    return np.random.default_rng(1).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
