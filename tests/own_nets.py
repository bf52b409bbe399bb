"""Small networks of a user's own, and what a run of one takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vivace
from colours import colour_folder
from vivace.bundle import Bundle, load_bundle

__all__ = ["NETS", "Failing", "Net", "Noisy", "Unexportable", "nets_file", "own_bundle", "quick"]


class Net(nn.Module):
    """Three layers; the logits are in a mapping."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Any:
        return {"logits": self.head(self.body(images).amax((2, 3)))}


class Noisy(Net):
    """Seeds the generators, prints, and draws random numbers in training."""

    def __init__(self, num_classes: int) -> None:
        torch.manual_seed(123)
        print("building a noisy network")
        super().__init__(num_classes)

    def forward(self, images: Tensor) -> Any:
        return super().forward(images + 0.01 * torch.randn_like(images) if self.training else images)


class Unexportable(Net):
    """Depends on a value in a way that can't be traced."""

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)["logits"]
        return logits * 2 if float(logits.detach().sum()) > 1e9 else logits


class Failing(Net):
    """Works with few images, and fails with a batch."""

    def forward(self, images: Tensor) -> Any:
        if len(images) > 2:
            raise RuntimeError("too many images")
        return super().forward(images)


NETS = (
    "import torch\nfrom torch import nn\n\n\n"
    "class Net(nn.Sequential):\n"
    "    def __init__(self, num_classes, in_channels=3, width=8):\n"
    "        super().__init__(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(),\n"
    "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
)


def own_bundle(folder: Path) -> tuple[Bundle, Path]:
    """A trained bundle of Net, and its data: 40 images a class to train on, as many to test."""
    data = colour_folder(folder / "colours", per_class=40, splits=("train", "test"))
    result = vivace.train(data, model=Net, quiet=True, **quick(folder))
    return load_bundle(result.bundle), data


def nets_file(folder: Path) -> Path:
    """A file with a class Net."""
    path = folder / "nets.py"
    path.write_text(NETS)
    return path


def quick(folder: Path, name: str = "run", **options: Any) -> dict[str, Any]:
    """Options of a run of a second."""
    return {
        "epochs": 2,
        "batch_size": 8,
        "size": 16,
        "tune": False,
        "run": folder / name,
        "cache_dir": folder / "cache",
        "precision": "fp32",
        **options,
    }
