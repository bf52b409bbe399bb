"""A search whose times are told rather than taken: what it decides depends on nothing that the machine does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vivace.acceleration import candidates as candidates_module
from vivace.acceleration import measurements as measurements_module
from vivace.acceleration.accelerate import Acceleration, accelerate
from vivace.bundle import Bundle
from vivace.profiling.profile import LayerTime, Profile
from vivace.timing.interleaved import Side, Timings

__all__ = ["COSTS", "fake_times", "keep_fake_variants", "run", "told_layers"]

# ms of a call, as a machine might have them
COSTS = {"eager fp32": 4.0, "onnx fp32": 2.0, "onnx int8": 3.0, "openvino fp32": 2.5, "openvino int8": 1.0}


def keep_fake_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all variants those of COSTS: none that depends on a compiler or on this machine's precisions."""
    variants = tuple(
        f for f in candidates_module.VARIANTS if f"{f.runtime} {f.precision}" in COSTS and not f.asymmetric
    )
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)


def told_layers(bundle: Bundle, images_NHWC: np.ndarray, **_: Any) -> Profile:
    """A profile that is told, too: a real one starts a process and imports the runtime there."""
    info = bundle.info
    layer = LayerTime(name="conv", kind="Convolution", kernel="told", precision=info.precision, ms=0.5, multiplies=True)
    return Profile(
        runtime=info.runtime, precision=info.precision, batch_size=len(images_NHWC), layers=(layer,), call_ms=1.0
    )


def fake_times(monkeypatch: pytest.MonkeyPatch, costs: dict[str, float]) -> list[list[str]]:
    """Times and layers are told, the times by `costs`; returns what was timed together."""
    asked: list[list[str]] = []

    def time_sides(
        sides: Sequence[Side], images: np.ndarray, *, rounds: int, processes: int = 1, **_: Any
    ) -> list[Timings]:
        asked.append([side.name for side in sides])
        rng = np.random.default_rng(0)
        return [
            Timings(
                name=side.name,
                blocks_ms=tuple(
                    tuple(costs.get(side.name, costs["eager fp32"]) * rng.uniform(0.99, 1.01, 5)) for _ in range(rounds)
                ),
                processes=tuple(number * processes // rounds for number in range(rounds)),
                cold_start_seconds=1.0,
                peak_memory_bytes=10**8,
            )
            for side in sides
        ]

    monkeypatch.setattr(measurements_module, "time_sides", time_sides)
    monkeypatch.setattr(measurements_module, "profile_layers", told_layers)
    return asked


def run(trained: tuple[Bundle, Path], tmp_path: Path, **options: Any) -> Acceleration:
    bundle, data = trained
    return accelerate(bundle, data, out=tmp_path / "fast", on_message=lambda message: None, **options)
