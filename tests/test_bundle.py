"""The bundle: whole, hashed, portable, and never believed when it is not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vivace.bundle import (
    SCHEMA_VERSION,
    Architecture,
    Bundle,
    BundleInfo,
    load_bundle,
    save_bundle,
)
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError
from vivace.exporting.state_dict import export_state_dict
from vivace.files import canonical_json
from vivace.models.zoo import create_model


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    model = create_model("simple_cnn", 3, size=32)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=3, size=32),
        classes=("a", "b", "ü"),
        preprocess=Preprocess(size=32, store_size=32),
        metrics={"val": {"top1": 0.5}},
    )
    return save_bundle(tmp_path / "bundle", model, info)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the manifest as an attacker would: with its own hash made right again."""
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest.update(changes)
    manifest.pop("sha256")
    manifest["sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(manifest))


def rewrite_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    rewrite(folder, files={"model.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}})


def test_what_was_saved_is_loaded(bundle: Bundle) -> None:
    loaded = load_bundle(bundle.folder)
    assert loaded.info == bundle.info
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(loaded.build_model()(images), bundle.build_model()(images), rtol=0, atol=0)
    assert not loaded.build_model().training


def test_a_run_folder_stands_for_its_bundle(bundle: Bundle) -> None:
    assert load_bundle(bundle.folder.parent).folder == bundle.folder


def test_it_loads_without_the_training_code_and_without_network(bundle: Bundle) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from vivace.bundle import load_bundle\n"
        f"load_bundle({str(bundle.folder)!r}).build_model()\n"
        "assert not [name for name in sys.modules if name.startswith('vivace.training')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plain_pytorch_takes_the_exported_state_dict(bundle: Bundle, tmp_path: Path) -> None:
    path = export_state_dict(bundle, tmp_path / "model.pth")
    model = create_model("simple_cnn", 3, size=32).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), bundle.build_model()(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(bundle: Bundle, name: str, share: float) -> None:
    path = bundle.folder / name
    data = path.read_bytes()
    path.write_bytes(data[: int((len(data) - 2) * share)])
    with pytest.raises(BundleError, match=r"damaged|can't be read"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("place", [10, -1, 5000])
def test_one_flipped_bit_in_the_weights_is_refused(bundle: Bundle, place: int) -> None:
    path = bundle.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="its SHA-256 differs from the recorded one"):
        load_bundle(bundle.folder)


def test_one_changed_letter_in_the_manifest_is_refused(bundle: Bundle) -> None:
    path = bundle.folder / "bundle.json"
    path.write_text(path.read_text().replace('"top1": 0.5', '"top1": 0.9'))
    with pytest.raises(BundleError, match="was changed after it was written"):
        load_bundle(bundle.folder)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(BundleError, match="Pickled checkpoints are never loaded"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {**w, "0.weight": torch.zeros(5, 3, 3, 3)}, r"0\.weight is torch\.float32 \(5, 3, 3, 3\), expected"),
        (lambda w: {**w, "0.weight": w["0.weight"].double()}, r"0\.weight is torch\.float64"),
        (lambda w: {k: v for k, v in w.items() if k != "0.weight"}, r"0\.weight is nothing, expected"),
        (lambda w: {**w, "extra": torch.zeros(1)}, "extra is not part of it"),
    ],
)
def test_weights_that_do_not_fit_are_refused(bundle: Bundle, change: Any, message: str) -> None:
    rewrite_weights(bundle.folder, change(load_file(bundle.folder / "model.safetensors")))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle.folder).build_model()


def test_an_oversized_header_is_refused(bundle: Bundle) -> None:
    data = (1 << 60).to_bytes(8, "little") + b"{}"
    (bundle.folder / "model.safetensors").write_bytes(data)
    rewrite(
        bundle.folder, files={"model.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    )
    with pytest.raises(BundleError, match="can't be built"):
        load_bundle(bundle.folder).build_model()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(bundle: Bundle, tmp_path: Path, value: float) -> None:
    model = bundle.build_model()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = value
    with pytest.raises(BundleError, match=r"the weights hold NaN or Inf: 0\.weight"):
        save_bundle(tmp_path / "bad", model, bundle.info)
    assert not (tmp_path / "bad").exists()


def test_weights_that_are_not_finite_are_not_exported(bundle: Bundle, tmp_path: Path) -> None:
    weights = load_file(bundle.folder / "model.safetensors")
    weights["0.weight"][0] = float("nan")
    rewrite_weights(bundle.folder, weights)
    with pytest.raises(BundleError, match="the weights hold NaN or Inf"):
        export_state_dict(load_bundle(bundle.folder), tmp_path / "model.pth")
    assert not (tmp_path / "model.pth").exists()


def test_a_newer_schema_is_refused_with_both_versions(bundle: Bundle) -> None:
    rewrite(bundle.folder, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match=f"schema {SCHEMA_VERSION + 1}, and this vivace reads up to {SCHEMA_VERSION}"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link"])
def test_a_file_outside_the_folder_is_refused(bundle: Bundle, name: str) -> None:
    outside = bundle.folder.parent / "secret"
    outside.write_text("x")
    (bundle.folder / "link").symlink_to(outside)
    files = json.loads((bundle.folder / "bundle.json").read_text())["files"]
    rewrite(bundle.folder, files={**files, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BundleError, match="lists a file outside its folder"):
        load_bundle(bundle.folder)


def test_a_swapped_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = save_bundle(tmp_path / "other", create_model("simple_cnn", 3, size=32), bundle.info)
    (bundle.folder / "model.safetensors").write_bytes((other.folder / "model.safetensors").read_bytes())
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(bundle.folder)


def test_an_unknown_field_is_refused(bundle: Bundle) -> None:
    rewrite(bundle.folder, clases=["a"])
    with pytest.raises(BundleError, match=r"unknown key 'clases'\. Did you mean 'classes'"):
        load_bundle(bundle.folder)


def test_a_folder_without_a_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle: .* has no bundle\.json"):
        load_bundle(tmp_path)


def test_a_misspelt_folder_and_a_deployment_are_told_from_one_without_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    near = bundle.folder.with_name(bundle.folder.name + "s")
    with pytest.raises(BundleError, match="the bundle does not exist") as caught:
        load_bundle(near)
    assert f"Did you mean {str(bundle.folder)!r}?" in str(caught.value)
    deployment = tmp_path / "my dep"
    deployment.mkdir()
    for name in ("model.json", "selftest.py"):
        (deployment / name).touch()
    with pytest.raises(BundleError, match=r"is a deployment, .* python '.*my dep/selftest\.py'\. Give"):
        load_bundle(deployment)
