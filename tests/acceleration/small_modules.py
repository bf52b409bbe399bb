"""A search for a faster module whose times are told rather than taken, and modules and data for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vivace
from vivace.acceleration.modules import building as building_module
from vivace.acceleration.modules import candidates as candidates_module
from vivace.acceleration.modules import timing as timing_module
from vivace.acceleration.modules import trials as trials_module
from vivace.acceleration.modules.candidates import candidates_for
from vivace.acceleration.modules.dropin import AcceleratedModule

__all__ = [
    "FLOAT_LAYERS",
    "SPEEDS",
    "Net",
    "accelerate",
    "close",
    "exact",
    "fake_rounds",
    "images",
    "labelled",
    "made",
    "tell_speeds",
]

# how many times as fast as the module each candidate is, here
SPEEDS = {"openvino fp32": 2.0, "openvino int8": 4.0, "eager bf16": 0.5}
# a student beside the module on the same runtime
STUDENT_SPEED = 3.0
FLOAT_LAYERS = trials_module.Trials.with_float_layers


def fake_rounds(functions: Sequence[Callable[[], object]], *_: Any, num_rounds: int, **__: Any) -> np.ndarray:
    """Milliseconds by SPEEDS; every function is called once."""
    times = []
    for function in functions:
        function()
        module = getattr(function, "func", None)
        speed = 1.0
        if isinstance(module, AcceleratedModule):
            speed = SPEEDS.get(f"{module.runtime} {module.precision}", 1.0) * (STUDENT_SPEED if module.network else 1)
        times.append(10 / speed)
    return np.array([times] * num_rounds) * np.random.default_rng(0).uniform(0.99, 1.01, (num_rounds, len(times)))


def tell_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches try the candidates of SPEEDS alone, and are told these."""

    def few(device: torch.device) -> Any:
        found, _ = candidates_for(device)
        return [candidate for candidate in found if candidate.name in SPEEDS], {}

    # told to be fast here, on whatever processor
    monkeypatch.setattr(candidates_module, "supported_precisions", lambda device: ("fp32", "bf16"))
    monkeypatch.setattr(building_module, "candidates_for", few)
    # here they would be as fast as the rest of int8
    monkeypatch.setattr(trials_module.Trials, "with_float_layers", lambda trials, entry: iter(()))
    monkeypatch.setattr(timing_module, "rounds", fake_rounds)


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(32, 4)),
        )

    def forward(self, images: Tensor) -> Any:
        return self.body(images)


def images(samples: int = 320, batch: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(samples, 3, 12, 12, generator=generator).split(batch))


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def labelled(module: nn.Module, batches: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(batch, module(batch).argmax(1)) for batch in batches]


def accelerate(module: nn.Module, data: Any, **options: Any) -> Any:
    return vivace.accelerate(module, data, on_message=lambda message: None, **{"max_drop": 5.0, **options})


def close(one: Any, other: Any) -> bool:
    return torch.allclose(one, other, atol=1e-4)


def exact(outputs: Tensor, original: Tensor) -> Tensor:
    """What float32 keeps and int8 does not."""
    return (outputs - original).abs().amax(1) < 1e-3
