"""Corruptions are those that were published: the same pixels from the same random numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published import STEPS, PublishedDraws, picture, published

from answers import last_answer
from factories import make_bundle, pixels
from vivace.cli import main
from vivace.errors import ConfigError
from vivace.evaluation.evaluate import evaluate
from vivace.prediction import Predictor
from vivace.robustness.corruptions.constants import FAMILIES, LEFT_OUT, SETS, SEVERITIES
from vivace.robustness.corruptions.corrupt import CHUNK, NAMES, corrupt, corrupted
from vivace.robustness.corruptions.draws import Draws
from vivace.robustness.under_corruptions import measure_corruptions

# random parts make these equal in distribution; given the same numbers they are equal too
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "fog"} | {
    "elastic_transform"
}


@pytest.mark.parametrize("side", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_given_the_same_random_numbers_pixels_are_the_published_ones_within_a_level(name: str, side: int) -> None:
    image = torch.from_numpy(picture(side)).permute(2, 0, 1)[None].contiguous()
    for severity, expected in zip(SEVERITIES, published(side, name), strict=True):
        ours = corrupted(image, name, severity, PublishedDraws(100 * severity + 7, name))[0].permute(1, 2, 0).numpy()
        levels = np.abs(ours[:: STEPS[side], :: STEPS[side]].astype(int) - expected.astype(int))
        # one level: float64 there and float32 here are truncated; two: glass truncates twice
        assert levels.max() <= (2 if name == "glass_blur" else 1), (severity, levels.max())
        assert (levels > 0).mean() < 0.2


def test_the_table_is_the_published_one_but_for_frost() -> None:
    assert len(NAMES) + len(LEFT_OUT) == 15
    assert LEFT_OUT == ("frost",)
    assert set(FAMILIES) == {"noise", "blur", "weather", "digital"}
    for constants in SETS:
        assert set(constants.of) == set(NAMES)
        assert {len(values) for values in constants.of.values()} == {5}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_corrupted_as_its_images_are_alone(name: str, channels: int) -> None:
    """With the same random numbers for each image, those of the second are what it gets alone."""
    images_BCHW = torch.from_numpy(pixels(3, 40, channels)).permute(0, 3, 1, 2).contiguous()

    class Repeated(Draws):
        """Every image has the numbers of the first."""

        def normal(self, *shape: int) -> torch.Tensor:
            return super().normal(1, *shape[1:]).expand(*shape)

        def uniform(self, *shape: int) -> torch.Tensor:
            return super().uniform(1, *shape[1:]).expand(*shape)

        def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
            return super().integers(low, high, 1, *shape[1:]).expand(*shape)

        def poisson(self, rates: torch.Tensor) -> torch.Tensor:
            return rates.round()

    together = corrupted(images_BCHW, name, 4, Repeated((1,), torch.device("cpu")))
    alone = corrupted(images_BCHW[1:2], name, 4, Repeated((1,), torch.device("cpu")))
    assert together.shape == images_BCHW.shape
    assert together.dtype == torch.uint8
    assert (together[1].int() - alone[0].int()).abs().max() <= 1


def test_the_same_seed_gives_the_same_images_and_another_one_others() -> None:
    images = pixels(4)
    for name in NAMES:
        first, second = corrupt(images, name, 3), corrupt(images, name, 3)
        np.testing.assert_array_equal(first, second)
        assert first.shape == images.shape
        assert (corrupt(images, name, 3, seed=1) != first).any() == (name in RANDOM), name


def test_images_do_not_share_their_noise_nor_depend_on_those_after_them() -> None:
    images = np.full((CHUNK + 2, 8, 8, 3), 128, np.uint8)
    noisy = corrupt(images, "gaussian_noise", 5)
    assert len(np.unique(noisy, axis=0)) == len(images)
    np.testing.assert_array_equal(corrupt(images[:CHUNK], "gaussian_noise", 5), noisy[:CHUNK])
    assert noisy.astype(float).std() == pytest.approx(25.5, rel=0.02)
    assert corrupt(images[:0], "fog", 1).shape == (0, 8, 8, 3)


def test_what_is_no_image_or_corruption_is_refused() -> None:
    with pytest.raises(ConfigError, match="corruption is unknown: got 'frosty'"):
        corrupt(pixels(1), "frosty", 1)
    with pytest.raises(ConfigError, match="a severity is 1, 2, 3, 4 or 5: got 6"):
        corrupt(pixels(1), "fog", 6)
    with pytest.raises(ConfigError, match=r"uint8 images \[N, H, W, C\] in grey or RGB: got uint8 \[1, 32, 32, 4\]"):
        corrupt(pixels(1, channels=4), "fog", 1)


def test_accuracy_is_that_of_the_predictor_on_the_corrupted_images(tmp_path: Path) -> None:
    predictor = Predictor(make_bundle(tmp_path / "bundle"), device="cpu")
    images = pixels(20)
    labels = predictor.probs(images).argmax(1)
    seen: list[tuple[int, int]] = []
    found = measure_corruptions(predictor, images, labels, seed=5, progress=lambda *done: seen.append(done))
    assert found.clean.accuracy == 1
    cell = (predictor.probs(corrupt(images, "contrast", 5, seed=5)).argmax(1) == labels).mean()
    assert found.cells["contrast"][4] == pytest.approx(cell)
    assert found.mean.accuracy == pytest.approx(np.mean(list(found.cells.values())))
    assert found.families["noise"].accuracy == pytest.approx(np.mean([found.cells[n] for n in FAMILIES["noise"]]))
    assert found.severities["2"].accuracy == pytest.approx(np.mean([cells[1] for cells in found.cells.values()]))
    assert found.mean.low < found.mean.accuracy < found.mean.high < 1
    assert (found.constants, found.num_images, found.left_out) == ("CIFAR-10-C", 20, ("frost",))
    assert seen[-1] == (70, 70)


def test_evaluate_measures_corruptions_of_some_images(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, folder = make_bundle(tmp_path / "bundle"), make_folder(per_class=4)
    assert evaluate(bundle, folder, device="cpu").corruptions is None
    options = ["--corruptions", "--corruption-images", "5", "--quiet", "--device", "cpu"]
    assert main(["evaluate", str(bundle.folder), str(folder), *options]) == 0
    text = capsys.readouterr().out
    assert "under corruptions: 5 images, 14 corruptions at 5 severities of CIFAR-10-C" in text
    assert "left out: frost" in text
    assert main(["evaluate", str(bundle.folder), str(folder), *options, "--json"]) == 0
    found = last_answer(capsys.readouterr().out)["corruptions"]
    assert found["num_images"] == 5
    assert json.dumps(found["mean"]) in json.dumps(found)
    assert f"{100 * found['mean']['accuracy']:.2f} %" in text
    with pytest.raises(ConfigError, match="corruption_images"):
        evaluate(bundle, folder, corruptions=True, corruption_images=0)
    with pytest.raises(ConfigError, match="seed is out of range: got -1"):
        evaluate(bundle, folder, seed=-1)
