"""Where the time goes, and in which precision: by what a runtime says that it ran, under names that can be used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from answers import last_answer
from factories import make_bundle, pixels
from vivace.acceleration.candidates import Builder, Candidate
from vivace.bundle import Bundle, derive_bundle
from vivace.cli import main
from vivace.cli.profile import table
from vivace.compression.layers import int8_graph
from vivace.compression.quantize import quantize_openvino
from vivace.errors import ConfigError, VivaceError
from vivace.hardware import supported_precisions
from vivace.profiling import profile as profile_module
from vivace.profiling.openvino import _mean_since, quantized_layers
from vivace.profiling.profile import LayerTime, Profile, profile_layers
from vivace.profiling.pytorch import MULTIPLIES

# the second convolution has twenty times the multiplications of what follows it
WIDE = {"widths": [128, 8], "depth": 1}
BF16 = pytest.mark.skipif(
    "bf16" not in supported_precisions(torch.device("cpu")), reason="this processor does not multiply bf16"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", **WIDE)


def built(bundle: Bundle, tmp_path: Path, runtime: str, precision: str) -> Bundle:
    size = bundle.preprocess.size
    builder = Builder(bundle, tmp_path / f"work-{bundle.folder.name}", lambda: pixels(8, size))
    return builder.build(Candidate(runtime=runtime, precision=precision))


def profiled(bundle: Bundle, **options: Any) -> Profile:
    # one processor: what else runs beside the tests makes no thread wait for another
    return profile_layers(bundle, pixels(2, bundle.preprocess.size), calls=3, warmup=1, threads=1, **options)


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("eager", "fp32"),
        ("onnx", "fp32"),
        ("onnx", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
        pytest.param("eager", "bf16", marks=BF16),
        pytest.param("openvino", "bf16", marks=BF16),
    ],
)
def test_what_multiplies_is_found_with_its_time_and_the_arithmetic_that_was_asked_for(
    bundle: Bundle, tmp_path: Path, runtime: str, precision: str
) -> None:
    profile = profiled(built(bundle, tmp_path, runtime, precision))
    assert (profile.runtime, profile.precision, profile.batch_size) == (runtime, precision, 2)
    products = [layer for layer in profile.layers if layer.multiplies]
    # whiten, one of each group, and the head; ONNX Runtime computes batch norm in float as a convolution
    assert len(products) == 4 or (runtime == "onnx" and precision == "fp32" and len(products) > 4)
    assert {layer.precision for layer in products} == {precision}
    assert profile.share(precision) == 1.0
    assert products[1].ms > sum(layer.ms for layer in products[2:])
    assert all(layer.ms >= 0 and layer.kernel and layer.name for layer in profile.layers)
    assert 0 < profile.multiplying_share < 1
    assert f"{precision} kernels: 100% of the time of convolutions and matrix products" in profile.summary()


def test_of_eager_the_layers_are_modules(bundle: Bundle, tmp_path: Path) -> None:
    profile = profiled(built(bundle, tmp_path, "eager", "fp32"))
    model = bundle.build_model()
    weighted = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert [layer.name for layer in profile.layers if layer.multiplies] == weighted
    names = {name for name, _ in model.named_modules()}
    assert {"groups.0.1", "groups.0.2"} <= {layer.name for layer in profile.layers} & names


@BF16
def test_what_the_compiler_wrote_itself_is_told_beside_what_it_calls(bundle: Bundle, tmp_path: Path) -> None:
    profile = profiled(built(bundle, tmp_path, "inductor", "bf16"))
    assert [layer.precision for layer in profile.layers if layer.multiplies] == ["bf16"] * 4
    assert any("cpp_fused" in layer.name and "max_pool2d" in layer.name for layer in profile.layers)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fast_cnn", {"widths": [8, 16], "depth": 2, "residual": True}),
        ("timm/resnet10t", {"size": 64}),
        ("timm/vit_tiny_patch16_224", {"size": 64, "depth": 2}),
    ],
    ids=["fast_cnn", "resnet", "vit"],
)
def test_names_are_those_of_the_float_graph_through_quantization_and_fusion(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    import openvino

    bundle = make_bundle(tmp_path / "bundle", name, **options)
    plain, int8 = (built(bundle, tmp_path, "openvino", precision) for precision in ("fp32", "int8"))
    layers = quantized_layers(plain.folder / "model.xml")
    weighted = [
        module for module in bundle.build_model().modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    assert len(layers) == len(set(layers)) == len(weighted)
    # what NNCF made of the weights has the layer's name in front
    operations = openvino.Core().read_model(int8.folder / "model.xml").get_ordered_ops()
    made = {
        op.get_friendly_name().rpartition("/fq_weights")[0] for op in operations if op.get_type_name() == "Multiply"
    }
    assert set(layers) <= made
    for one, precision in ((plain, "fp32"), (int8, "int8")):
        products = [layer for layer in profiled(one).layers if layer.multiplies and layer.name in layers]
        assert sorted(layer.name for layer in products) == sorted(layers)
        assert {layer.precision for layer in products} == {precision}


@pytest.mark.parametrize("position", [0, 2, -1])
def test_a_layer_that_is_kept_runs_in_float_and_the_others_in_int8(
    bundle: Bundle, tmp_path: Path, position: int
) -> None:
    plain = built(bundle, tmp_path, "openvino", "fp32")
    layers = quantized_layers(plain.folder / "model.xml")
    kept, int8 = layers[position], tmp_path / "int8"
    int8.mkdir()

    def add(folder: Path) -> Any:
        quantize_openvino(plain.folder, int8, pixels(8))
        graph = int8_graph("openvino", int8, plain.folder)
        graph.save(graph.with_float_layers((kept,)), folder)
        return dataclasses.replace(plain.info, precision="int8")

    profile = profiled(derive_bundle(plain, tmp_path / "kept", add))
    precision = {layer.name: layer.precision for layer in profile.layers if layer.multiplies}
    assert precision == {name: "fp32" if name == kept else "int8" for name in layers}
    assert profile.share("fp32") < 1
    assert profile.share("fp32") + profile.share("int8") == pytest.approx(1)
    # what is too short to be seen is not told
    percent = f"{profile.share('fp32'):.0%}"
    assert (f"(fp32 {percent})" in profile.evidence()) is (percent != "0%")


def layer(name: str, ms: float, precision: str, *, multiplies: bool = True) -> LayerTime:
    return LayerTime(name=name, kind="K", kernel="k", precision=precision, ms=ms, multiplies=multiplies)


def example(*layers: LayerTime) -> Profile:
    return Profile(runtime="openvino", precision="int8", batch_size=1, layers=layers, call_ms=20.0)


def test_shares_are_of_time() -> None:
    profile = example(layer("a", 6.0, "int8"), layer("b", 2.0, "fp32"), layer("pool", 2.0, "int8", multiplies=False))
    assert (profile.share("int8"), profile.share("fp32"), profile.share("bf16")) == (0.75, 0.25, 0.0)
    assert (profile.share_of_all("int8"), profile.multiplying_share, profile.layers_ms) == (0.8, 0.8, 10.0)
    assert profile.evidence() == "int8 kernels: 75% of the time of convolutions and matrix products (fp32 25%)"
    assert profile.summary() == (
        "openvino in int8, batches of 1: 10.00 ms in 3 layers of a call of 20.00 ms, 80% of it convolutions and matrix "
        f"products; {profile.evidence()}"
    )
    mixed = dataclasses.replace(profile, precision="int8+bf16")
    assert mixed.evidence() == profile.evidence()
    said = json.loads(json.dumps(profile.to_dict()))
    assert said["layers"][1] == dataclasses.asdict(profile.layers[1])
    assert (said["shares"]["int8"], said["shares_of_all"]["fp32"]) == (0.75, 0.2)
    assert example().share("int8") == 0.0
    with pytest.raises(ConfigError, match="the precision is unknown: got 'int4'"):
        profile.share("int4")


def test_the_table_has_the_slowest_first_and_the_rest_in_one_line() -> None:
    lines = table(example(layer("a", 1.0, "int8"), layer("b" * 200, 8.0, "fp32"), layer("c", 1.0, "other")), 1)
    assert len(lines) == 3
    assert lines[1].startswith("…bbb")
    assert lines[1].split()[-3:] == ["fp32", "8.000", "80.0%"]
    assert lines[2].split() == ["2", "others", "2.000", "20.0%"]
    assert len({len(line) for line in lines}) == 1


def test_the_first_calls_do_not_count_in_a_mean() -> None:
    # 10 ms, then 1 ms four times
    assert _mean_since(before=10.0, now=14 / 5, warmup=1, calls=4) == pytest.approx(1.0)
    # means in whole microseconds may fall below what was there before
    assert _mean_since(before=0.001, now=0.0, warmup=5, calls=20) == 0.0


@pytest.mark.parametrize(
    ("name", "is_product"),
    [
        ("aten::mkldnn_convolution", True),
        ("mkldnn::_convolution_pointwise", True),
        ("mkldnn::_linear_pointwise", True),
        ("onednn::qlinear_pointwise", True),
        ("onednn::qconv2d_pointwise", True),
        ("aten::addmm", True),
        ("aten::_int_mm", True),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", True),
        ("aten::upsample_bilinear2d", False),
        ("aten::upsample_linear1d", False),
        ("aten::linalg_vector_norm", False),
        ("aten::max_pool2d", False),
        ("graph_0_cpp_fused_convolution_silu_1", False),
    ],
)
def test_products_are_told_from_other_operators(name: str, is_product: bool) -> None:
    assert bool(MULTIPLIES.search(name)) == is_product


def test_a_process_that_dies_or_fails_says_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, runtime="abacus"))
    with pytest.raises(ConfigError, match=r"abacus in bf16 could not be profiled: there is no profiler for abacus"):
        profiled(unknown)
    # it has no graph
    plain = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, runtime="onnx"))
    with pytest.raises(ConfigError, match=r"could not be profiled: the bundle holds no graph for onnx"):
        profiled(plain)
    with pytest.raises(ConfigError, match="calls is out of range"):
        profile_layers(bundle, pixels(1), calls=0)
    monkeypatch.setattr(profile_module, "PROGRAM", "import sys; sys.exit('no such library')")
    with pytest.raises(VivaceError, match=r"its process died with 1 \(no such library\)"):
        profiled(bundle)


def test_the_verb_prints_a_table_or_json(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    int8 = built(bundle, tmp_path, "openvino", "int8")
    command = ["profile", str(int8.folder), "--calls", "2", "--threads", "1", "--batch-size", "70"]
    assert main([*command, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "kind", "kernel", "precision", "ms", "fraction"]
    assert "others" in lines[4]
    assert "int8 kernels: 100% of the time of convolutions and matrix products" in lines[-1]
    assert main([*command, "--json"]) == 0
    said = last_answer(capsys.readouterr().out)
    assert (said["batch_size"], said["shares"]["int8"]) == (70, 1.0)
    assert np.isclose(sum(layer["ms"] for layer in said["layers"]), said["layers_ms"])
    assert main(["profile", str(int8.folder), "--batch-size", "0"]) == 2
    assert "--batch-size is out of range" in capsys.readouterr().err
