"""Batches on the device, without worker processes, in an order that is a pure function of seed and epoch.

Shape suffixes: N images of a split, B images of a batch; images_NHWC as stored, images_BCHW as networks take them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vivace.config import check_range
from vivace.data.caching.stored import Pixels
from vivace.errors import ConfigError, DataError
from vivace.hardware import available_memory_bytes

__all__ = ["Batch", "Batches", "iterate_eval"]

# images are kept on the device if they take at most this fraction of its free memory
RESIDENT_FRACTION = 0.25
# batches that the reading thread may be ahead
PREFETCH = 2


@dataclass(frozen=True)
class Batch:
    """Images, labels and their positions, on the device."""

    images_BCHW: Tensor
    """uint8, or float32 of images that are kept as they are; with channels_last strides."""
    labels_B: Tensor
    """int64."""
    indices_B: Tensor
    """int64, positions in the arrays given to `Batches`."""


class Batches:
    """The training batches of a split, epoch by epoch.

    images_NHWC: of any dtype of pixels, in memory or in a file. labels_N: in [0, num_classes) if num_classes is given.
    indices: int64 positions to use; None: all. shuffle: a new order every epoch. balanced: sample every class equally
    often, with replacement. resident: keep the images on the device; None: if they fit in a quarter of its free memory.
    Otherwise one thread reads ahead from the file. reader: (position, epoch) → the image's pixels, called in place of
    reading images_NHWC, in the thread that asks for the batch.

    With shuffle, a final batch of a single image is merged into the batch before it, because batch norm fails on it.
    Raises DataError for too few images or a label out of range, ConfigError for contradictory options.
    """

    def __init__(
        self,
        images_NHWC: Pixels,
        labels_N: np.ndarray,
        *,
        indices: np.ndarray | None = None,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: bool = True,
        seed: int = 0,
        balanced: bool = False,
        num_classes: int | None = None,
        resident: bool | None = None,
        reader: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        if balanced and not shuffle:
            raise ConfigError("balanced sampling is random: got shuffle=False. Give shuffle=True.")
        self._images_NHWC = images_NHWC
        labels_N = np.asarray(labels_N, dtype=np.int64)
        self._indices = np.arange(len(labels_N)) if indices is None else np.asarray(indices, dtype=np.int64)
        _check(len(images_NHWC), labels_N, self._indices, 2 if shuffle else 1, num_classes)
        check_range("batch_size", batch_size, 2 if shuffle else 1)
        self._labels_N = torch.from_numpy(labels_N)
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._shuffle, self._balanced, self._seed = shuffle, balanced, seed
        self._reader = reader
        if reader is not None:
            resident = False
        if resident is None:
            resident = images_NHWC.nbytes <= RESIDENT_FRACTION * _free_bytes(self._device)
        self.resident = resident
        # the whole array is read at once; rows are selected on the device
        self._tensor_NHWC = _tensor(np.array(images_NHWC)).to(self._device) if resident else None

    @property
    def num_images(self) -> int:
        """Images in an epoch."""
        return len(self._indices)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.num_images, self._batch_size)
        return full + (rest > 1 or (rest == 1 and not self._shuffle))

    def epochs_of(self, steps: int) -> float:
        """How many epochs `steps` batches are; a fraction, exact although the last batch may differ in size."""
        whole, rest = divmod(steps, len(self))
        return whole + rest * self._batch_size / self.num_images

    def order(self, epoch: int) -> np.ndarray:
        """The positions of an epoch in order, int64 [num_images]."""
        if not self._shuffle:
            return self._indices
        rng = np.random.default_rng([self._seed, epoch])
        if not self._balanced:
            return self._indices[rng.permutation(len(self._indices))]
        labels = self._labels_N.numpy()[self._indices]
        present = np.unique(labels)
        # cycle through the classes, so that their counts differ by at most one
        turns = np.resize(rng.permutation(present), len(self._indices))
        order = np.empty(len(self._indices), dtype=np.int64)
        for label in present:
            places = np.flatnonzero(turns == label)
            order[places] = rng.choice(self._indices[labels == label], size=len(places), replace=True)
        return order[rng.permutation(len(order))]

    def epoch(self, epoch: int, *, start: int = 0, order: np.ndarray | None = None) -> Iterator[Batch]:
        """The batches of an epoch, from batch number `start` on; earlier ones are not read.

        order: int64 [num_images], positions in another order or another selection; None: `order(epoch)`.
        """
        chunks = self._chunks(self.order(epoch) if order is None else order)[start:]
        if self._reader is not None:
            for chunk in chunks:
                images = np.stack([self._reader(position, epoch) for position in chunk.tolist()])
                indices_B = torch.from_numpy(chunk)
                yield _batch(_tensor(images).to(self._device), self._labels_N[indices_B], indices_B.to(self._device))
            return
        if self._tensor_NHWC is None:
            yield from self._prefetched(chunks)
            return
        for chunk in chunks:
            indices_B = torch.from_numpy(chunk)
            on_device = indices_B.to(self._device, non_blocking=True)
            # index_select on the stored NHWC layout copies each image by one memcpy; through a BCHW view, or by
            # advanced indexing, it is several times slower
            yield _batch(self._tensor_NHWC.index_select(0, on_device), self._labels_N[indices_B], on_device)

    def _chunks(self, order: np.ndarray) -> list[np.ndarray]:
        size, count = self._batch_size, len(self)
        chunks = [order[i * size : (i + 1) * size] for i in range(count)]
        # the last batch takes the rest, including a single leftover image
        chunks[-1] = order[(count - 1) * size :]
        return chunks

    def _prefetched(self, chunks: list[np.ndarray]) -> Iterator[Batch]:
        """Batches in order, read ahead by one thread, which ends when the iteration ends for whatever reason."""
        with ThreadPoolExecutor(1, thread_name_prefix="vivace-prefetch") as reader:
            waiting: deque[Future[Batch]] = deque()
            try:
                for chunk in chunks:
                    waiting.append(reader.submit(self._gather, chunk))
                    if len(waiting) > PREFETCH:
                        # result() raises the thread's exception, if any
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _gather(self, chunk: np.ndarray) -> Batch:
        # read in file order, which is faster, then put into the order of the epoch
        by_place = np.argsort(chunk, kind="stable")
        images = np.empty((len(chunk), *self._images_NHWC.shape[1:]), dtype=self._images_NHWC.dtype)
        images[by_place] = self._images_NHWC[chunk[by_place]]
        tensor, indices_B = _tensor(images), torch.from_numpy(chunk)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        tensor = tensor.to(self._device, non_blocking=True)
        return _batch(tensor, self._labels_N[indices_B], indices_B.to(self._device))


def iterate_eval(
    images_NHWC: Pixels,
    labels_N: np.ndarray,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    indices: np.ndarray | None = None,
) -> Iterator[Batch]:
    """All images, or those at `indices`, once and in order; the last batch may be smaller.

    images_NHWC: uint8, uint16 or float32. labels_N: integers. indices: int64 positions; None: all.
    """
    positions = np.arange(len(labels_N)) if indices is None else np.asarray(indices, dtype=np.int64)
    for start in range(0, len(positions), batch_size):
        chunk = positions[start : start + batch_size]
        # always a copy: changing a batch in place must not change the stored images
        images = _tensor(images_NHWC[chunk]).to(device)
        labels = torch.from_numpy(np.asarray(labels_N[chunk], dtype=np.int64))
        yield _batch(images, labels, torch.from_numpy(chunk.copy()).to(device))


def _tensor(images_NHWC: np.ndarray) -> Tensor:
    # torch selects no rows of uint16
    return torch.from_numpy(images_NHWC.view(np.int16) if images_NHWC.dtype == np.uint16 else images_NHWC)


def _batch(images_NHWC: Tensor, labels_B: Tensor, indices_B: Tensor) -> Batch:
    if images_NHWC.dtype == torch.int16:
        # as `_tensor` has it: uint16, which float32 holds exactly
        images_NHWC = (images_NHWC.int() & 0xFFFF).float()
    # permuting the stored NHWC gives BCHW with channels_last strides, without a copy
    return Batch(images_NHWC.permute(0, 3, 1, 2), labels_B.to(images_NHWC.device, non_blocking=True), indices_B)


def _check(num_images: int, labels_N: np.ndarray, indices: np.ndarray, at_least: int, num_classes: int | None) -> None:
    if num_images != len(labels_N):
        raise DataError(f"images and labels differ in number: got {num_images} and {len(labels_N)}. Rebuild the cache.")
    if len(indices) < at_least:
        raise DataError(f"too few images for a batch: got {len(indices)}. Give at least {at_least}.")
    used = labels_N[indices]
    if num_classes is not None and (used.min() < 0 or used.max() >= num_classes):
        raise DataError(
            f"a label is out of range: got {used.min()} to {used.max()} for {num_classes} classes. "
            f"Give labels from 0 to {num_classes - 1}."
        )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes()
