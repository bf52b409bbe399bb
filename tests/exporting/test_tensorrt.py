"""Engines of TensorRT: on a GPU for real; without one by a stand-in that computes the same graph through pointers."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from factories import make_bundle, pixels
from vivace.bundle import Bundle
from vivace.errors import ConfigError, ExportError, MissingExtra
from vivace.exporting import tensorrt as engine_module
from vivace.exporting.export import export
from vivace.exporting.tensorrt import BATCHES, load_file, write_file
from vivace.runtimes.loading import load_runtime

CPU = torch.device("cpu")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", widths=[8, 16], depth=1)


class Context:
    """Takes pointers, and computes by ONNX Runtime what lies there."""

    def __init__(self, graph: bytes) -> None:
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._classes = self._session.get_outputs()[0].shape[1]
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert name == "images"
        assert shape[0] <= BATCHES[-1]
        self._shape = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._shape[0], self._classes)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, *, stream_handle: int) -> bool:
        images = self._at("images", ctypes.c_uint8, self._shape)
        self._at("probs", ctypes.c_float, self.get_tensor_shape("probs"))[:] = self._session.run(
            None, {"images": images}
        )[0]
        return stream_handle == 7

    def _at(self, name: str, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
        return np.ctypeslib.as_array(ctypes.cast(self._addresses[name], ctypes.POINTER(kind)), shape)


class Parser:
    """Takes ONNX, unless it begins otherwise."""

    num_errors = 1

    def __init__(self, network: SimpleNamespace, logger: object) -> None:
        self._network = network

    def parse(self, graph: bytes) -> bool:
        self._network.graph = graph
        # of bytes TensorRT takes nothing but a conversion
        nodes = onnx.load_from_string(graph).graph.node
        assert {node.op_type for node in nodes if "images" in node.input} - {"Shape"} == {"Cast"}
        return not self._network.refuses

    def get_error(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: "no importer for NonZero")


def stand_in(*, refuses: bool = False, foreign: bool = False) -> SimpleNamespace:
    """A module with what is used of TensorRT. refuses: its parser; foreign: every engine is another GPU's."""
    profile = SimpleNamespace(shapes={})
    profile.set_shape = lambda name, *shapes: profile.shapes.update({name: shapes})
    config = SimpleNamespace(off=[], profiles=[])
    config.clear_flag, config.add_optimization_profile = config.off.append, config.profiles.append

    def build(network: SimpleNamespace, with_config: SimpleNamespace) -> bytes:
        assert with_config.off == ["TF32"]
        (shapes,) = [one.shapes["images"] for one in with_config.profiles]
        assert [shape[0] for shape in shapes] == list(BATCHES)
        graph: bytes = network.graph
        return graph

    builder = SimpleNamespace(
        create_network=lambda flags: SimpleNamespace(refuses=refuses, flags=flags),
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: profile,
        build_serialized_network=build,
    )

    def deserialize(graph: bytes) -> SimpleNamespace | None:
        return None if foreign else SimpleNamespace(create_execution_context=lambda: Context(graph))

    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    return SimpleNamespace(
        Logger=logger,
        Builder=lambda logger: builder,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        OnnxParser=Parser,
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
    )


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """pretend(refuses=True): as if there were a GPU, with the stand-in for TensorRT."""

    def put(**options: bool) -> None:
        # not torch.cuda.is_available: what torch concludes from it would outlive the test
        monkeypatch.setattr(engine_module, "_library", lambda: stand_in(**options))
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
        stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)

    return put


def test_the_engine_is_compared_with_pytorch_before_it_is_left(
    bundle: Bundle, tmp_path: Path, pretend: Callable[..., None]
) -> None:
    pretend()
    exported = export(bundle, "tensorrt", tmp_path / "model.engine")
    assert exported.parity is not None
    assert (exported.parity.runtime, exported.parity.top1_agreement) == ("tensorrt", 1.0)
    # more images than the engine takes in a call
    images = pixels(BATCHES[-1] + 3)
    plain = load_runtime("eager", bundle, device=CPU, precision="fp32")
    np.testing.assert_allclose(load_file(exported.path)(images), plain(images), atol=1e-5)
    told = json.loads((tmp_path / "model.engine.json").read_text())
    assert (told["target"], told["classes"]) == ("tensorrt", list(bundle.classes))


def test_a_network_that_it_cannot_take_is_told_with_the_operator(
    bundle: Bundle, tmp_path: Path, pretend: Callable[..., None]
) -> None:
    pretend(refuses=True)
    with pytest.raises(ExportError, match="tensorrt can't take this network: no importer for NonZero"):
        export(bundle, "tensorrt", tmp_path / "model.engine")
    assert not (tmp_path / "model.engine").exists()


def test_an_engine_of_another_gpu_is_refused(bundle: Bundle, tmp_path: Path, pretend: Callable[..., None]) -> None:
    pretend(foreign=True)
    write_file(bundle, tmp_path / "model.engine")
    with pytest.raises(ExportError, match="this engine is of another GPU or another TensorRT"):
        load_file(tmp_path / "model.engine")


def test_without_the_library_or_a_gpu_the_mend_is_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(ConfigError, match=r"there is none here\. Export to onnx, and build it there"):
        export(bundle, "tensorrt", tmp_path / "model.engine")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtra, match=r"needs tensorrt, which .*pip install 'vivace\[tensorrt\]'"):
        export(bundle, "tensorrt", tmp_path / "model.engine")


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("tensorrt") is None, reason="needs a CUDA device and tensorrt"
)
def test_on_a_gpu_it_answers_as_pytorch(bundle: Bundle, tmp_path: Path) -> None:
    exported = export(bundle, "tensorrt", tmp_path / "model.engine")
    images = pixels(BATCHES[-1] + 3)
    plain = load_runtime("eager", bundle, device=CPU, precision="fp32")
    np.testing.assert_allclose(engine_module.load_file(exported.path)(images), plain(images), atol=1e-3)
