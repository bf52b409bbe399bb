"""Of grey images a network is trained that looks at no colour: else a tint that no eye sees would be its answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.bundle import load_bundle
from vivace.evaluation.evaluate import evaluate
from vivace.training.dataset import all_grey
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]
TOLD = "all training images are grey: colours will not be looked at. `data.channels=3` keeps them"


def grey_folder(root: Path, *, tint: int = 0, count: int = 12, seed: int = 0) -> Path:
    """Stripes in two directions, saved as RGB whose three values are alike but for the tint."""
    rng = np.random.default_rng(seed)
    for label in ("across", "down"):
        (root / label).mkdir(parents=True)
        for index in range(count):
            stripes = 100 * (np.arange(24) // 3 % 2)[:, None] + np.zeros((24, 24), int) + 40
            stripes = stripes if label == "across" else stripes.T
            grey = stripes + rng.integers(0, 30, (24, 24))
            pixels = grey[..., None] + np.array([tint, 0, -tint])
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{index}.png")
    return root


def test_a_network_of_grey_images_answers_a_tinted_one_as_the_grey_one(run_tiny: RunTiny, tmp_path: Path) -> None:
    result = run_tiny(data=grey_folder(tmp_path / "grey"), epochs=6)
    assert TOLD in result.warnings
    bundle = load_bundle(result.bundle)
    assert (bundle.preprocess.channels, bundle.info.recipe["data"]["channels"]) == (1, 1)
    plain, tinted = (
        evaluate(bundle, grey_folder(tmp_path / f"tint{tint}", tint=tint, seed=1), split="all", device="cpu")
        for tint in (0, 16)
    )
    assert plain.top1 == tinted.top1 == 1


def test_a_resumed_run_has_the_channels_that_it_began_with(run_tiny: RunTiny, tmp_path: Path) -> None:
    data = grey_folder(tmp_path / "grey")
    run_tiny("run", data=data, epochs=1)
    result = run_tiny("run", data=data, epochs=2, resume=True)
    assert load_bundle(result.bundle).preprocess.channels == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_are_asked_for_are_kept(run_tiny: RunTiny, tmp_path: Path, channels: int) -> None:
    result = run_tiny(data=grey_folder(tmp_path / "grey"), overrides={"data.channels": channels}, epochs=1)
    assert load_bundle(result.bundle).preprocess.channels == channels
    assert TOLD not in result.warnings


def test_one_pixel_of_colour_is_enough_wherever_it_is(run_tiny: RunTiny, tmp_path: Path) -> None:
    data = grey_folder(tmp_path / "grey")
    image = Image.open(data / "down" / "11.png").convert("RGB")
    for x in range(24):
        image.putpixel((x, 12), (200, 10, 10))
    image.save(data / "down" / "11.png")
    # the whole of it is trained on
    (data / "train").mkdir()
    for name in ("across", "down"):
        (data / name).rename(data / "train" / name)
    grey_folder(data / "val", count=3, seed=2)
    result = run_tiny(data=data, epochs=1)
    assert load_bundle(result.bundle).preprocess.channels == 3
    assert TOLD not in result.warnings


@pytest.mark.parametrize("place", [0, 255, 256, 599])
def test_all_images_are_looked_at(place: int) -> None:
    images_NHWC = np.full((600, 4, 4, 3), 7, np.uint8)
    assert all_grey(images_NHWC)
    images_NHWC[place, 3, 3, 2] = 8
    assert not all_grey(images_NHWC)
    assert not all_grey(images_NHWC[:0])
