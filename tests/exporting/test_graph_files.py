"""Single files, damaged graphs, and what is done where a converter lacks a rule."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vivace
from answers import last_answer
from factories import make_bundle, pixels
from vivace.bundle import Bundle, load_bundle
from vivace.cli import main
from vivace.compression.quantize import has_attention
from vivace.errors import BundleError, ConfigError, ExportError, OutputPathError, VivaceError
from vivace.exporting import export as export_module
from vivace.exporting import graphs, progress
from vivace.exporting import openvino as openvino_export
from vivace.exporting.export import export
from vivace.exporting.export_errors import exporting
from vivace.exporting.labels import description
from vivace.files import canonical_json, sha256_of
from vivace.libraries.openvino import library
from vivace.models.zoo import create_model
from vivace.runtimes import onnx, openvino
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.quiet import quiet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A plain bundle, and one for each runtime."""
    root = tmp_path_factory.mktemp("graphs")
    plain = make_bundle(root / "plain", widths=[8], depth=1)
    exported = {target: load_bundle(export(plain, target, root / target).path) for target in ("onnx", "openvino")}
    return {"plain": plain, **exported}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("target", "name"), [("onnx", "x.onnx"), ("openvino", "x.xml")])
def test_a_name_of_a_file_gives_a_file(made: dict[str, Bundle], tmp_path: Path, target: str, name: str) -> None:
    plain = made["plain"]
    exported = export(plain, target, tmp_path / name)
    files = {"onnx": {"x.onnx", "x.onnx.json"}, "openvino": {"x.xml", "x.bin", "x.xml.json"}}[target]
    assert set(contents(tmp_path)) == files
    classify = (
        onnx.classifier_of(exported.path)
        if target == "onnx"
        else openvino.classifier_of(exported.path, tmp_path / "x.bin", "fp32")
    )
    expected = load_runtime("eager", plain, device=CPU, precision="fp32")(pixels(3))
    np.testing.assert_allclose(classify(pixels(3)), expected, atol=1e-4)
    told = json.loads((tmp_path / f"{name}.json").read_text())
    assert told["classes"] == list(plain.classes)
    assert (told["input"]["name"], told["output"]["name"]) == ("images", "probs")
    # again: it is vivace's own; then it was changed, and is not
    export(plain, target, tmp_path / name)
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(OutputPathError, match="exists already, and was not written by vivace"):
        export(plain, target, tmp_path / name)
    assert contents(tmp_path) == before


def test_the_name_of_another_format_is_refused(made: dict[str, Bundle], tmp_path: Path) -> None:
    for target, name in (("openvino", "x.onnx"), ("onnx", "x.pt2"), ("deploy", "x.onnx"), ("state-dict", "x.onnx")):
        with pytest.raises(ConfigError, match=rf"`to='{target}'` writes .*: got .*{name}, a name for"):
            export(made["plain"], target, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["onnx", "openvino", "deploy", "web", "pt2", "state-dict"])
