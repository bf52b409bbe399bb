"""What may go wrong with acceleration is refused or told, and costs no more than itself (faults 36, 40 to 44)."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import COSTS, fake_times
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from answers import last_answer
from factories import make_bundle
from vivace import bundle as bundle_module
from vivace import hardware
from vivace.acceleration import candidates as candidates_module
from vivace.bundle import Bundle
from vivace.cli import main
from vivace.models import zoo
from vivace.runtimes.table import with_graph

MakeFolder = Callable[..., Path]
OPENVINO_INT8 = tuple(f"openvino {name}{kind}" for kind in ("", ", asymmetric") for name in ("int8", "int8+bf16"))


class Network(nn.Module):
    """A small classifier whose answers a part of its own decides."""

    def __init__(self, part: Callable[[Tensor], Tensor], num_classes: int, in_channels: int, size: int) -> None:
        super().__init__()
        self.part = part
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        maps_BCHW = self.conv(images_BCHW)
        logits: Tensor = self.head(maps_BCHW.mean((2, 3)) + self.part(maps_BCHW))
        return logits


CALLS = itertools.count()


def remembers(maps_BCHW: Tensor) -> Tensor:
    """Python code that an export runs once: what it gave then stays in the graph."""
    return maps_BCHW.mean((2, 3)) * next(CALLS)


def determinants(maps_BCHW: Tensor) -> Tensor:
    """OpenVINO has no operator for them."""
    return torch.linalg.det(maps_BCHW[:, :, :3, :3])


def singular_values(maps_BCHW: Tensor) -> Tensor:
    """Neither ONNX nor OpenVINO has an operator for them."""
    return torch.linalg.svdvals(maps_BCHW[:, 0, :4, :4])


@pytest.fixture
def make_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], Bundle]:
    """make_network(part): the bundle of a `Network`."""

    def make(part: Callable[[Tensor], Tensor]) -> Bundle:
        def create(num_classes: int, *, in_channels: int, size: int) -> nn.Module:
            return Network(part, num_classes, in_channels, size)

        monkeypatch.setitem(zoo.ZOO, "custom", create)
        return make_bundle(tmp_path / "bundle", "custom")

    return make


@pytest.fixture
def plain(tmp_path: Path, graphs_made_once: None) -> Bundle:
    return make_bundle(tmp_path / "bundle", widths=[8, 16], depth=1)


@pytest.fixture
def data(make_folder: MakeFolder) -> Path:
    return make_folder(per_class=40, splits=("train", "test"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings that are the same everywhere, of variants that need no compiler."""
    fake_times(monkeypatch, COSTS)
    variants = tuple(variant for variant in candidates_module.VARIANTS if variant.runtime not in ("inductor", "aoti"))
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)


@pytest.fixture
def few(told: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these one in float32 and one in int8 of each runtime: a graph that can't be written takes seconds to fail."""
    variants = tuple(
        variant
        for variant in candidates_module.VARIANTS
        if variant.precision in ("fp32", "int8") and not variant.asymmetric
    )
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)


def accelerate(bundle: Bundle, data: Path, out: Path, *options: str) -> int:
    return main(["accelerate", str(bundle.folder), str(data), "--out", str(out), *options])


def receipt(out: Path) -> dict[str, Any]:
    """Of a search that found something, or of one that did not."""
    path = out / "receipt.json"
    text = (path if path.is_file() else out.with_name(f"{out.name}-receipt.json")).read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def statuses(written: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in written["rows"]}


@pytest.mark.parametrize("target", [*with_graph(), "pt2"])
def test_an_exported_model_that_disagrees_is_refused_and_removed(
    make_network: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(make_network(remembers).folder), "--to", target, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert f"ParityError: {target} does not agree with PyTorch" in said.err
    assert "Nothing was kept" in said.err
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("target", with_graph())
def test_an_operator_that_a_runtime_lacks_is_named_by_the_export(
    make_network: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(make_network(singular_values).folder), "--to", target, "--out", str(out)]) == 1
    said = capsys.readouterr().err.strip()
    # exporters tell their progress above it
    last = said.splitlines()[-1]
    assert last.startswith(f"ExportError: {target} can't take this network: ")
    assert "aten._linalg_svd" in last
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_operator_that_one_runtime_lacks_costs_only_its_forms(
    make_network: Callable[..., Bundle], data: Path, tmp_path: Path, few: None
) -> None:
    out = tmp_path / "fast"
    assert accelerate(make_network(determinants), data, out, "--max-drop", "20") == 0
    written = receipt(out)
    assert written["winner"] == "onnx fp32"
    failed = {name: status for name, status in statuses(written).items() if name.startswith("openvino")}
    assert {"openvino fp32", "openvino int8"} <= set(failed)
    for status in failed.values():
        assert status.startswith("could not be built: ExportError: openvino can't take this network")
        assert "aten.linalg_det" in status or "aten._linalg_det" in status
    assert "openvino can't take this network" in (out / "receipt.md").read_text()


