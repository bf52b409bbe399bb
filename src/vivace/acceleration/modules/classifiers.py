"""Whether a module classifies images: what a bundle holds, and what smaller networks can be trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vivace.acceleration.modules.batches import Batch
from vivace.acceleration.modules.signature import flatten
from vivace.errors import VivaceError

__all__ = ["ImageClassifier", "NotAClassifier", "classifier_of", "image_of", "label_sets"]


class NotAClassifier(VivaceError):
    """A module that is called or answers in another way than an image classifier; the message says how."""


@dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """A module that takes images_BCHW float, of one size, and gives logits_BK."""

    channels: int
    height: int
    width: int
    num_classes: int
    place: int
    """Of the logits among the tensors of its outputs."""
    is_alone: bool
    """Whether its outputs hold no other tensor."""
    sets: bool
    """Whether the targets are sets of labels: 0 or 1 for each class."""


def classifier_of(batch: Batch, open_sides: Sequence[frozenset[int]], outputs: Any) -> ImageClassifier:
    """What is known of a classifier by one batch and what the module returned for it.

    open_sides: of the batch's tensors, the sides whose length differs between batches. Raises NotAClassifier.
    """
    image = image_of(batch)
    if open_sides[0] - {0}:
        raise NotAClassifier("its inputs differ in size from batch to batch")
    logits = outputs
    if not isinstance(outputs, Tensor):
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    tensors, _ = flatten(outputs)
    if not isinstance(logits, Tensor):
        raise NotAClassifier(f"it returns no logits: got {type(outputs).__name__}")
    # its value may have been put into the outputs under two names
    place = next((place for place, tensor in enumerate(tensors) if tensor is logits), None)
    if place is None or not _is_table(logits, batch.size):
        raise NotAClassifier(f"it returns no logits [{batch.size}, classes]: got {_shown(logits)}")
    _, channels, height, width = image.shape
    return ImageClassifier(
        channels=channels,
        height=height,
        width=width,
        num_classes=logits.shape[1],
        place=place,
        is_alone=len(tensors) == 1,
        sets=label_sets(batch.targets, logits),
    )


def image_of(batch: Batch) -> Tensor:
    """The images_BCHW that are all that a module is called with. Raises NotAClassifier for other calls."""
    tensors, _ = batch.call.flatten()
    if len(tensors) != 1:
        raise NotAClassifier(f"it is called with {len(tensors)} tensors")
    arguments = [*batch.call.args, *batch.call.kwargs.values()]
    if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
        raise NotAClassifier("it is called with more than images")
    (image,) = tensors
    if image.ndim != 4 or not image.is_floating_point() or len(image) != batch.size:
        raise NotAClassifier(f"its input is no float [batch, channels, height, width]: got {_shown(image)}")
    return image


def label_sets(targets: Any, logits_BK: Tensor) -> bool:
    """Whether targets are a set of labels for each sample, [B, K]."""
    return isinstance(targets, Tensor) and targets.shape == logits_BK.shape


def _is_table(logits: Tensor, size: int) -> bool:
    return logits.ndim == 2 and len(logits) == size and logits.shape[1] >= 2 and logits.is_floating_point()


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
