"""Comparing what two runs gave, to the last bit."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from vivace.training.result import TrainResult


def bundle_weights(result: TrainResult) -> dict[str, torch.Tensor]:
    """The weights of a run's bundle."""
    return load_file(result.bundle / "model.safetensors")


def assert_same_weights(first: TrainResult, second: TrainResult) -> None:
    """Bitwise the same file."""
    names = bundle_weights(first)
    other = bundle_weights(second)
    assert names.keys() == other.keys()
    for name, tensor in names.items():
        assert torch.equal(tensor, other[name]), name
    assert (first.bundle / "model.safetensors").read_bytes() == (second.bundle / "model.safetensors").read_bytes()
