"""Accelerating a network of the user's own, of which a search has the graph and no code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from fakes import COSTS, fake_times, keep_fake_variants, run

import vivace
from own_nets import Net, own_bundle
from vivace.acceleration.proposals import propose
from vivace.acceleration.splits import open_splits
from vivace.bundle import Bundle, load_bundle
from vivace.errors import BundleError
from vivace.exporting.parity import verify

pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A trained bundle of Net, and its data."""
    return own_bundle(tmp_path_factory.mktemp("own"))


def test_its_variants_are_made_of_its_graph_and_compared_with_it(
    own: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_fake_variants(monkeypatch)
    # the A/A test takes the first of these
    asked = fake_times(monkeypatch, {**COSTS, "eager fp32": 2.0})
    result = run(own, tmp_path, max_drop=50.0)
    assert (result.accelerated, result.runtime, result.precision) == (True, "openvino", "int8")
    assert asked[0] == ["onnx fp32", "onnx int8", "openvino fp32", "openvino int8"]
    assert asked[1][:2] == ["onnx fp32", "A/A test"]
    receipt = json.loads((result.bundle / "receipt.json").read_text())
    assert receipt["baseline"] == "onnx fp32"
    assert "own code" in receipt["missing"]["eager fp32"]
    assert "relative to onnx fp32, its float32 graph" in (result.bundle / "receipt.md").read_text()
    found = load_bundle(result.bundle)
    assert (found.reference_graph, found.info.network) == ("reference.onnx", own[0].info.network)
    assert verify(found, data=own[1]).reference == "the float32 graph"
    assert vivace.evaluate(found, own[1]).metrics.top1 == pytest.approx(result.top1_after)
    # with its code the network is the same
    coded = vivace.load(result.bundle, model=Net)
    same = vivace.load(own[0].folder, model=Net)
    for name, tensor in coded.weights().items():
        assert np.array_equal(tensor, same.weights()[name])


def test_without_a_graph_it_is_not_accelerated_and_the_reason_is_said(own: tuple[Bundle, Path], tmp_path: Path) -> None:
    network = {**own[0].info.network, "without_graph": "no such operator."}
    bundle = dataclasses.replace(own[0], info=dataclasses.replace(own[0].info, runtime="eager", network=network))
    with pytest.raises(BundleError, match=r"accelerated from its graph, and the bundle has none: .*\(no such operator"):
        run((bundle, own[1]), tmp_path)


def test_smaller_networks_for_it_are_those_that_need_none_of_its_code(own: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, data = own
    told: list[str] = []
    # as if it had many operations, so that others are smaller
    info = dataclasses.replace(bundle.info, network={**bundle.info.network, "operations": 10**9})
    splits = open_splits(bundle, data)
    students = propose(dataclasses.replace(bundle, info=info), splits, tmp_path, on_message=told.append)
    assert students
    assert {student.starts_from for student in students} == {"random"}
    for student in students:
        assert student.bundle.info.network == {}
        assert student.bundle.build_model() is not None
    assert any("no students pruned" in line for line in told)
    unknown = dataclasses.replace(bundle.info, network={"name": "nets.py:Net"})
    assert propose(dataclasses.replace(bundle, info=unknown), splits, tmp_path, on_message=told.append) == []
    assert "does not say how many operations" in told[-1]
