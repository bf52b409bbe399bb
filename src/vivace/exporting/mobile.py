"""What exports for phones and small devices have in common.

They take one image at a time: images_NHWC uint8 [1, size, size, channels] → probs_NK float32 [1, num_classes].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.errors import MissingExtra
from vivace.runtimes.graph import deployed_graph
from vivace.runtimes.loading import Classifier

__all__ = ["graph_of_one", "needed", "one_by_one"]


class _Largest(nn.Module):
    """Global max-pooling as a reduction: the same numbers, by an operator that both libraries have."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return features_BCHW.amax((2, 3), keepdim=True)


def graph_of_one(bundle: Bundle) -> tuple[nn.Module, Tensor]:
    """The deployed graph, and a blank image to trace it with."""
    graph, example = deployed_graph(bundle)
    for parent in list(graph.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveMaxPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, _Largest())
    return graph, example[:1]


def one_by_one(run: Callable[[np.ndarray], np.ndarray]) -> Classifier:
    """The classifier of what takes one image at a time."""

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        # copied: a library may reuse the memory of its output
        return np.concatenate([np.array(run(np.array(image_HWC)[None])) for image_HWC in images_NHWC])

    return classify


@contextlib.contextmanager
def needed(library: str, extra: str, purpose: str) -> Iterator[None]:
    """Raises MissingExtra where what is imported meanwhile is not installed."""
    try:
        yield
    except ImportError:
        raise MissingExtra(library, extra, purpose) from None
