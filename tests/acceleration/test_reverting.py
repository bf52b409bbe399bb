"""The search gives layers of an int8 variant back to float where it loses too much, and only where that may win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import COSTS, fake_times, keep_fake_variants, run

from vivace.acceleration import decide
from vivace.acceleration import networks as networks_module
from vivace.acceleration.results import Result
from vivace.bundle import Bundle, load_bundle
from vivace.compression.layers import Int8Graph, LayerGroup


@pytest.fixture(autouse=True)
def quick_variants(graphs_made_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_fake_variants(monkeypatch)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_where_int8_loses_too_much_it_gets_layers_back_and_may_win(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    costs = dict.fromkeys(COSTS, 4.0) | {f"{runtime} int8": 1.0}
    costs |= {f"{runtime} int8, {count} in float": 2.0 for count in ("1 layer", "2 layers", "4 layers")}
    fake_times(monkeypatch, costs)

    def loses_too_much(row: Result, max_drop: float) -> bool:
        return row.candidate.precision == "int8" and len(row.candidate.float_layers) < 2

    def ranked(graph: Int8Graph, *_: Any, **__: Any) -> list[LayerGroup]:
        return [LayerGroup((name,), divergence_saved=1.0, cost_ms=1.0) for name in graph.layers()]

    monkeypatch.setattr(decide, "loses_too_much", loses_too_much)
    monkeypatch.setattr(networks_module, "rank_layers", ranked)
    result = run(trained, tmp_path, max_drop=20.0)
    assert (result.runtime, result.precision, result.accelerated) == (runtime, "int8", True)
    assert result.speedup == pytest.approx(2.0, rel=0.05)
    statuses = {row["name"]: row["reason"] for row in result.receipt["rows"]}
    assert statuses[f"{runtime} int8, 1 layer in float"].startswith("loses")
    # the fewest layers that will do are enough
    assert f"{runtime} int8, 4 layers in float" not in {
        row["name"] for row in result.receipt["rows"] if row["selected"]
    }
    assert load_bundle(result.bundle).info.runtime == runtime


def test_layers_are_not_given_back_where_another_variant_is_faster_even_so(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, {**COSTS, "openvino int8": 1.5, "openvino fp32": 1.45})

    def ranked(*_: Any, **__: Any) -> list[LayerGroup]:
        raise AssertionError("its layers are ranked in vain")

    monkeypatch.setattr(
        decide,
        "loses_too_much",
        lambda row, max_drop: row.candidate.precision == "int8" and not row.candidate.float_layers,
    )
    monkeypatch.setattr(networks_module, "rank_layers", ranked)
    result = run(trained, tmp_path, max_drop=20.0)
    assert (result.runtime, result.precision) == ("openvino", "fp32")
