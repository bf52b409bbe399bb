"""A graph that computes for ever is ended, whoever made it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vivace.errors import BundleError
from vivace.runtimes import onnx, openvino, patience

IMAGES_NHWC = np.ones((1, 4, 4, 1), np.uint8)
# products of 1,500 × 1,500: minutes together, and none that takes long by itself
NUM_PRODUCTS, SIDE = 1000, 1500


def onnx_graph(path: Path, *, constant: bool, products: int = NUM_PRODUCTS) -> Path:
    """images → probs by way of a long chain of matrix products, of constants or of what the images are."""
    pytest.importorskip("onnxruntime")
    graphs = pytest.importorskip("onnx")
    node, helper = graphs.helper.make_node, graphs.helper
    nodes = [
        node("ConstantOfShape", ["side"], ["ones"], value=helper.make_tensor("v", 1, [1], [0.5])),
        node("Cast", ["images"], ["floats"], to=1),
        node("ReduceSum", ["floats"], ["sum"], keepdims=0),
        *([node("Identity", ["ones"], ["m0"])] if constant else [node("Mul", ["ones", "sum"], ["m0"])]),
        *[node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(products)],
        node("ReduceSum", [f"m{products}"], ["q"], keepdims=0),
        node("Mul", ["q", "sum"], ["s"]),
        node("Reshape", ["s", "row"], ["logit"]),
        node("Softmax", ["logit"], ["probs"]),
    ]
    inputs = [helper.make_tensor_value_info("images", 2, ["N", 4, 4, 1])]
    outputs = [helper.make_tensor_value_info("probs", 1, ["N", 1])]
    constants = [helper.make_tensor("side", 7, [2], [SIDE, SIDE]), helper.make_tensor("row", 7, [2], [1, 1])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    graphs.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("constant", [True, False])
def test_a_call_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: bool) -> None:
    # neither is what is constant computed while the graph is loaded, which nothing could end
    classify = onnx.classifier_of(onnx_graph(tmp_path / "model.onnx", constant=constant))
    monkeypatch.setattr(patience, "CALL_SECONDS", 0.0)
    monkeypatch.setattr(patience, "IMAGE_SECONDS", 1.0)
    with pytest.raises(BundleError, match=r"model\.onnx took more than 1 s and was ended\. Do not use it"):
        classify(IMAGES_NHWC)


def test_a_call_in_time_is_left_alone_and_a_later_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STEP_SECONDS", 0.01)
    classify = onnx.classifier_of(onnx_graph(tmp_path / "model.onnx", constant=False, products=1))
    for _ in range(3):
        assert classify(IMAGES_NHWC).shape == (1, 1)
        time.sleep(0.05)
    assert patience._running == {}
    # what fails by itself is told as it is
    with pytest.raises(ZeroDivisionError), patience.within(100, lambda: None, "x"):
        _ = 1 / 0


def test_a_process_that_was_forked_has_a_watcher_of_its_own() -> None:
    with patience.within(100, lambda: None, "x"):
        pass
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        ended = threading.Event()
        with contextlib.suppress(BundleError), patience.within(0.01, ended.set, "x"):
            ended.wait(60)
            raise ValueError
        os.write(write, b"ended" if ended.is_set() else b"not ended")
        os._exit(0)
    os.waitpid(child, 0)
    os.set_blocking(read, False)
    assert os.read(read, 10) == b"ended"


def test_the_first_call_of_a_program_of_openvino_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("openvino")
    from openvino import opset8 as op

    images = op.parameter([-1, 4, 4, 1], np.uint8, name="images")
    floats = op.convert(images, np.float32)
    chain = op.reshape(op.reduce_mean(floats, op.constant([1, 2, 3]), False), op.constant([-1, 1]), False)
    chain = op.matmul(chain, op.constant(np.ones((1, SIDE), np.float32)), False, False)
    weights = op.constant(np.ones((SIDE, SIDE), np.float32))
    chain = op.matmul(op.broadcast(chain, op.constant([SIDE, SIDE])), weights, False, False)
    # one of a kind after another, which no compiler takes together
    for _ in range(300):
        chain = op.matmul(op.relu(chain), weights, False, False)
    row = op.softmax(op.reshape(op.reduce_sum(chain, op.constant([0, 1]), False), op.constant([1, 1]), False), 1)
    library.save_model(library.Model([row], [images], "m"), tmp_path / "model.xml", compress_to_fp16=False)
    classify = openvino.classifier_of(tmp_path / "model.xml", tmp_path / "model.bin", "fp32")
    monkeypatch.setattr(patience, "STEP_SECONDS", 0.05)
    monkeypatch.setattr(patience, "CALL_SECONDS", 0.0)
    monkeypatch.setattr(patience, "IMAGE_SECONDS", 0.2)
    with pytest.raises(BundleError, match=r"the graph took more than 0\.2 s and was ended"):
        classify(IMAGES_NHWC)
