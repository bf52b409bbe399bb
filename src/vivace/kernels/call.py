"""Kernels called with tensors."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

__all__ = ["call"]


def call(function: Any, *arguments: Tensor | int) -> None:
    """Calls a kernel: tensors as addresses, numbers as int64, and at the end as many threads as torch has.

    Raises MemoryError where it returns anything but 0.
    """
    values = [
        ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor) else ctypes.c_int64(value) for value in arguments
    ]
    if function(*values, ctypes.c_int64(torch.get_num_threads())):
        raise MemoryError(f"out of memory in the kernel {function.__name__}")
