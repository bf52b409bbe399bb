"""Graphs that somebody made to read files, to run for ever or to take all memory: refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from factories import make_bundle, pixels
from untrusted import file_facts, read_sealed, seal
from vivace.bundle import Bundle, load_bundle
from vivace.cli import main
from vivace.errors import BundleError
from vivace.exporting.export import export
from vivace.predictor import Predictor
from vivace.runtimes import onnx, openvino
from vivace.runtimes.loading import check_probs
from vivace.runtimes.onnx_bytes import check_onnx


def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], **attributes)


def constant(name: str, value: Any) -> Any:
    return numpy_helper.from_array(np.array(value), name)


def model(nodes: list[Any] | None = None, initializers: list[Any] | None = None) -> Any:
    """images → probs by the mean of each channel; nodes and initializers of one's own come before that."""
    graph = helper.make_graph(
        [
            *(nodes or []),
            node("Cast", ["images"], "floats", to=TensorProto.FLOAT),
            node("ReduceMean", ["floats"], "means", axes=[1, 2], keepdims=0),
            node("Softmax", ["means"], "probs"),
        ],
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", 3])],
        initializers or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(name: str = "secret") -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "secret.txt"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def with_graph_tagged(tag: bytes, *, length: Callable[[int], bytes] = varint) -> bytes:
    """A model whose graph, which reads another file, stands behind a tag of one's own."""
    whole = model(initializers=[external()])
    graph = whole.graph.SerializeToString()
    whole.ClearField("graph")
    return bytes(whole.SerializeToString() + tag + length(len(graph)) + graph)


def body() -> Any:
    """Of a loop that never ends."""
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [node("Identity", ["go"], "go_on"), node("Identity", ["x"], "y")],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("x", TensorProto.FLOAT, [])],
        [info("go_on", TensorProto.BOOL, []), info("y", TensorProto.FLOAT, [])],
    )


def with_function() -> Any:
    whole = model([node("Twice", ["one"], "two", domain="mine")], [constant("one", np.float32(1))])
    whole.functions.append(
        helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], "b")], whole.opset_import)
    )
    return whole


def with_sparse() -> Any:
    whole = model()
    values, indices = constant("sparse", np.float32([1])), constant("", np.int64([0]))
    whole.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))
    return whole


def with_training() -> Any:
    whole = model()
    whole.training_info.add().algorithm.initializer.append(external())
    return whole