def test_where_no_other_runtime_takes_the_network_the_search_still_ends_with_its_receipt(
    make_network: Callable[..., Bundle], data: Path, tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    assert accelerate(make_network(singular_values), data, out, "--max-drop", "20") == 3
    written = receipt(out)
    assert (written["winner"], written["baseline"]) == (None, "eager fp32")
    failed, said = statuses(written), capsys.readouterr().out
    for runtime in with_graph():
        for precision in ("fp32", "int8"):
            status = failed[f"{runtime} {precision}"]
            assert "aten._linalg_svd" in status
            assert f"| {status} |" in said


def test_a_precision_that_the_processor_lacks_is_reported_and_another_variant_wins(
    plain: Bundle,
    data: Path,
    tmp_path: Path,
    told: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # a processor of 2015
    monkeypatch.setattr(hardware, "cpu_features", lambda: ("avx2",))
    out = tmp_path / "fast"
    assert accelerate(plain, data, out, "--max-drop", "20") == 0
    written = receipt(out)
    lost = ("eager bf16", "openvino bf16", "openvino int8+bf16", "openvino int8+bf16, asymmetric")
    assert written["missing"] == dict.fromkeys(lost, "this processor has no bf16 instructions")
    assert not set(lost) & set(statuses(written))
    assert written["winner"] is not None
    assert "- openvino bf16: this processor has no bf16 instructions" in capsys.readouterr().out


def test_where_no_variant_is_within_the_budget_the_exit_status_is_3_and_every_variant_is_told(
    plain: Bundle, data: Path, tmp_path: Path, told: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    # 120 images can't prove so little
    assert accelerate(plain, data, out, "--max-drop", "0.01") == 3
    said = capsys.readouterr()
    assert "no candidate was both faster and within the accuracy budget: the bundle is unchanged" in said.err
    assert f"the bundle: {plain.folder}" in said.out
    assert not out.exists()
    written = receipt(out)
    assert written["winner"] is None
    judged = [row for row in written["rows"] if row["certified"]]
    assert [(row["status"], row["reason"]) for row in judged] == [("not_proven", "not proven")]
    assert judged[0]["certified"]["bound"] > 0.01
    # how far it is from the budget, for people too
    note = written["notes"][0]
    assert note.startswith(f"{judged[0]['name']}: ")
    assert "not within 0.01" in note
    assert f"- {note}" in said.out


def test_where_no_variant_is_within_the_budget_the_best_one_is_named(
    plain: Bundle, data: Path, tmp_path: Path, told: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    assert accelerate(plain, data, out, "--max-drop", "0.01", "--json") == 3
    said = capsys.readouterr()
    answer = last_answer(said.out)
    assert (answer["accelerated"], answer["bundle"], answer["num_certify_images"]) == (False, str(plain.folder), 120)
    best = receipt(out)["best"]
    assert best in statuses(receipt(out))
    assert best in said.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("library", "lost"),
    [
        ("openvino", ("openvino fp32", "openvino bf16", *OPENVINO_INT8)),
        ("nncf", OPENVINO_INT8),
    ],
)
def test_a_library_that_is_not_installed_is_told_with_the_command_that_installs_it(
    plain: Bundle,
    data: Path,
    tmp_path: Path,
    told: None,
    monkeypatch: Any,
    capsys: Any,
    library: str,
    lost: tuple[str, ...],
) -> None:
    # neither found nor imported
    monkeypatch.setitem(sys.modules, library, None)
    out = tmp_path / "fast"
    assert accelerate(plain, data, out, "--max-drop", "20") == 0
    written = receipt(out)
    assert any(row["runtime"] == "openvino" for row in written["rows"]) == (library == "nncf")
    fix = f"{library} is not installed: pip install 'vivace[accelerate]'"
    assert {name for name, why in written["missing"].items() if why == fix} == set(lost)
    for text in (capsys.readouterr().out, (out / "receipt.md").read_text()):
        assert all(f"- {name}: {fix}" in text for name in lost)


@pytest.fixture
def broken(plain: Bundle) -> Bundle:
    """A bundle with a NaN, whole by its hashes: what another program wrote, or a training that was not watched."""
    path = plain.folder / "model.safetensors"
    weights = load_file(path)
    weights["head.weight"][0, 0] = float("nan")
    save_file(weights, path)
    (plain.folder / "bundle.json").unlink()
    bundle_module._write_manifest(plain.folder, plain.info)
    return plain


@pytest.mark.parametrize("target", [*with_graph(), "state-dict"])
def test_weights_that_are_not_finite_are_not_exported(
    broken: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert main(["export", str(broken.folder), "--to", target, "--out", str(tmp_path / "out")]) == 2
    assert "BundleError: the weights hold NaN or Inf: head.weight" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_weights_that_are_not_finite_are_not_accelerated(
    broken: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accelerate(broken, data, tmp_path / "fast") in (1, 2)
    assert "the weights hold NaN or Inf: head.weight" in capsys.readouterr().err
    assert not (tmp_path / "fast").exists()
