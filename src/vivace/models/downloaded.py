"""Weights that timm or torchvision downloaded on an earlier day: where their caches keep them (no torch here)."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vivace.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "TORCHVISION",
    "TORCHVISION_DEFAULT",
    "all_in_hub_cache",
    "in_hub_cache",
    "in_torchvision_cache",
    "read_torchvision",
    "tags_in_hub_cache",
]

# a network of timm with the tag of its weights → the same weights as torchvision publishes them. The digits at the end
# are the first of the file's SHA-256
TORCHVISION = {
    "regnetx_004_tv.tv2_in1k": "regnet_x_400mf-62229a5f.pth",
    "regnetx_008.tv2_in1k": "regnet_x_800mf-94a99ebd.pth",
    "regnetx_016.tv2_in1k": "regnet_x_1_6gf-a12f2b72.pth",
    "regnetx_032.tv2_in1k": "regnet_x_3_2gf-7071aa85.pth",
    "regnetx_080.tv2_in1k": "regnet_x_8gf-2b70d774.pth",
    "regnetx_160.tv2_in1k": "regnet_x_16gf-ba3796d7.pth",
    "regnetx_320.tv2_in1k": "regnet_x_32gf-6eb8fdc6.pth",
    "regnety_004.tv2_in1k": "regnet_y_400mf-e6988f5f.pth",
    "regnety_008_tv.tv2_in1k": "regnet_y_800mf-58fc7688.pth",
    "regnety_016.tv2_in1k": "regnet_y_1_6gf-0d7bc02a.pth",
    "regnety_032.tv2_in1k": "regnet_y_3_2gf-9180c971.pth",
    "regnety_080_tv.tv2_in1k": "regnet_y_8gf-dc2b1b54.pth",
    "regnety_160.swag_ft_in1k": "regnet_y_16gf_swag-43afe44d.pth",
    "regnety_160.swag_lc_in1k": "regnet_y_16gf_lc_swag-f3ec0043.pth",
    "regnety_160.tv2_in1k": "regnet_y_16gf-3e4a00f9.pth",
    "regnety_320.swag_ft_in1k": "regnet_y_32gf_swag-04fdfa75.pth",
    "regnety_320.swag_lc_in1k": "regnet_y_32gf_lc_swag-e1583746.pth",
    "regnety_320.tv2_in1k": "regnet_y_32gf-8db6d4b5.pth",
    "regnety_1280.swag_ft_in1k": "regnet_y_128gf_swag-c8ce3e52.pth",
    "regnety_1280.swag_lc_in1k": "regnet_y_128gf_lc_swag-cbe8ce12.pth",
    "resnet18.tv_in1k": "resnet18-f37072fd.pth",
    "resnet34.tv_in1k": "resnet34-b627a593.pth",
    "resnet50.tv2_in1k": "resnet50-11ad3fa6.pth",
    "resnet50.tv_in1k": "resnet50-0676ba61.pth",
    "resnet101.tv2_in1k": "resnet101-cd907fc2.pth",
    "resnet101.tv_in1k": "resnet101-63fe2227.pth",
    "resnet152.tv2_in1k": "resnet152-f82ba261.pth",
    "resnet152.tv_in1k": "resnet152-394f9c45.pth",
    "resnext50_32x4d.tv2_in1k": "resnext50_32x4d-1a0047aa.pth",
    "resnext50_32x4d.tv_in1k": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d.tv2_in1k": "resnext101_32x8d-110c445d.pth",
    "resnext101_32x8d.tv_in1k": "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_64x4d.tv_in1k": "resnext101_64x4d-173b62eb.pth",
    "wide_resnet50_2.tv2_in1k": "wide_resnet50_2-9ba9bcbe.pth",
    "wide_resnet50_2.tv_in1k": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet101_2.tv2_in1k": "wide_resnet101_2-d733dc28.pth",
    "wide_resnet101_2.tv_in1k": "wide_resnet101_2-32ee1156.pth",
    "vgg11.tv_in1k": "vgg11-8a719046.pth",
    "vgg11_bn.tv_in1k": "vgg11_bn-6002323d.pth",
    "vgg13.tv_in1k": "vgg13-19584684.pth",
    "vgg13_bn.tv_in1k": "vgg13_bn-abd245e5.pth",
    "vgg16.tv_in1k": "vgg16-397923af.pth",
    "vgg16_bn.tv_in1k": "vgg16_bn-6c64b313.pth",
    "vgg19.tv_in1k": "vgg19-dcbb9e9d.pth",
    "vgg19_bn.tv_in1k": "vgg19_bn-c79401a0.pth",
    "densenet121.tv_in1k": "densenet121-a639ec97.pth",
    "densenet161.tv_in1k": "densenet161-8d451a50.pth",
    "densenet169.tv_in1k": "densenet169-b2777c0a.pth",
    "densenet201.tv_in1k": "densenet201-c1103571.pth",
}
# those whose tag is the one that timm takes where none is given
TORCHVISION_DEFAULT = frozenset(
    (
        "densenet161.tv_in1k",
        "densenet169.tv_in1k",
        "densenet201.tv_in1k",
        "regnetx_004_tv.tv2_in1k",
        "regnetx_008.tv2_in1k",
        "regnetx_016.tv2_in1k",
        "regnetx_032.tv2_in1k",
        "regnetx_080.tv2_in1k",
        "regnetx_160.tv2_in1k",
        "regnetx_320.tv2_in1k",
        "regnety_004.tv2_in1k",
        "regnety_008_tv.tv2_in1k",
        "regnety_016.tv2_in1k",
        "regnety_080_tv.tv2_in1k",
        "regnety_1280.swag_ft_in1k",
        "regnety_320.tv2_in1k",
        "resnext101_32x8d.tv_in1k",
        "vgg11.tv_in1k",
        "vgg11_bn.tv_in1k",
        "vgg13.tv_in1k",
        "vgg13_bn.tv_in1k",
        "vgg16.tv_in1k",
        "vgg16_bn.tv_in1k",
        "vgg19.tv_in1k",
        "vgg19_bn.tv_in1k",
        "wide_resnet101_2.tv_in1k",
    )
)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def in_hub_cache(network: str, files: tuple[str, ...] = HUB_FILES) -> Path | None:
    """The file with timm's weights `network`, such as "resnet18.a1_in1k", in Hugging Face's cache; None: not there."""
    if not (_hub_cache() / f"models--timm--{network}").is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(f"timm/{network}", file) for file in files)
    # other answers: not there, or known not to exist
    return next((Path(path) for path in found if isinstance(path, str)), None)


def tags_in_hub_cache(architecture: str) -> list[str]:
    """The tags of an architecture's weights in Hugging Face's cache, sorted."""
    return [name.partition(".")[2] for name in all_in_hub_cache() if name.partition(".")[0] == architecture]


def all_in_hub_cache() -> list[str]:
    """timm's weights that Hugging Face's cache has a folder for, such as "resnet18.a1_in1k", sorted."""
    prefix = "models--timm--"
    try:
        return sorted(path.name[len(prefix) :] for path in _hub_cache().iterdir() if path.name.startswith(prefix))
    except OSError:
        return []


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def in_torchvision_cache(network: str) -> Path | None:
    """The file with the weights `network`, such as "resnet18.tv_in1k", that torchvision keeps; None: not there."""
    file = TORCHVISION.get(network)
    path = None if file is None else _torch_home() / "checkpoints" / file
    return path if path is not None and path.is_file() else None


def _torch_home() -> Path:
    """The folder of torch.hub, which is not imported for it: $TORCH_HOME/hub unless a program set another."""
    if (hub := sys.modules.get("torch.hub")) is not None:
        return Path(hub.get_dir())
    base = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")  # noqa: PTH118
    return Path(base).expanduser() / "hub"


def read_torchvision(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of torchvision's cache, under torchvision's names, on the CPU.

    Raises ModelError unless its SHA-256 begins with the digits in its name, which is what torch.hub checks after a
    download.
    """
    import torch

    match = re.fullmatch(r".+-([0-9a-f]{8,})\.pth", path.name)
    assert match is not None, path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the weights can't be read: {path} ({error.strerror}). Check its rights.") from None
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(match[1]):
        raise ModelError(
            f"{path} in torchvision's cache is damaged: its SHA-256 begins with {found[: len(match[1])]}, and its name "
            f"says {match[1]}. Remove it, and it is downloaded again."
        )
    with warnings.catch_warnings():
        # about pickles of another protocol
        warnings.simplefilter("ignore")
        weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights
