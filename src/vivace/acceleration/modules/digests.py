"""Which samples of a user's data are the same: a proof counts each once, and none that was trained or calibrated on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vivace.acceleration.modules.signature import PLAIN, Call, flatten

__all__ = ["sample_digests"]

NUM_BYTES = 16


def sample_digests(call: Call, size: int) -> list[bytes]:
    """For each of the `size` samples of a call, a digest: equal where all that the call says of them is equal.

    A sample is a row of each tensor with `size` rows, and an item of each list with `size` items; all else counts for
    every sample. Where nothing has such rows, the batch is compared as a whole. Of sparse and nested tensors, which
    have no bytes in a row, none is equal to another.
    """
    rows = _Rows(size)
    for value in (*call.args, *call.kwargs.values()):
        try:
            rows.add(value)
        except (RuntimeError, TypeError, NotImplementedError):
            return [os.urandom(NUM_BYTES) for _ in range(size)]
    return rows.digests()


class _Rows:
    def __init__(self, size: int) -> None:
        self._shared = hashlib.blake2b(digest_size=NUM_BYTES)
        self._each = [hashlib.blake2b(digest_size=NUM_BYTES) for _ in range(size)]
        self._any = False

    def add(self, value: Any) -> None:
        size = len(self._each)
        if isinstance(value, Tensor):
            if value.ndim and len(value) == size:
                self._any = True
                for row, found in zip(_bytes(value).reshape(size, -1), self._each, strict=True):
                    found.update(row.numpy().data)
                value = value[:0]
            self._shared.update(_facts(value))
        elif isinstance(value, list | tuple) and len(value) == size and not _are_rows(value, size):
            self._any = True
            for item, found in zip(value, self._each, strict=True):
                tensors, structure = flatten(item)
                found.update(b"".join(map(_facts, tensors)))
                found.update(repr(structure.any_objects()).encode())
        elif isinstance(value, list | tuple):
            for item in value:
                self.add(item)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                self._shared.update(repr(name).encode())
                self.add(item)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                self.add(getattr(value, field.name, None))
        elif isinstance(value, PLAIN):
            self._shared.update(repr(value).encode())

    def digests(self) -> list[bytes]:
        shared = self._shared.digest()
        if not self._any:
            places = (place.to_bytes(8, "big") for place in range(len(self._each)))
            return [hashlib.blake2b(shared + place, digest_size=NUM_BYTES).digest() for place in places]
        for found in self._each:
            found.update(shared)
        return [found.digest() for found in self._each]


def _are_rows(values: Any, size: int) -> bool:
    """Whether all are tensors with a row for each sample: several inputs, not several samples."""
    return all(isinstance(value, Tensor) and value.ndim and len(value) == size for value in values)


def _bytes(tensor: Tensor) -> Tensor:
    """uint8, on the processor."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _facts(tensor: Tensor) -> bytes:
    return f"{tensor.dtype} {list(tensor.shape)}".encode() + _bytes(tensor).numpy().tobytes()
