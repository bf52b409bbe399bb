"""int8 for Inductor: only ranges lie in the bundle, the graph is built anew, and integers are really multiplied."""

from __future__ import annotations

import builtins
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vivace.bundle import Architecture, Bundle, BundleInfo, derive_bundle, load_bundle, save_bundle
from vivace.compression.quantize import quantize_inductor
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, MissingExtra
from vivace.exporting.export import export
from vivace.models.zoo import create_model
from vivace.prediction import Predictor
from vivace.runtimes.int8 import RANGES, int8_graph
from vivace.runtimes.loading import load_runtime

pytest.importorskip("torchao", reason="int8 for Inductor needs torchao")

CPU = torch.device("cpu")


def pixels(num_images: int, seed: int = 0) -> np.ndarray:
    """Noise of a colour: classes that a network tells apart."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (num_images, 1, 1, 3))
    return np.clip(colours + rng.normal(0, 20, (num_images, 32, 32, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    arguments = {"widths": [16, 16], "depth": 1}
    model = create_model("fast_cnn", 4, size=32, **arguments).train()
    images = torch.from_numpy(pixels(64)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for _ in range(20):
            model(images)
        # answers that are far from each other, as a trained network's are
        model.head_scale = 1.0  # type: ignore[assignment]
        model.head.weight.mul_(3)  # type: ignore[operator, union-attr]
    info = BundleInfo(
        architecture=Architecture(name="fast_cnn", num_classes=4, arguments={**arguments, "head_scale": 1.0}),
        classes=("a", "b", "c", "d"),
        preprocess=Preprocess(size=32, store_size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )
    return save_bundle(tmp_path_factory.mktemp("plain") / "bundle", model, info)


@pytest.fixture(scope="module")
def ranges_of_it(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ranges of the bundle, measured once for all tests."""
    folder = tmp_path_factory.mktemp("ranges")
    quantize_inductor(bundle, folder, pixels(40))
    return folder


def quantized(bundle: Bundle, ranges: Path, folder: Path, runtime: str = "inductor") -> Bundle:
    def add(into: Path) -> BundleInfo:
        shutil.copyfile(ranges / RANGES, into / RANGES)
        return dataclasses.replace(bundle.info, runtime=runtime, precision="int8")

    return derive_bundle(bundle, folder, add)


def test_the_bundle_holds_ranges_and_the_graph_is_built_from_them_the_same_each_time(
    bundle: Bundle, ranges_of_it: Path, tmp_path: Path
) -> None:
    derived = load_bundle(quantized(bundle, ranges_of_it, tmp_path / "int8").folder)
    assert sorted(derived.files) == [RANGES, "model.safetensors", "sbom.cdx.json"]
    ranges = json.loads((derived.folder / RANGES).read_bytes())["activations"]
    assert len(ranges) >= 3
    for scale, zero_point in ranges.values():
        assert 0 < scale < 10
        assert 0 <= zero_point <= 255
    graph, example = int8_graph(derived)
    assert example.dtype == torch.uint8
    integers = {name for name, tensor in graph.state_dict().items() if tensor.dtype == torch.int8}
    # two convolutions and the head
    assert len(integers) == 3
    images = torch.from_numpy(pixels(32, seed=1))
    with torch.no_grad():
        probs, again = graph(images), int8_graph(derived)[0](images)
    torch.testing.assert_close(probs, again, rtol=0, atol=0)
    plain = load_runtime("eager", bundle, device=CPU, precision="fp32")(images.numpy())
    assert (probs.numpy().argmax(1) == plain.argmax(1)).mean() >= 0.9
    difference = np.abs(probs.numpy() - plain).max()
    # it is quantized, and by the right ranges
    assert 1e-5 < difference < 0.1


@pytest.mark.slow
def test_inductor_multiplies_integers(
    bundle: Bundle, ranges_of_it: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    predictor = Predictor(quantized(bundle, ranges_of_it, tmp_path / "int8"))
    assert (predictor.runtime, predictor.precision) == ("inductor", "int8")
    images = pixels(32, seed=1)
    probs = predictor.probs(images)
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        predictor.probs(images)
    ran = [line for line in capfd.readouterr().out.splitlines() if ",exec,cpu,convolution," in line]
    assert sum("src:u8" in line and "wei:s8" in line for line in ran) == 2
    plain = load_runtime("eager", bundle, device=CPU, precision="fp32")(images)
    assert (probs.argmax(1) == plain.argmax(1)).mean() >= 0.9


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_file_of_an_int8_bundle_keeps_its_precision(
    bundle: Bundle, ranges_of_it: Path, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    derived, out = quantized(bundle, ranges_of_it, tmp_path / "int8", runtime="aoti"), tmp_path / "model.pt2"
    with pytest.raises(ConfigError, match="an int8 variant is compared on real images"):
        export(derived, "aoti", out)
    data = make_folder(per_class=8)
    for colour, name in zip(("blue", "green", "red"), "abc", strict=True):
        (data / colour).rename(data / name)
    exported = export(derived, "aoti", out, data=data)
    assert exported.parity is not None
    assert (exported.parity.runtime, exported.parity.precision) == ("aoti", "int8")
    said = json.loads((tmp_path / "model.pt2.json").read_text())
    assert (said["classes"], said["input"]["shape"]) == (["a", "b", "c", "d"], ["N", 32, 32, 3])
    program: Any = torch._inductor.aoti_load_package(str(out))
    with torch.no_grad():
        expected = int8_graph(derived)[0](torch.from_numpy(pixels(5)))
    torch.testing.assert_close(program(torch.from_numpy(pixels(5))), expected, rtol=0, atol=0.02)


def test_ranges_of_another_graph_are_refused(bundle: Bundle, ranges_of_it: Path, tmp_path: Path) -> None:
    derived = quantized(bundle, ranges_of_it, tmp_path / "int8")
    path = derived.folder / RANGES
    said = json.loads(path.read_bytes())
    renamed = {f"{name}_9": value for name, value in said["activations"].items()}
    path.write_text(json.dumps({**said, "torch": "2.1", "activations": renamed}))
    with pytest.raises(BundleError, match=r"are of another graph: .* was quantized with torch 2\.1 and torchao"):
        int8_graph(derived)
    path.write_text(json.dumps({**said, "activations": {"a": "b"}}))
    with pytest.raises(BundleError, match="holds no ranges"):
        int8_graph(derived)


@pytest.mark.parametrize("runtime", ["inductor", "aoti"])
def test_a_bundle_that_was_not_quantized_is_refused(bundle: Bundle, runtime: str) -> None:
    with pytest.raises(ConfigError, match="the bundle holds no ranges for int8"):
        load_runtime(runtime, bundle, device=CPU, precision="int8")


def test_int8_on_a_gpu_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="inductor runs int8 on a CPU: got cuda"):
        load_runtime("inductor", bundle, device=torch.device("cuda"), precision="int8")


def test_without_torchao_the_extra_is_told(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError(name)
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"int8 for Inductor needs torchao, .*pip install 'vivace\[accelerate\]'"):
        quantize_inductor(bundle, tmp_path, pixels(4))
