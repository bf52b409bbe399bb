"""Runtimes: what computes a bundle's probabilities. One file each, imported when it is asked for; one table here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from vivace.errors import ConfigError, nearest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vivace.bundle import Bundle

__all__ = ["RUNTIMES", "Classifier", "load_runtime"]

# name → module with `load(bundle, *, device, precision) -> Classifier`
RUNTIMES = {"eager": "vivace.runtimes.eager"}


class Classifier(Protocol):
    """images_NHWC uint8 at the bundle's size → probs_NK float32."""

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray: ...


def load_runtime(name: str, bundle: Bundle, *, device: torch.device, precision: str) -> Classifier:
    """The classifier of a bundle on a runtime. Raises ConfigError for an unknown name."""
    if name not in RUNTIMES:
        raise ConfigError(
            f"the runtime is unknown: got {name!r}.{nearest(name, RUNTIMES)} Known: {', '.join(RUNTIMES)}."
        )
    classifier: Classifier = import_module(RUNTIMES[name]).load(bundle, device=device, precision=precision)
    return classifier
