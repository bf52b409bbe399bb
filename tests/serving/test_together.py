"""Two bundles served together and asked by every kind of client: tests/soak/together.py at a small size."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories import make_bundle
from vivace.bundle import Bundle, save_bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "soak"))
import together


def pictures(folder: Path, size: tuple[int, int], suffix: str) -> Path:
    """Four pictures of noise in bands of colour."""
    rng = np.random.default_rng(size[0])
    folder.mkdir()
    for number in range(4):
        pixels_HWC = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        pixels_HWC[:, :: number + 2] = 255 * (number % 2)
        Image.fromarray(pixels_HWC).save(folder / f"{number}{suffix}")
    return folder


def with_classes(bundle: Bundle, folder: Path) -> Path:
    """The same network with other classes, so that no answer of another bundle passes for its own."""
    info = dataclasses.replace(bundle.info, classes=("daisy", "rose", "tulip"))
    return save_bundle(folder, bundle.build_model(), info).folder


def has_browser() -> bool:
    from browsing import program

    return program() is not None


def test_every_kind_of_client_gets_the_answers_of_the_bundle_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace.exporting.export import export

    needed = {
        "curl": shutil.which("curl"),
        "tritonclient over HTTP": find_spec("tritonclient"),
        "tritonclient over gRPC": find_spec("tritonclient"),
        "InferenceClient": find_spec("huggingface_hub"),
        "the page in Chromium": find_spec("websockets") and has_browser(),
    }
    clients = {name: ask for name, ask in together.CLIENTS.items() if needed[name]}
    if len(clients) < 2 or not find_spec("uvloop"):
        pytest.skip("needs two of curl, tritonclient, huggingface_hub and Chromium, and uvloop")
    # like CIFAR-10's, and like photos of flowers
    small = make_bundle(tmp_path / "small", widths=[8], depth=1, size=32).folder
    large = make_bundle(tmp_path / "large", widths=[8, 16], depth=1, size=96).folder
    export(small, "onnx", tmp_path / "small-onnx")
    export(large, "openvino" if find_spec("openvino") else "onnx", tmp_path / "large-graph")
    bundles = [
        together.asked("small", tmp_path / "small-onnx", pictures(tmp_path / "a", (32, 32), ".png"), 4),
        together.asked("large", tmp_path / "large-graph", pictures(tmp_path / "b", (120, 90), ".jpg"), 4),
    ]
    assert together.together(bundles, 0.5, clients) == []
    told = capsys.readouterr().out
    for name in clients:
        assert f"{name}, small: 4 of 4 as by a Predictor" in told
        assert f"{name}, large: 4 of 4 as by a Predictor" in told
    # an answer that differs is seen
    one = bundles[0]
    wrong = together.Asked(one.name, one.folder, one.images, one.files, tuple({"nothing": 1.0} for _ in one.files))
    assert not wrong.agrees(0, next(iter(one.expected[0])))
