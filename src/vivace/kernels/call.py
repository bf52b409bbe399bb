"""Kernels called with tensors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Address", "call"]


@dataclass(frozen=True)
class Address:
    """A place inside a tensor's memory, so many values behind its first one."""

    tensor: Tensor
    offset: int


def call(function: Any, *arguments: Tensor | Address | int | None) -> None:
    """Calls a kernel: tensors as addresses, None as none, numbers as int64, at the end as many threads as torch has.

    Raises MemoryError where it returns anything but 0.
    """
    values = [_value(argument) for argument in arguments]
    if function(*values, ctypes.c_int64(torch.get_num_threads())):
        raise MemoryError(f"out of memory in the kernel {function.__name__}")


def _value(argument: Tensor | Address | int | None) -> ctypes.c_void_p | ctypes.c_int64:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, Address):
        tensor = argument.tensor
        return ctypes.c_void_p(tensor.data_ptr() + argument.offset * tensor.element_size())
    return ctypes.c_int64(argument)
