"""Images that a student is trained on, read from batches once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vivace.acceleration.modules.batches import Batch, read_batches
from vivace.acceleration.modules.classifiers import ImageClassifier, NotAClassifier, image_of
from vivace.acceleration.modules.digests import sample_digests
from vivace.acceleration.modules.signature import Signature
from vivace.errors import DataError
from vivace.hardware import available_memory_bytes

__all__ = ["TrainingImages", "read_training_images"]

# of the memory that is there
MEMORY_SHARE = 0.25
# float16 has 11 bits, enough for 8-bit pixels that were normalised; what is larger stays in float32
MAX_HALF = 1000.0
# images that mean and deviation are measured on
NUM_MEASURED = 1024


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """images_NCHW as the module takes them, on the CPU, and their labels, if all have one."""

    images_NCHW: Tensor
    labels_N: Tensor | None
    """Class indices, int64; or for sets of labels 0 or 1 for each class, float [N, K]."""
    digests: frozenset[bytes]
    is_cut: bool
    """Whether more were there than time or memory allowed."""

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(mean_C, std_C) of some of them, evenly spread."""
        some = self.images_NCHW[:: -(-len(self) // NUM_MEASURED)].double()
        return some.mean((0, 2, 3)).float(), some.std((0, 2, 3)).float()


def read_training_images(
    train: Iterable[Any],
    classifier: ImageClassifier,
    signature: Signature,
    *,
    stop: Callable[[], bool],
) -> TrainingImages:
    """The images of batches like those of the data, and their labels.

    stop: whether to stop reading; asked before each batch. Raises DataError for batches of another kind.
    """
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    digests: set[bytes] = set()
    left = MEMORY_SHARE * (available_memory_bytes() or 2**33)
    is_cut = False
    for batch in read_batches(train, "`train`", signature, torch.device("cpu")):
        if left <= 0 or (images and stop()):
            is_cut = True
            break
        images.append(_stored(_checked(batch, classifier)))
        labels.append(_labels_of(batch, classifier))
        digests.update(sample_digests(batch.call, batch.size))
        left -= images[-1].numel() * images[-1].element_size()
    if not images:
        raise DataError("`train` holds no batch. Give batches to train on, or leave it out.")
    known = [one for one in labels if one is not None]
    return TrainingImages(
        images_NCHW=torch.cat(images),
        labels_N=torch.cat(known) if len(known) == len(labels) else None,
        digests=frozenset(digests),
        is_cut=is_cut,
    )


def _checked(batch: Batch, classifier: ImageClassifier) -> Tensor:
    expected = [classifier.channels, classifier.height, classifier.width]
    try:
        image = image_of(batch)
    except NotAClassifier as error:
        raise DataError(f"`train` holds other batches than the data: {error}. Give batches like these.") from None
    if list(image.shape[1:]) != expected:
        raise DataError(f"`train` holds images {list(image.shape[1:])}, and the data {expected}. Give such images.")
    return image


def _stored(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.half() if float(images_BCHW.abs().max()) < MAX_HALF else images_BCHW.float()


def _labels_of(batch: Batch, classifier: ImageClassifier) -> Tensor | None:
    """Class indices, or sets as float; None where targets are neither."""
    targets = batch.targets
    if not isinstance(targets, Tensor):
        return None
    if classifier.sets:
        fits = targets.shape == (batch.size, classifier.num_classes)
        return targets.float().cpu() if fits else None
    if targets.shape != (batch.size,) or targets.is_floating_point() or targets.dtype == torch.bool:
        return None
    labels_B = targets.long().cpu()
    return labels_B if bool(((labels_B >= 0) & (labels_B < classifier.num_classes)).all()) else None
