"""Files for phones: each library's own runtime computes from the file what PyTorch does, or there is no file."""

from __future__ import annotations

import builtins
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factories import make_bundle, pixels
from vivace.bundle import Bundle
from vivace.errors import MissingExtra, ParityError
from vivace.exporting import executorch, litert, mobile
from vivace.exporting.export import export
from vivace.files import sha256_of
from vivace.runtimes.loading import load_runtime

LOADERS = {"executorch": executorch.load_file, "litert": litert.load_file}
INSTALLED = {"executorch": find_spec("executorch"), "litert": find_spec("litert_torch")}
TARGETS = [
    pytest.param(name, marks=pytest.mark.skipif(found is None, reason=f"{name} is not installed here"))
    for name, found in INSTALLED.items()
]
# of libraries that are not ours, when they are imported
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", widths=[8, 16], depth=1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simple_cnn", {"channels": 1}),
        ("fast_cnn", {"widths": [8, 16], "depth": 2, "residual": True}),
        ("timm/resnet10t", {"size": 64}),
    ],
    ids=["simple_cnn", "fast_cnn", "timm"],
)
def test_the_file_answers_as_pytorch(tmp_path: Path, target: str, name: str, options: dict[str, Any]) -> None:
    bundle, out = make_bundle(tmp_path / "bundle", name, **options), tmp_path / "model"
    exported = export(bundle, target, out)
    assert exported.parity is not None
    assert (exported.parity.runtime, exported.parity.top1_agreement) == (target, 1.0)
    images = pixels(3, options.get("size", 32), options.get("channels", 3))
    plain = load_runtime("eager", bundle, device=torch.device("cpu"), precision="fp32")
    np.testing.assert_allclose(LOADERS[target](out)(images), plain(images), atol=1e-5)
    said = json.loads((tmp_path / "model.json").read_text())
    assert (said["target"], said["classes"], said["sha256"]) == (target, list(bundle.classes), sha256_of(out))
    assert said["input"]["one_image"]
    assert said["preprocess"]["mean"] == list(bundle.preprocess.mean)


@pytest.mark.parametrize("target", TARGETS)
def test_what_disagrees_is_not_left_on_disk(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    deployed_graph = mobile.deployed_graph

    def wrong(bundle: Bundle) -> Any:
        graph, example = deployed_graph(bundle)
        with torch.no_grad():
            graph.model.head.weight.mul_(1.1)  # type: ignore[operator, union-attr]
        return graph, example

    monkeypatch.setattr(mobile, "deployed_graph", wrong)
    with pytest.raises(ParityError, match=rf"{target} does not agree with PyTorch"):
        export(bundle, target, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize(
    ("target", "library", "module"), [("executorch", "executorch", "executorch"), ("litert", "litert-torch", "litert")]
)
def test_a_library_that_is_not_installed_is_told_with_its_extra(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, library: str, module: str
) -> None:
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith(module):
            raise ImportError(name)
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=rf"needs {library}, which .*pip install 'vivace\[{target}\]'"):
        export(bundle, target, tmp_path / "model")
    assert not (tmp_path / "model").exists()
