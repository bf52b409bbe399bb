"""Heat maps of a bundle: in Python, as pictures of predictions and of mistakes, and in the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vivace
from answers import last_answer
from factories import make_bundle, pixels
from vivace.bundle import Bundle, load_bundle
from vivace.cli import main
from vivace.errors import ConfigError, OutputPathError
from vivace.heatmaps.mapper import HeatMapper
from vivace.heatmaps.mistakes import heat_of
from vivace.heatmaps.overlay import overlaid
from vivace.metrics.measured import Measured


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """An untrained network whose last map has 4 × 4 places."""
    return make_bundle(tmp_path / "net", widths=[8, 16, 16], depth=1)


def codeless(bundle: Bundle) -> Bundle:
    """As if its network were one of the user's own, whose code is not at hand."""
    architecture = dataclasses.replace(bundle.info.architecture, name="own/nets.py:Net")
    return dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, architecture=architecture))


def test_python_gives_a_map_of_the_predicted_class_or_of_one_that_is_named(bundle: Bundle) -> None:
    images = pixels(3)
    found = vivace.heat_maps(bundle, list(images), batch_size=2)
    expected = vivace.Predictor(bundle, device="cpu")(list(images))
    assert [one.label for one in found] == [row.label for row in expected]
    assert [one.name for one in found] == ["image 0", "image 1", "image 2"]
    for one, image in zip(found, images, strict=True):
        assert (one.method, one.layer) == ("Grad-CAM", "groups.2.3")
        assert (one.values.shape, one.values.dtype, one.values.min() >= 0) == ((4, 4), np.float32, True)
        assert one.values.max() == pytest.approx(1)
        np.testing.assert_array_equal(one.image, image)
        # two panels of 32 px, seven times as large, with a gap
        assert one.picture().size == (2 * 224 + 4, 224)
    named = vivace.heat_maps(bundle, images[0], label="red")
    assert [(one.label, one.probability < 1) for one in named] == [("red", True)]
    assert not np.array_equal(named[0].values, vivace.heat_maps(bundle, images[0], label="blue")[0].values)
    with pytest.raises(ConfigError, match=r"label is no class of the bundle: got 'rde'\. Did you mean 'red'"):
        vivace.heat_maps(bundle, images[0], label="rde")


def test_a_bundle_without_the_code_of_its_network_is_refused_and_says_what_helps(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"holds the graph of nets\.py:Net alone\. Give the code"):
        HeatMapper(codeless(bundle))
    measured = Measured(
        split="test",
        probs_NK=np.eye(3, dtype=np.float32)[[0, 1]],
        labels_N=np.array([1, 1]),
        names=["a", "b"],
        images=lambda rows: pixels(2)[rows],
    )
    # a report is written without them
    assert "Give the code" in str(heat_of(codeless(bundle), measured).missing)
    assert list(heat_of(bundle, measured, device="cpu").pictures) == [0]


def test_predictions_are_drawn_beside_their_heat_maps(
    bundle: Bundle, make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = make_folder(per_class=1), tmp_path / "heat"
    options = ["predict", str(bundle.folder), str(photos), "--device", "cpu", "--quiet"]
    assert main([*options, "--heat-maps", str(out), "--json"]) == 0
    rows = last_answer(capsys.readouterr().out)["predictions"]
    assert sorted(row["heat_map"] for row in rows) == sorted(str(path) for path in out.iterdir())
    assert [Path(row["heat_map"]).name for row in rows] == [
        f"{number}-{Path(row['path']).stem}.png" for number, row in enumerate(rows, start=1)
    ]
    with Image.open(rows[0]["heat_map"]) as picture:
        assert picture.size == (2 * 224 + 4, 224)
    # the same again replaces its own pictures, and no other file
    assert main([*options, "--heat-maps", str(out)]) == 0
    assert f"heat maps in {out}" in capsys.readouterr().err
    Path(rows[1]["heat_map"]).write_bytes(b"mine")
    with pytest.raises(OutputPathError, match="exists already"):
        vivace.predict(bundle, photos, device="cpu", heat_maps=out)
    assert Path(rows[1]["heat_map"]).read_bytes() == b"mine"
    with pytest.raises(OutputPathError, match="inside the data"):
        vivace.predict(bundle, photos, device="cpu", heat_maps=photos / "heat")


def test_mistakes_are_drawn_with_what_speaks_for_both_classes_and_the_maps_are_tested(
    bundle: Bundle, make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = make_folder(per_class=4), tmp_path / "heat"
    options = ["evaluate", str(bundle.folder), str(photos), "--device", "cpu", "--quiet", "--heat-maps", str(out)]
    assert main([*options, "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    made = answer["heat_maps"]
    assert (made["method"], made["layer"], made["side"]) == ("Grad-CAM", "groups.2.3", 4)
    assert made["num_pictures"] == len(answer["mistakes"]) == len(list(out.iterdir())) > 0
    with Image.open(answer["mistakes"][0]["heat_map"]) as picture:
        assert picture.size == (3 * 224 + 2 * 4, 224)
    check = made["check"]
    assert check["num_images"] == 12
    assert check["beat_random_low"] <= check["beat_random"] <= check["beat_random_high"]
    # of another network, which made more mistakes
    (out / "99-mistake.png").write_bytes(b"earlier")
    assert main(options) == 0
    shown = capsys.readouterr()
    told = shown.out
    assert f"other pictures in {out} stay, and show nothing of this evaluation: 1" in shown.err
    assert f"heat maps: {made['num_pictures']} pictures in {out}" in told
    assert "Grad-CAM of groups.2.3, 4 x 4 places, in float32" in told
    with pytest.raises(OutputPathError, match="inside the data"):
        vivace.evaluate(bundle, photos, device="cpu", heat_maps=photos / "blue")


def test_an_overlay_is_the_grey_image_with_more_colour_where_the_map_is_warm() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    shown = overlaid(image, np.array([[0.0, 0.0], [0.0, 1.0]], np.float32))
    # 15 % of blue over the grey; 75 % of yellow
    assert shown[0, 0].tolist() == [85, 102, 112]
    assert shown[-1, -1].tolist() == pytest.approx([205, 196, 74.5], abs=0.6)
    grey = overlaid(image[..., :1], np.zeros((2, 2), np.float32))
    assert (grey == shown[0, 0]).all()


def test_bundles_of_other_runtimes_and_pixels_have_maps_of_their_float32_network(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "grey", widths=[8, 8], depth=1, channels=1)
    (found,) = vivace.heat_maps(load_bundle(bundle.folder), pixels(1, channels=1))
    assert found.picture().mode == "RGB"
    assert found.image.shape == (32, 32, 1)
