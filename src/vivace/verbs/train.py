"""vivace.train: training, after which the bundle of a network of the user's own gets a graph that needs no code.

Training knows no exporters, which stand above it: it is given one here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

from vivace.training.result import TrainResult
from vivace.training.train import train as run_training

if TYPE_CHECKING:
    import numpy as np

    from vivace.bundle import Bundle

__all__ = ["train"]

P = ParamSpec("P")


def _with_graph(bundle: Bundle, images_NHWC: np.ndarray, images: str) -> str | None:
    from vivace.exporting.graph_bundle import add_graph

    return add_graph(bundle, images_NHWC, images)


def _completed(run: Callable[P, TrainResult]) -> Callable[P, TrainResult]:
    """The training that adds the graph; its signature is without the parameter that does so."""

    @functools.wraps(run)
    def train(*args: P.args, **kwargs: P.kwargs) -> TrainResult:
        kwargs.setdefault("complete", _with_graph)
        return run(*args, **kwargs)

    signature = inspect.signature(run)
    shown = [parameter for name, parameter in signature.parameters.items() if name != "complete"]
    train.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return train


train = _completed(run_training)
