"""Batches on the device: no worker processes, an order that is a pure function of seed and epoch.

Shapes: N images of a split, B images of a batch; images_NHWC as stored, images_BCHW as networks take them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vivace.hardware import available_memory_bytes

__all__ = ["Batch", "Batches", "iterate_eval"]

# images are kept on the device if they take no more than this share of its free memory
RESIDENT_SHARE = 0.25
# batches that the prefetching thread may be ahead
PREFETCH = 2


@dataclass(frozen=True)
class Batch:
    """Images, labels and positions, on the device."""

    images_BCHW: Tensor
    """uint8, channels_last strides."""
    labels_B: Tensor
    """int64."""
    indices_B: Tensor
    """int64, positions in the arrays that the batches were made of."""


class Batches:
    """The training batches of a split, epoch by epoch.

    indices: int64 positions to use; None: all. shuffle: a new order every epoch. balanced: every class equally often,
    drawn with replacement. resident: keep the images on the device; None: if they fit in a quarter of its free memory,
    else they are gathered from the memory map by one thread that reads ahead.
    A last batch of one image joins the batch before it: batch norm can't use it.
    """

    def __init__(
        self,
        images_NHWC: np.ndarray,
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
    ) -> None:
        self._images_NHWC = images_NHWC
        self._labels_N = torch.from_numpy(np.asarray(labels_N, dtype=np.int64))
        self._indices = np.arange(len(labels_N)) if indices is None else np.asarray(indices, dtype=np.int64)
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._shuffle, self._balanced, self._seed = shuffle, balanced, seed
        self._num_classes = num_classes or int(self._labels_N.max()) + 1
        if resident is None:
            resident = images_NHWC.nbytes <= RESIDENT_SHARE * _free_bytes(self._device)
        self.resident = resident
        # the whole array in one read, then rows picked on the device
        self._tensor_NHWC = torch.from_numpy(np.array(images_NHWC)).to(self._device) if resident else None

    @property
    def num_images(self) -> int:
        """Images in an epoch."""
        return len(self._indices)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.num_images, self._batch_size)
        return max(1, full + (rest > 1 or (rest == 1 and not self._shuffle)))

    def order(self, epoch: int) -> np.ndarray:
        """The positions of an epoch in their order, int64 [num_images]."""
        if not self._shuffle:
            return self._indices
        rng = np.random.default_rng([self._seed, epoch])
        if not self._balanced:
            return self._indices[rng.permutation(len(self._indices))]
        labels = self._labels_N.numpy()[self._indices]
        present = np.unique(labels)
        # classes in turn, so that their numbers differ by one at the most
        turns = np.resize(rng.permutation(present), len(self._indices))
        order = np.empty(len(self._indices), dtype=np.int64)
        for label in present:
            places = np.flatnonzero(turns == label)
            order[places] = rng.choice(self._indices[labels == label], size=len(places), replace=True)
        return order[rng.permutation(len(order))]

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; those before it are not even read."""
        chunks = self._chunks(self.order(epoch))[start:]
        if self._tensor_NHWC is not None:
            for chunk in chunks:
                indices_B = torch.from_numpy(chunk)
                on_device = indices_B.to(self._device, non_blocking=True)
                yield _batch(self._tensor_NHWC.index_select(0, on_device), self._labels_N[indices_B], on_device)
            return
        yield from self._prefetched(chunks)

    def _chunks(self, order: np.ndarray) -> list[np.ndarray]:
        size, count = self._batch_size, len(self)
        chunks = [order[i * size : (i + 1) * size] for i in range(count)]
        if len(order) > count * size:
            chunks[-1] = order[(count - 1) * size :]
        return chunks

    def _prefetched(self, chunks: list[np.ndarray]) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
        stop = threading.Event()

        def put(item: Batch | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for chunk in chunks:
                    if stop.is_set():
                        return
                    put(self._gather(chunk))
                put(None)
            except BaseException as error:
                # raised again by the thread that waits for the batch
                put(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _gather(self, chunk: np.ndarray) -> Batch:
        # read in the order of the file, which a disk likes, then put into the order of the epoch
        by_place = np.argsort(chunk, kind="stable")
        images = np.empty((len(chunk), *self._images_NHWC.shape[1:]), dtype=np.uint8)
        images[by_place] = self._images_NHWC[chunk[by_place]]
        tensor, indices_B = torch.from_numpy(images), torch.from_numpy(chunk)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        return _batch(tensor, self._labels_N[indices_B], indices_B.to(self._device))


def _batch(images_NHWC: Tensor, labels_B: Tensor, indices_B: Tensor) -> Batch:
    # stored rows are NHWC: seen as BCHW they have channels_last strides without a copy
    return Batch(images_NHWC.permute(0, 3, 1, 2), labels_B.to(images_NHWC.device, non_blocking=True), indices_B)


def iterate_eval(
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    indices: np.ndarray | None = None,
) -> Iterator[Batch]:
    """All images (or those at `indices`) once and in order, the last batch smaller."""
    positions = np.arange(len(labels_N)) if indices is None else indices
    for start in range(0, len(positions), batch_size):
        chunk = positions[start : start + batch_size]
        images = torch.from_numpy(np.ascontiguousarray(images_NHWC[chunk])).to(device)
        labels = torch.from_numpy(np.asarray(labels_N[chunk], dtype=np.int64))
        yield _batch(images, labels, torch.from_numpy(np.ascontiguousarray(chunk)).to(device))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes()
