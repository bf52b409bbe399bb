"""Layers given back to float: the graph between int8 and float32, and which layers are worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factories import make_bundle, pixels
from vivace.acceleration.candidates import Builder, Candidate
from vivace.compression import layers as layers_module
from vivace.compression.layers import Int8Graph, int8_graph, rank_layers, with_int8_layers
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.onnx import GRAPH as ONNX_GRAPH


def builder(tmp_path: Path) -> Builder:
    bundle = make_bundle(tmp_path / "bundle", widths=[8, 16], depth=2, activation="relu")
    return Builder(bundle, tmp_path / "work", lambda: pixels(8))


@pytest.fixture(params=sorted(with_int8_layers()))
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Int8Graph:
    return builder(tmp_path).int8_graph(Candidate(runtime=request.param, precision="int8"))


def answers(graph: Int8Graph, layers: Sequence[str]) -> np.ndarray:
    return graph.program(graph.with_float_layers(layers), "int8", batch_size=4)(pixels(4))


def test_a_layer_in_float_changes_the_answers_and_nothing_in_place(
    graph: Int8Graph,
) -> None:
    layers = graph.layers()
    # whiten, two of each group, the head
    assert len(layers) == len(set(layers)) == 6
    int8, one = answers(graph, ()), answers(graph, layers[:1])
    assert not np.array_equal(int8, one)
    np.testing.assert_array_equal(answers(graph, ()), int8)


def test_a_name_that_is_no_layer_is_refused(graph: Int8Graph) -> None:
    with pytest.raises(ValueError, match="have no layer 'other' in common"):
        graph.with_float_layers(["other"])


@pytest.mark.parametrize("runtime", sorted(with_int8_layers()))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fast_cnn", {"widths": [8, 16], "depth": 2, "activation": "relu"}),
        # gates, whose rounding costs more than that of its layers; sums with what goes round them
        ("timm/mobilenetv3_small_050", {"size": 64}),
    ],
)
def test_with_every_layer_in_float_the_answers_are_those_of_float32(
    runtime: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", name, **options)
    images = pixels(8, bundle.preprocess.size)
    made = Builder(bundle, tmp_path / "work", lambda: images)
    graph = made.int8_graph(Candidate(runtime=runtime, precision="int8"))
    plain = int8_graph(runtime, made.graph(runtime), made.graph(runtime))
    assert plain.layers() == []
    float32 = plain.program(plain.with_float_layers(()), "fp32", batch_size=8)(images)

    def distance(layers: Sequence[str]) -> float:
        answers_NK = graph.program(graph.with_float_layers(layers), "int8", batch_size=8)(images)
        return float(np.abs(answers_NK - float32).max())

    int8, every = distance(()), distance(graph.layers())
    assert int8 > 1e-3
    if runtime == "openvino":
        # weights and biases too: those of the int8 graph were moved
        assert every < 1e-5
    else:
        # sums and means of its graphs stay rounded
        assert every < 0.5 * int8


@pytest.mark.parametrize("runtime", sorted(with_int8_layers()))
def test_a_candidate_with_layers_in_float_is_built_and_answers_as_its_graph(runtime: str, tmp_path: Path) -> None:
    made = builder(tmp_path)
    candidate = Candidate(runtime=runtime, precision="int8")
    graph = made.int8_graph(candidate)
    kept = tuple(graph.layers()[1:3])
    built = made.build(Candidate(runtime=runtime, precision="int8", float_layers=kept))
    classify = load_runtime(runtime, built, device=torch.device("cpu"), precision="int8")
    np.testing.assert_allclose(classify(pixels(4)), answers(graph, kept), atol=1e-6)


def test_of_onnx_nothing_is_left_that_nobody_reads(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    made = builder(tmp_path)
    graph = made.int8_graph(Candidate(runtime="onnx", precision="int8"))
    layers = graph.layers()
    graph.save(graph.with_float_layers(layers), tmp_path)
    saved = onnx.load(tmp_path / ONNX_GRAPH)
    onnx.checker.check_model(saved)
    read = {value for node in saved.graph.node for value in node.input}
    assert {constant.name for constant in saved.graph.initializer} <= read
    products = [node for node in saved.graph.node if node.name in layers]
    assert len(products) == 6
    dequantized = {value for node in saved.graph.node if node.op_type == "DequantizeLinear" for value in node.output}
    assert not any(set(node.input) & dequantized for node in products)


class Told:
    """An Int8Graph whose layers cost what they are told to: (divergence, ms) each."""

    def __init__(self, costs: dict[str, tuple[float, float]], clock: list[float]) -> None:
        self.costs, self.clock = costs, clock

    def layers(self) -> list[str]:
        return list(self.costs)

    def with_float_layers(self, layers: Sequence[str]) -> Any:
        return tuple(layers)

    def program(self, model: Any, precision: str, *, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
        # a first class of e^-d, where the plain model is sure, diverges by d
        divergence = sum(cost for name, (cost, _) in self.costs.items() if name not in model)
        milliseconds = 10 + sum(ms for name, (_, ms) in self.costs.items() if name in model)

        def run(images: np.ndarray) -> np.ndarray:
            self.clock[0] += 1e-3 * milliseconds
            first = np.exp(-divergence)
            return np.tile([first, 1 - first], (len(images), 1))

        return run

    def save(self, model: Any, folder: Path) -> None:
        raise AssertionError("ranking saves nothing")


def test_layers_are_ranked_by_the_accuracy_that_a_millisecond_buys(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(layers_module.time, "perf_counter", lambda: clock[0])
    costs = {"cheap": (0.1, 1.0), "dear": (0.3, 6.0), "harmless": (0.0, 1.0), "best": (0.2, 0.5)}
    expected = np.tile([1.0, 0.0], (40, 1))
    ranked = rank_layers(Told(costs, clock), pixels(40), expected, precision="int8")
    assert [group.layers for group in ranked] == [("best",), ("cheap",), ("dear",)]
    assert [group.worth for group in ranked] == pytest.approx([0.4, 0.1, 0.05], rel=1e-3)


def test_many_layers_are_tried_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(layers_module.time, "perf_counter", lambda: clock[0])
    graph = Told({f"layer {index}": (0.01, 1.0) for index in range(30)}, clock)
    ranked = rank_layers(graph, pixels(4), np.tile([1.0, 0.0], (4, 1)), precision="int8")
    assert len(ranked) == 10
    assert sorted(name for group in ranked for name in group.layers) == sorted(graph.costs)
    assert ranked[0].divergence_saved == pytest.approx(0.03, rel=1e-3)