LOOP = [constant("count", np.int64(2**62)), constant("start", np.float32(1))]
IN_ATTRIBUTE = node("Constant", [], "c", value=external())
REFUSED: dict[str, tuple[bytes, str]] = {
    "an external tensor": (model(initializers=[external()]).SerializeToString(), "reads other files"),
    "one in an attribute": (model([IN_ATTRIBUTE]).SerializeToString(), "reads other files"),
    "its place without data": (
        model(initializers=[TensorProto(name="x", data_type=2, dims=[4], data_location=1)]).SerializeToString(),
        "reads other files",
    ),
    "a tag of 33 bits": (with_graph_tagged(varint(1 << 32 | 7 << 3 | 2)), "a field that ONNX lacks"),
    "a tag of 64 bits": (with_graph_tagged(varint(1 << 63 | 7 << 3 | 2)), "a field that ONNX lacks"),
    "a tag in five bytes for one": (with_graph_tagged(b"\xba\x80\x80\x80\x00"), "in a form that protobuf does not"),
    "a length in three bytes for two": (
        with_graph_tagged(b"\x3a", length=lambda size: bytes([size & 0x7F | 0x80, size >> 7 | 0x80, 0])),
        "in a form that protobuf does not",
    ),
    "a number of 65 bits": (b"\x08" + b"\xff" * 9 + b"\x03" + model().SerializeToString(), "in a form that protobuf"),
    "a group": (b"\x3b" + model().SerializeToString() + b"\x3c", "a field that ONNX lacks"),
    "field 0": (b"\x02\x00" + model().SerializeToString(), "a field that ONNX lacks"),
    "an unknown field": (model().SerializeToString() + varint(99 << 3 | 2) + b"\x00", "a field that ONNX lacks"),
    "a field of another kind": (b"\x3d\x00\x00\x00\x00" + model().SerializeToString(), "a field that ONNX lacks"),
    "bytes behind the end": (model().SerializeToString() + b"\x3a\xff", "no ONNX graph, or cut off"),
    "two graphs": (model().SerializeToString() * 2, "no ONNX graph"),
    "no graph": (b"\x08\x08", "no ONNX graph"),
    "nothing": (b"", "no ONNX graph"),
    "the runtime's own format": (b"\x08\x08\x12\x04ORTM" + model().SerializeToString(), "ONNX Runtime's own format"),
    "a loop": (
        model([node("Loop", ["count", "", "start"], "end", body=body())], LOOP).SerializeToString(),
        r"holds the operator Loop|graphs in nodes",
    ),
    "a graph in another operator": (model([node("Cast", ["x"], "y", b=body())]).SerializeToString(), "graphs in nodes"),
    "a function": (with_function().SerializeToString(), "holds functions|no domain of ONNX"),
    "another domain": (model([node("X", [], "x", domain="mine")]).SerializeToString(), "no domain of ONNX"),
    "sparse weights": (with_sparse().SerializeToString(), "sparse tensors"),
    "graphs for training": (with_training().SerializeToString(), "graphs for training"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_graph_that_may_do_more_than_compute_is_refused(tmp_path: Path, what: str) -> None:
    content, reason = REFUSED[what]
    with pytest.raises(ValueError, match=reason):
        check_onnx(content)
    # a file, and the same in memory: nothing opens a session without the check
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=rf"the graph is refused: .*model\.onnx \(.*({reason})"):
        onnx.classifier_of(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="the graph is refused"):
        onnx.open_session(content)


def test_a_plain_graph_passes() -> None:
    plain = model(initializers=[constant("unread", np.float32([1, 2]))])
    # whoever has the data in place may say so
    plain.graph.initializer[0].data_location = TensorProto.DEFAULT
    check_onnx(plain.SerializeToString())
    assert onnx.open_session(plain.SerializeToString()).get_inputs()[0].name == "images"


def test_no_other_file_is_found_by_a_graph_that_was_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("Cast", ["secret"], "read", to=TensorProto.FLOAT)]
    (tmp_path / "secret.txt").write_bytes(b"1234")
    (tmp_path / "model.onnx").write_bytes(model(nodes, [external()]).SerializeToString())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx, "check_onnx", lambda content: None)
    with pytest.raises(BundleError, match=r"the graph can't be loaded: .*model\.onnx"):
        onnx.open_session(tmp_path / "model.onnx")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Of 200 bytes: a tensor of 5 GB."""
    nodes = [
        node("Cast", ["images"], "f", to=TensorProto.FLOAT),
        node("ReduceMax", ["f"], "m", keepdims=0),
        node("Expand", ["m", "huge"], "big"),
        node("ReduceMean", ["big"], "r", keepdims=0),
    ]
    greedy = model(nodes, [constant("huge", np.int64([1_250_000_000]))])
    greedy.graph.node[-1].input[0] = "shifted"
    greedy.graph.node.insert(6, node("Add", ["means", "r"], "shifted"))
    with pytest.raises(Exception, match=r"Available memory of .* is smaller than requested"):
        onnx.open_session(greedy.SerializeToString()).run(None, {"images": pixels(1)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("untrusted")
    plain = make_bundle(root / "plain", widths=[8], depth=1)
    return {target: load_bundle(export(plain, target, root / target).path) for target in ("onnx", "openvino")}


def with_graph(bundle: Bundle, folder: Path, content: bytes) -> Path:
    """A copy with another graph, by somebody who made every hash right."""
    shutil.copytree(bundle.folder, folder)
    (folder / onnx.GRAPH).write_bytes(content)
    manifest = read_sealed(folder)
    manifest["files"][onnx.GRAPH] = file_facts(folder / onnx.GRAPH)
    seal(folder, manifest)
    return folder


def wild() -> bytes:
    """Its answers are sums, not probabilities."""
    whole = model()
    whole.graph.node[-1].CopyFrom(node("Identity", ["means"], "probs"))
    return bytes(whole.SerializeToString())


@pytest.mark.parametrize(
    ("content", "reason"), [(REFUSED["an external tensor"][0], "reads other files"), (wild(), "no probabilities")]
)
def test_each_verb_refuses_it_in_one_line(
    made: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    folder = str(with_graph(made["onnx"], tmp_path / "bundle", content))
    verbs = [["verify", folder], ["export", folder, "--to", "deploy", "--out", str(tmp_path / "deployed")]]
    if reason == "reads other files":
        verbs.append(["profile", folder])
    for verb in verbs:
        assert main(verb) in (1, 2)
        said = capsys.readouterr().err.strip().splitlines()
        assert reason in said[-1], said
        # profiling is done in a process of its own, whose error it tells
        assert said[-1].startswith("ConfigError: onnx in fp32" if verb[0] == "profile" else "BundleError: ")
        assert len(said[-1]) <= 500
    assert not (tmp_path / "deployed").exists()


def test_answers_that_are_no_probabilities_are_refused(made: dict[str, Bundle], tmp_path: Path) -> None:
    predictor = Predictor(with_graph(made["onnx"], tmp_path / "bundle", wild()))
    with pytest.raises(BundleError, match=r"the answers are no probabilities: .*bundle.* gives .* to .*, in rows that"):
        predictor.probs(pixels(2))
    for row in ([1.2, -0.2, 0.0], [0.5, 0.2, 0.2], [28.6, 0.0, 0.0], [1.0, 1.0, 0.0]):
        with pytest.raises(BundleError, match="no probabilities"):
            check_probs(np.float32([[0.2, 0.3, 0.5], row]), tmp_path)
    # of bf16, and what overflowed: that has an error of its own
    check_probs(np.float32([[0.2, 0.3, 0.495], [np.nan, 0, 0]]), tmp_path)


XML: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "a file of ONNX": (lambda text: bytes(model().SerializeToString()), "no XML"),
    "another root": (lambda text: text.replace("<net", "<graph").replace("</net", "</graph"), "another format"),
    "a loop": (lambda text: text.replace('type="Convolution"', 'type="tensorIterator"', 1), "a layer tensorIterator"),
    "a graph in a layer": (lambda text: text.replace("<layer ", "<layers /><layer ", 1), "graphs in layers"),
    "a declaration": (lambda text: text.replace("<net", "<!DOCTYPE net><net", 1), "as OpenVINO writes it"),
    "another encoding": (lambda text: text.encode("utf-16"), "as OpenVINO writes it"),
    "half of it": (lambda text: text[: len(text) // 2], "cut off"),
}


@pytest.mark.parametrize("what", XML)
def test_what_is_no_plain_graph_of_openvino_is_refused(made: dict[str, Bundle], tmp_path: Path, what: str) -> None:
    change, reason = XML[what]
    content = change((made["openvino"].folder / openvino.GRAPH).read_text("utf-8"))
    path = tmp_path / openvino.GRAPH
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for load in (lambda: openvino.read_graph(path), lambda: openvino.compile_graph(path, "fp32", batch_size=1)):
        with pytest.raises(BundleError, match=rf"the graph is refused: .*model\.xml \(.*{reason}"):
            load()


@pytest.mark.parametrize(("by_pixels", "reason"), [(False, "needs 4.7 GiB"), (True, "depends on the pixels")])
def test_a_graph_of_openvino_that_takes_all_memory_is_refused(by_pixels: bool, reason: str) -> None:
    import openvino.opset13 as ops
    from openvino import Model

    images = ops.parameter([-1, 32, 32, 3], np.uint8, "images")
    largest = ops.convert(ops.reduce_max(images, np.array([0, 1, 2, 3])), "i64")
    size = ops.unsqueeze(largest, 0) if by_pixels else np.array([1_250_000_000])
    big = ops.broadcast(ops.convert(largest, "f32"), size)
    with pytest.raises(BundleError, match=reason):
        openvino.compile_graph(Model([ops.reduce_max(big, np.array([0]))], [images]), "fp32", batch_size=1)