def test_nothing_is_done_before_the_place_was_checked(
    made: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(export_module, "_write", lambda *_: pytest.fail("work began"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("work")
    before = contents(tmp_path)
    for out in (tmp_path / "thesis", tmp_path / "thesis" / "thesis.txt", made["plain"].folder / "x"):
        with pytest.raises(OutputPathError):
            export(made["plain"], target, out)
    assert contents(tmp_path) == before


def resealed(bundle: Bundle, folder: Path, change: Callable[[Path], None]) -> Path:
    """A copy whose files were changed by somebody who made every hash right."""
    shutil.copytree(bundle.folder, folder)
    change(folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest.pop("sha256")
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    manifest["sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return change


def external(folder: Path) -> None:
    """The first weights lie in a file elsewhere."""
    import onnx as library

    model = library.load(folder / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = library.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("runtime", "change"),
    [
        ("openvino", cut("model.xml", 0.5)),
        ("openvino", cut("model.xml", 0.0)),
        ("openvino", cut("model.bin", 0.5)),
        ("openvino", cut("model.bin", 0.0)),
        ("onnx", cut("model.onnx", 0.5)),
        ("onnx", cut("model.onnx", 0.0)),
        ("onnx", external),
    ],
)
def test_a_damaged_graph_whose_hash_is_right_is_one_line(
    made: dict[str, Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    runtime: str,
    change: Callable[[Path], None],
) -> None:
    folder = resealed(made[runtime], tmp_path / "changed", change)
    assert main(["verify", str(folder)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("BundleError: ")
    assert len(said) <= 500
    assert "\n" not in said


def test_a_graph_of_another_bundle_answers_another_number_of_classes(made: dict[str, Bundle], tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "bundle.json").read_text())
        manifest["classes"].append("x")
        manifest["architecture"]["num_classes"] = 4
        (folder / "bundle.json").write_text(json.dumps(manifest))

    bundle = load_bundle(resealed(made["onnx"], tmp_path / "changed", change))
    classify = load_runtime("onnx", bundle, device=CPU, precision="fp32")
    with pytest.raises(BundleError, match=r"the graph answers \[2, 3\] for \[2, 4\]"):
        classify(pixels(2))


def test_weights_of_openvino_that_the_manifest_does_not_list_are_refused(
    made: dict[str, Bundle], tmp_path: Path
) -> None:
    bundle = made["openvino"]
    unlisted = Bundle(bundle.folder, bundle.info, tuple(name for name in bundle.files if name != "model.bin"))
    with pytest.raises(BundleError, match=r"bundle\.json does not list model\.bin"):
        load_runtime("openvino", unlisted, device=CPU, precision="fp32")
    shutil.copytree(bundle.folder, tmp_path / "linked")
    (tmp_path / "linked" / "model.bin").unlink()
    (tmp_path / "linked" / "model.bin").symlink_to(bundle.folder / "model.bin")
    with pytest.raises(BundleError, match="is a link"):
        load_runtime("openvino", Bundle(tmp_path / "linked", bundle.info, bundle.files), device=CPU, precision="fp32")


class Interpolated(nn.Module):
    """Positions that are interpolated, as ViTs do for another size: OpenVINO has no rule for it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 3, 14, 14))
        self.head = nn.Linear(3, 3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        size = images_BCHW.shape[-2:]
        grown = nn.functional.interpolate(self.positions, size, mode="bicubic", antialias=True)
        logits_BK: Tensor = self.head((images_BCHW + grown).relu().mean((2, 3)))
        return logits_BK


def test_what_openvino_cant_convert_goes_by_way_of_onnx(
    made: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Interpolated().eval()
    monkeypatch.setattr(Bundle, "build_model", lambda self: model)
    with quiet(), pytest.raises(ExportError, match="_upsample_bicubic2d_aa"), exporting("openvino"):
        library().convert_model(graphs.traced(made["plain"]))
    openvino_export.write_graph(made["plain"], tmp_path)
    classify = openvino.classifier_of(tmp_path / "model.xml", tmp_path / "model.bin", "fp32")
    expected = load_runtime("eager", made["plain"], device=CPU, precision="fp32")(pixels(4))
    np.testing.assert_allclose(classify(pixels(4)), expected, atol=1e-4)


def test_what_openvino_cant_take_at_all_becomes_a_bundle_for_onnx_runtime(
    made: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(bundle: Bundle, folder: Path) -> None:
        raise ExportError("openvino can't take this network: no rule. Use another form.")

    monkeypatch.setattr(openvino_export, "write_graph", refuse)
    assert main(["export", str(made["plain"].folder), "--to", "openvino", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "warning: openvino can't take this network: no rule." in said.err
    assert "A bundle for ONNX Runtime was written in its place" in said.err
    assert "onnx of fast_cnn" in said.out
    assert load_bundle(tmp_path / "out").info.runtime == "onnx"


def test_a_long_export_says_what_it_is_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    said, comparing = [], threading.Event()

    class Stream:
        def write(self, text: str) -> None:
            said.append(text)
            if "comparing" in text:
                comparing.set()

        def flush(self) -> None: ...

    assert progress.SECONDS == 60
    monkeypatch.setattr(progress, "SECONDS", 0.001)
    monkeypatch.setattr(progress.sys, "stderr", Stream())
    with progress.reporting("export to pt2"):
        progress.doing("comparing it with PyTorch")
        assert comparing.wait(60)
    assert any(text.startswith("export to pt2: comparing it with PyTorch, ") for text in said)


def test_verify_of_a_plain_bundle_says_that_nothing_was_compared(
    made: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((made["plain"].folder / "bundle.json").read_text())
    assert manifest["precision"] == "bf16"

    def plain(folder: Path) -> None:
        changed = {**manifest, "precision": "fp32"}
        (folder / "bundle.json").write_text(json.dumps(changed))

    folder = resealed(made["plain"], tmp_path / "plain", plain)
    assert main(["verify", str(folder), "--json"]) == 0
    told = last_answer(capsys.readouterr().out)
    assert (told["compared"], told["max_difference"], told["top1_agreement"]) == (False, None, None)
    assert (told["repeats"], told["holds"]) == (True, True)
    found = vivace.verify(folder)
    assert (found.compared, found.agreement, found.max_difference, found.holds) == (False, None, None, True)
    assert main(["verify", str(folder)]) == 0
    assert "so there was nothing to compare" in capsys.readouterr().out
    # in bf16 there is
    assert main(["verify", str(made["plain"].folder), "--json"]) == 0
    assert last_answer(capsys.readouterr().out)["compared"] is True


def test_attention_is_found_by_what_a_network_is_made_of() -> None:
    def network(name: str, **options: Any) -> nn.Module:
        return create_model(name, 3, in_channels=3, size=64, **options)

    assert not has_attention(network("timm/seresnet18"))
    # "vit" is in the name of both, attention in one
    assert has_attention(network("timm/vit_tiny_patch16_224"))
    assert has_attention(nn.Sequential(nn.MultiheadAttention(4, 2)))


def test_a_profile_that_takes_too_long_is_given_up(made: dict[str, Bundle]) -> None:
    from vivace.profiling.profile import profile_layers

    with pytest.raises(VivaceError, match=r"could not be profiled: it took more than 1 s"):
        profile_layers(made["plain"], pixels(1), calls=10_000_000, timeout=1.0)


def test_a_description_is_plain_ascii(made: dict[str, Bundle]) -> None:
    assert all(value.isascii() and value.isprintable() for value in description(made["plain"]).values())
