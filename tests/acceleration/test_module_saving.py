"""The result of a search for a faster module as a bundle: it answers alike, without code, or the reason is said."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_modules import SPEEDS, Net, accelerate, exact, labelled, made, tell_speeds
from torch import Tensor, nn

import vivace
from vivace.acceleration.modules import trials as trials_module
from vivace.bundle import load_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, ExportError, ModelError, OutputPathError, VivaceError
from vivace.notices import collected_warnings
from vivace.runtimes.loading import load_runtime

NORMALISED = {"mean": 0.5, "std": (0.25, 0.25, 0.25)}


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    tell_speeds(monkeypatch)


def pixels(count: int = 320, shape: tuple[int, ...] = (12, 12, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def normalised(pixels_NHWC: np.ndarray) -> Tensor:
    return (torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def photos(batch: int = 32) -> list[Tensor]:
    return list(normalised(pixels()).split(batch))


def same_class(outputs: Any, original: Any) -> Tensor:
    return logits_of(outputs).argmax(1) == logits_of(original).argmax(1)


def logits_of(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def probs_of(folder: Path, images: np.ndarray) -> np.ndarray:
    bundle = load_bundle(folder)
    info = bundle.info
    return load_runtime(info.runtime, bundle, device=torch.device("cpu"), precision=info.precision)(images)


@dataclasses.dataclass
class Output:
    hidden: Tensor
    logits: Tensor


class Rich(Net):
    def forward(self, images: Tensor) -> Any:
        logits = self.body(images)
        return Output(logits.exp(), logits)


@pytest.mark.parametrize(("kind", "metric", "precision"), [(Net, same_class, "int8"), (Rich, None, "fp32")])
def test_a_saved_bundle_answers_as_the_drop_in(kind: Any, metric: Any, precision: str, tmp_path: Path) -> None:
    if metric is None:
        metric = lambda outputs, original: exact(outputs.logits, original.logits)  # noqa: E731
    result = accelerate(made(kind), photos(), metric=metric)
    assert (result.runtime, result.precision) == ("openvino", precision)
    folder = result.save(tmp_path / "saved", classes=["a", "b", "c", "d"], **NORMALISED)
    info = vivace.load(folder).info
    assert (info.runtime, info.precision, info.classes) == ("openvino", precision, ("a", "b", "c", "d"))
    others = pixels(40)[20:]
    with torch.no_grad():
        expected = logits_of(result.module(normalised(others))).softmax(1).numpy()
    assert np.abs(probs_of(folder, others) - expected).max() < (0.02 if precision == "int8" else 1e-5)
    report = json.loads((folder / "acceleration.json").read_text())
    assert report["drop_bound"] == result.drop_bound
    # what stands for the network is there too, for other runtimes
    portable = vivace.export(folder, "onnx", tmp_path / "portable").path
    assert np.abs(probs_of(portable, others) - expected).max() < (0.1 if precision == "int8" else 1e-5)


def test_what_is_not_faster_is_saved_as_it_is(tmp_path: Path) -> None:
    module = made(Net).train()
    result = accelerate(module, photos(), within=0.05)
    assert result.module is module
    folder = result.save(tmp_path / "saved", **NORMALISED)
    info = vivace.load(folder).info
    assert (info.runtime, info.precision) == ("onnx", "fp32")
    with torch.no_grad():
        expected = made(Net)(normalised(pixels(8))).softmax(1).numpy()
    assert np.abs(probs_of(folder, pixels(8)) - expected).max() < 1e-5
    assert module.training


@pytest.mark.usefixtures("without_int8")
def test_a_program_that_takes_code_is_replaced_by_the_graph_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(SPEEDS, "eager bf16", 9.0)
    result = accelerate(made(Net), photos(), metric=same_class, thorough=True)
    assert (result.runtime, result.precision) == ("eager", "bf16")
    with collected_warnings() as said:
        folder = result.save(tmp_path / "saved", **NORMALISED)
    assert vivace.load(folder).info.runtime == "onnx"
    for line in (
        "eager in bf16 takes the network's own code, which no bundle holds: the bundle computes by ONNX Runtime",
        'the classes are called "0" to "3"',
        "an image file is cut to its central square and resized to 12 px (bilinear)",
    ):
        assert any(line in one for one in said), line


@pytest.mark.usefixtures("without_int8")
def test_image_files_are_seen_as_the_data_were(tmp_path: Path) -> None:
    module = made(Net)
    result = accelerate(module, labelled(module, photos()))
    with_margin = Preprocess(size=12, store_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    folder = result.save(tmp_path / "saved", preprocess=with_margin)
    (image,) = pixels(1, (16, 16, 3))
    Image.fromarray(image).save(tmp_path / "one.png")
    found = vivace.load(folder)(tmp_path / "one.png")
    with torch.no_grad():
        expected = result.module(normalised(image[None, 2:-2, 2:-2])).argmax(1)
    assert found.label == str(int(expected))
    # what was proven is what it says of itself
    assert vivace.load(folder).info.metrics["certify"]["top1"] == result.score_after


@pytest.mark.usefixtures("without_int8")
def test_a_saved_bundle_imports_no_code(tmp_path: Path) -> None:
    result = accelerate(made(Net), photos(), metric=same_class)
    folder = result.save(tmp_path / "saved", **NORMALISED)
    bundle = vivace.load(folder)
    assert bundle.info.architecture.name == "own/small_modules.py:Net"
    with pytest.raises(BundleError, match="the network's code is needed, and a bundle holds none"):
        bundle.build_model()
    # where a module of that name would be imported from
    (tmp_path / "modules.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    program = (
        "import sys, numpy, vivace\n"
        "print(vivace.load('saved')(numpy.zeros((12, 12, 3), numpy.uint8)).label in '0123', 'modules' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]
    assert not (tmp_path / "imported").exists()


def test_only_a_bundle_is_replaced(tmp_path: Path) -> None:
    result = accelerate(made(Net), photos(), within=0.05)
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputPathError, match=r"`folder` holds something other than a bundle .* 'thesis.txt'"):
        result.save(tmp_path, **NORMALISED)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    result.save(tmp_path / "saved", **NORMALISED)
    with collected_warnings() as said:
        result.save(tmp_path / "saved", classes=list("abcd"), **NORMALISED)
    assert any("replaced a bundle that vivace wrote earlier" in one for one in said)
    assert vivace.load(tmp_path / "saved").classes == tuple("abcd")


class Two(Net):
    def forward(self, images: Tensor, scale: Tensor) -> Tensor:
        return self.body(images) * scale


class Map(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body[0](images)


class Pair(Net):
    def forward(self, images: Tensor) -> Any:
        return self.body(images), self.body(images).exp()


class Probs(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).softmax(1)


class Flag(Net):
    def forward(self, images: Tensor, *, plain: bool = True) -> Tensor:
        return self.body(images if plain else -images)


class Four(Net):
    def __init__(self) -> None:
        super().__init__(4)


def of_sizes() -> list[Tensor]:
    return [normalised(pixels(8, (side, side, 3))) for side in (12, 14, 16, 12, 14, 16, 12, 14)]


@pytest.mark.parametrize(
    ("kind", "data", "error", "message"),
    [
        (Two, lambda: [((one, torch.ones(1)), None) for one in photos()], ExportError, "it is called with 2 tensors"),
        (Flag, lambda: [({"images": one, "plain": False}, None) for one in photos()], ExportError, "more than images"),
        (Map, photos, ExportError, r"it returns no logits \[32, classes\]: got float32 \[32, 8, 12, 12\]"),
        (Pair, photos, ExportError, "it returns no logits: got tuple"),
        (Probs, photos, ModelError, "gives probabilities: its outputs are not negative and sum to 1"),
        (Net, of_sizes, ExportError, "its inputs differ in size from batch to batch"),
        (
            Net,
            lambda: normalised(pixels(64, (12, 16, 3))).split(8),
            ExportError,
            "a bundle takes square images: got a module for 12 x 16",
        ),
        (Four, lambda: torch.rand(64, 4, 12, 12).split(8), ExportError, "images of 1 or 3 channels: got 4"),
    ],
)
def test_what_is_no_image_classifier_is_refused(
    kind: type[nn.Module], data: Callable[[], Any], error: type[VivaceError], message: str, tmp_path: Path
) -> None:
    result = accelerate(made(kind), data(), within=0.05)
    with pytest.raises(error, match=message) as caught:
        result.save(tmp_path / "saved", **NORMALISED)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "saved").exists()


class Random(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) + torch.rand(1)


def test_what_cannot_be_replaced_cannot_be_saved(tmp_path: Path) -> None:
    result = accelerate(made(Random), photos())
    with pytest.raises(ExportError, match="status is unsupported can't be saved as a bundle: its outputs are random"):
        result.save(tmp_path / "saved", **NORMALISED)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "how pixels become the module's input is not known"),
        ({"mean": 0.5}, "how pixels become the module's input is not known"),
        ({"mean": 0, "std": 1}, "not normalised by mean 0 and std 1: with these undone they go from -2.00 to 2.00"),
        ({"mean": (0.5, 0.5), "std": 0.25}, "`mean` does not fit 3 channels"),
        ({"mean": 0.5, "std": 0}, r"preprocess\.std must be positive"),
        ({"preprocess": "imagenet"}, "`preprocess` is no vivace Preprocess: got 'imagenet'"),
        ({"preprocess": Preprocess(size=24, store_size=24)}, "for 3 channels of 24 px, and the module takes 3 of 12"),
        ({"preprocess": Preprocess(size=12, store_size=12), "mean": 0}, "`preprocess` has mean and std itself"),
        ({**NORMALISED, "classes": ["a", "b"]}, "do not fit the module's 4 outputs: got 2, 2 of them different"),
        ({**NORMALISED, "classes": ["a", "b", "c", "a"]}, "got 4, 3 of them different"),
        ({**NORMALISED, "classes": "abcd"}, "`classes` are no names: got 'abcd'"),
        ({**NORMALISED, "classes": 4}, "`classes` are no names: got 4"),
        ({**NORMALISED, "classes": {"a", "b", "c", "d"}}, "`classes` are no names: got "),
        ({**NORMALISED, "classes": ["a", "b", "c", " "]}, "`classes` are no names: got "),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused(keywords: dict[str, Any], message: str, tmp_path: Path) -> None:
    result = accelerate(made(Net), photos(), within=0.05)
    with pytest.raises(ConfigError, match=message):
        result.save(tmp_path / "saved", **keywords)
    assert not (tmp_path / "saved").exists()


def test_a_normalisation_that_hardly_uses_the_scale_is_said(tmp_path: Path) -> None:
    faint = [one * 0.05 for one in photos()]
    with collected_warnings() as said:
        accelerate(made(Net), faint, within=0.05).save(tmp_path / "saved", **NORMALISED)
    assert any("the pixels of the data only go from 0.47 to 0.53" in one for one in said)


@pytest.mark.usefixtures("without_int8")
def test_sets_of_labels_are_saved_as_such_if_that_is_said(tmp_path: Path) -> None:
    module = made(Net)
    with torch.no_grad():
        data = [(batch, (module(batch) > 0).float()) for batch in photos()]
    metric = lambda outputs, targets: ((outputs > 0) == targets.bool()).float().mean(1)  # noqa: E731
    result = accelerate(module, data, metric=metric)
    with pytest.raises(ConfigError, match="whether an image may have several is not known"):
        result.save(tmp_path / "saved", **NORMALISED)
    folder = result.save(tmp_path / "saved", multi_label=True, **NORMALISED)
    with torch.no_grad():
        expected = result.module(normalised(pixels(8))).sigmoid() >= 0.5
    found = vivace.load(folder)(list(pixels(8)))
    assert [one.labels for one in found] == [tuple(str(int(k)) for k in row.nonzero()) for row in expected]


@pytest.mark.usefixtures("without_int8")
def test_a_graph_for_one_batch_size_alone_is_written_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trials_module.Trials, "_of_another_size", lambda trials: None)
    result = accelerate(made(Net), photos(), metric=exact)
    assert (result.runtime, result.precision) == ("openvino", "fp32")
    with collected_warnings() as said:
        folder = result.save(tmp_path / "saved", **NORMALISED)
    assert any("takes one number of images alone" in one for one in said)
    assert vivace.load(folder).info.runtime == "onnx"
    assert probs_of(folder, pixels(3)).shape == (3, 4)
