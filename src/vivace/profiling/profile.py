"""Where a bundle's time goes, layer by layer, by its runtime's own profiler: which kernels ran, in which precision.

That a file says int8 proves nothing, since a runtime may compute a layer in float. Its profiler tells what really ran.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import Bundle
from vivace.config import check_range
from vivace.errors import ConfigError, VivaceError
from vivace.runtimes.table import is_quantized
from vivace.scratch import scratch_folder

__all__ = ["PRECISIONS", "LayerTime", "Profile", "profile_layers"]

PRECISIONS = ("int8", "bf16", "fp16", "fp32", "other")
PROGRAM = (
    "import json, sys; sys.path.extend(p for p in json.loads(sys.stdin.readline()) if p not in sys.path); "
    "from vivace.profiling.worker import serve; serve()"
)


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """A layer as the runtime executes it: with what it fused into it."""

    name: str
    """The runtime's name. OpenVINO: for layers that multiply, the name of the operation in the graph that was compiled.
    Eager PyTorch: the name of the module."""
    kind: str
    """The runtime's name for the operation: Convolution, QLinearConv, aten::mkldnn_convolution …"""
    kernel: str
    """The kernel that ran, as the runtime reports it, such as "brgconv_avx512_amx_I8"."""
    precision: str
    """Precision of its input: one of PRECISIONS; "other" if the runtime reports none, or several."""
    ms: float
    """Time in one call."""
    multiplies: bool
    """Whether it consists of convolutions or matrix products."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The layers of a bundle in the order in which they ran, with their times."""

    runtime: str
    precision: str
    batch_size: int
    layers: tuple[LayerTime, ...]
    call_ms: float
    """Time of a whole call while it was profiled, including what is between the layers and the profiler itself."""

    def share(self, precision: str) -> float:
        """Fraction of the multiplying layers' time that was computed in `precision`, one of PRECISIONS, [0, 1]."""
        return _share([layer for layer in self.layers if layer.multiplies], precision)

    def share_of_all(self, precision: str) -> float:
        """Fraction of the time of all layers that was computed in `precision`, one of PRECISIONS, [0, 1]."""
        return _share(self.layers, precision)

    @property
    def layers_ms(self) -> float:
        """Time of all layers in one call."""
        return sum(layer.ms for layer in self.layers)

    @property
    def multiplying_share(self) -> float:
        """Fraction of the time of all layers that the layers that multiply take, [0, 1]."""
        return sum(layer.ms for layer in self.layers if layer.multiplies) / max(self.layers_ms, 1e-9)

    def evidence(self) -> str:
        """One line that tells how much of the products was computed in the bundle's precision."""
        # in int8+bf16 the products are in int8
        named = "int8" if is_quantized(self.precision) else self.precision
        others = [f"{name} {self.share(name):.0%}" for name in PRECISIONS if name != named]
        rest = ", ".join(text for text in others if not text.endswith(" 0%"))
        share = self.share(named)
        measured = f"{named} kernels: {share:.0%} of the time of convolutions and matrix products"
        return f"{measured} ({rest})" if rest else measured

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.runtime} in {self.precision}, batches of {self.batch_size}: {self.layers_ms:.2f} ms in "
            f"{len(self.layers)} layers of a call of {self.call_ms:.2f} ms, {self.multiplying_share:.0%} of it "
            f"convolutions and matrix products; {self.evidence()}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **dataclasses.asdict(self),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "layers_ms": self.layers_ms,
            "multiplying_share": self.multiplying_share,
            "shares": {name: self.share(name) for name in PRECISIONS},
            "shares_of_all": {name: self.share_of_all(name) for name in PRECISIONS},
        }


def profile_layers(
    bundle: Bundle,
    images_NHWC: np.ndarray,
    *,
    calls: int = 20,
    warmup: int = 5,
    threads: int | None = None,
    timeout: float = 600.0,
) -> Profile:
    """Profile a bundle on its runtime in its precision, on the CPU, in a separate process.

    images_NHWC: one batch, uint8 at the bundle's size. calls: number of measured calls, after `warmup` others; a
    layer's time is their median (OpenVINO reports only means in whole µs: the median of three means). threads:
    processors that it may use; None: all. Times include the profiler: compare them with each other, not with a latency.
    timeout: seconds after which the process is ended; compiling counts.
    Raises ConfigError for a runtime that can't be profiled, and VivaceError if profiling fails or takes too long.
    """
    check_range("calls", calls, 1)
    check_range("warmup", warmup, 0)
    check_range("batch", len(images_NHWC), 1)
    check_range("timeout", timeout, 1)
    what = f"{bundle.info.runtime} in {bundle.info.precision} could not be profiled"
    with scratch_folder("profile") as folder:
        images = Path(folder, "images.npy")
        np.save(images, images_NHWC)
        job = {
            "bundle": os.fspath(bundle.folder),
            "runtime": bundle.info.runtime,
            "precision": bundle.info.precision,
            "images": os.fspath(images),
            "folder": os.fspath(folder),
            "calls": calls,
            "warmup": warmup,
            "threads": threads,
        }
        try:
            process = subprocess.run(
                [sys.executable, "-P", "-c", PROGRAM],
                input="".join(json.dumps(message) + "\n" for message in (sys.path, job)),
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise VivaceError(
                f"{what}: it took more than {timeout:g} s. Take fewer or smaller calls, or a longer timeout."
            ) from None
    if not process.stdout:
        words = [line for line in process.stderr.splitlines() if line.strip()]
        raise VivaceError(f"{what}: its process died with {process.returncode} ({words[-1] if words else 'silent'}).")
    answer = json.loads(process.stdout)
    if "error" in answer:
        raise (ConfigError if answer["refused"] else VivaceError)(f"{what}: {answer['error']}")
    return Profile(
        runtime=bundle.info.runtime,
        precision=bundle.info.precision,
        batch_size=len(images_NHWC),
        layers=tuple(LayerTime(**layer) for layer in answer["layers"]),
        call_ms=answer["call_ms"],
    )


def _share(layers: list[LayerTime] | tuple[LayerTime, ...], precision: str) -> float:
    if precision not in PRECISIONS:
        raise ConfigError(f"the precision is unknown: got {precision!r}. Known: {', '.join(PRECISIONS)}.")
    total = sum(layer.ms for layer in layers)
    return sum(layer.ms for layer in layers if layer.precision == precision) / total if total else 0.0
