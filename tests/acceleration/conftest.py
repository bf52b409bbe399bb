"""A bundle of each kind that the tests of this folder start from: trained once, for nothing here changes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colours import colour_folder
from vivace.bundle import Bundle, load_bundle
from vivace.training.run import train


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int]], tuple[Bundle, Path]]:
    """trained_once((8, 16)): a bundle of these widths, and its data: 40 images a class to train on, as many to test."""
    data = colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=40, splits=("train", "test"))
    made: dict[tuple[int, int], Bundle] = {}

    def trained(widths: tuple[int, int]) -> tuple[Bundle, Path]:
        if widths not in made:
            arguments = {"widths": list(widths), "depth": 1}
            result = train(
                data,
                epochs=4,
                overrides={"batch_size": 16, "precision": "fp32", "model.arguments": arguments},
                run=tmp_path_factory.mktemp("runs") / "run",
                tune=False,
                quiet=True,
            )
            made[widths] = load_bundle(result.bundle)
        return made[widths], data

    return trained


@pytest.fixture
def trained(trained_once: Callable[..., Any]) -> tuple[Bundle, Path]:
    """A bundle, and its data: 40 images a class to train on, as many to test on."""
    bundle, data = trained_once((8, 16))
    return bundle, data
