"""Bundles of networks of the user's own, without the code: exports, deployments, and what strangers may write."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vivace
from factories import pixels
from own_nets import Net, own_bundle, quick
from vivace.bundle import Bundle, load_bundle
from vivace.errors import BundleError, ConfigError
from vivace.manifest import manifest_hash
from vivace.runtimes.loading import load_reference

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A trained bundle of Net, and its data."""
    return own_bundle(tmp_path_factory.mktemp("own"))


def probs(bundle: Bundle) -> np.ndarray:
    return vivace.Predictor(bundle).probs(pixels(5, 16))


def test_exports_start_from_the_graph_where_there_is_no_code(own: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, data = own
    expected = probs(bundle)
    coded = vivace.load(bundle.folder, model=Net)
    assert np.allclose(load_reference(coded)(pixels(5, 16)), expected, atol=1e-5)
    onnx = vivace.export(bundle, "onnx", tmp_path / "onnx", data=data)
    assert onnx.parity is not None
    assert onnx.parity.reference == "the float32 graph"
    assert np.array_equal(probs(load_bundle(onnx.path)), expected)
    deployed = vivace.export(bundle, "deploy", tmp_path / "deployed", data=data)
    assert (deployed.path / "model.onnx").is_file()
    weights = torch.load(vivace.export(bundle, "state-dict", tmp_path / "net.pth").path, weights_only=True)
    Net(3).load_state_dict(weights)
    for target, name in (("pt2", "net.pt2"), ("aoti", "net2.pt2")):
        with pytest.raises(BundleError, match="code is needed"):
            vivace.export(bundle, target, tmp_path / name)
    assert vivace.export(coded, "pt2", tmp_path / "net.pt2").parity is not None


def test_an_openvino_bundle_keeps_the_graph_that_it_is_compared_with(own: tuple[Bundle, Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle, data = own
    exported = vivace.export(bundle, "openvino", tmp_path / "openvino", data=data)
    found = load_bundle(exported.path)
    assert (found.info.runtime, found.reference_graph) == ("openvino", "reference.onnx")
    assert np.allclose(probs(found), probs(bundle), atol=1e-4)
    assert vivace.verify(found, data=data).holds
    # and back again
    assert vivace.export(found, "onnx", tmp_path / "onnx").parity is not None
    assert load_bundle(tmp_path / "onnx").reference_graph == "model.onnx"


def test_a_predictor_of_it_can_be_sent_to_another_process(own: tuple[Bundle, Path]) -> None:
    import pickle

    predictor = pickle.loads(pickle.dumps(vivace.load(own[0].folder).predictor(threads=1)))
    assert np.allclose(predictor.probs(pixels(2, 16)), probs(own[0])[:2], atol=1e-6)
    with pytest.raises(BundleError, match="code is needed"):
        vivace.Predictor(own[0], runtime="eager")
    coded = vivace.load(own[0].folder, model=Net)
    assert np.allclose(coded.predictor(runtime="eager").probs(pixels(5, 16)), probs(own[0]), atol=1e-5)


def forged(bundle: Bundle, folder: Path, **changes: Any) -> Path:
    """A copy whose manifest says something else, with a right hash."""
    shutil.copytree(bundle.folder, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest.pop("sha256")
    for name, value in changes.items():
        manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    manifest["sha256"] = manifest_hash(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": {"name": "own/../../evil.py:X"}}, "no name of one of your own"),
        ({"architecture": {"arguments": {"checkpoint": "evil.pth"}}}, "checkpoint is no word"),
        ({"architecture": {"arguments": {"num_classes": 7}}}, "not the network's own"),
        ({"network": {"sha256": 5}}, r"network\.sha256 5"),
    ],
)
def test_what_a_forged_bundle_says_of_code_is_refused(
    own: tuple[Bundle, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = forged(own[0], tmp_path / "forged", **changes)
    with pytest.raises(BundleError, match=message):
        vivace.load(folder)


def test_the_names_in_a_bundle_are_never_followed(
    own: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("open('evil was run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = {"name": "evil.py:X", "module": "evil"}
    folder = forged(own[0], tmp_path / "forged", architecture={"name": "own/evil.py:X"}, network=network)
    bundle = vivace.load(folder)
    bundle.predictor().probs(pixels(1, 16))
    with pytest.raises(BundleError, match=r"code is needed.*evil\.py:X"):
        bundle.build_model()
    vivace.export(bundle, "deploy", tmp_path / "deployed")
    assert not (tmp_path / "evil was run").exists()
    assert "evil" not in sys.modules


def test_a_network_of_ones_own_is_no_teacher_without_its_code(own: tuple[Bundle, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="code is needed"):
        vivace.train(own[1], **quick(tmp_path, overrides={"distill.teacher": str(own[0].folder)}))


def test_a_bundle_without_a_graph_says_how_to_use_it(own: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle = dataclasses.replace(own[0], info=dataclasses.replace(own[0].info, runtime="eager"), files=())
    assert bundle.reference_graph is None
    with pytest.raises(BundleError, match=r"in Python `vivace\.load\(.*, model=Net\)`"):
        load_reference(bundle)
    with pytest.raises((BundleError, ConfigError)):
        vivace.Predictor(bundle)
