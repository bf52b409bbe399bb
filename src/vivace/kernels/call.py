"""Kernels called with tensors: each takes one struct, whose fields are declared once, in the order of the C file.

A struct holds addresses and int64, 8 bytes each, so that its layout is the same for every compiler.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivace.errors import KernelError

__all__ = ["Address", "Kernel"]


@dataclass(frozen=True)
class Address:
    """An address inside a tensor's memory: that of its value number `offset`."""

    tensor: Tensor
    offset: int


class Kernel:
    """A function `int name(const struct … *)` of a library; called, it gets the fields by their names.

    Tensors and addresses are passed as pointers, None as a null pointer, numbers as they are. The field `threads`, the
    last of every struct, is as many as torch has.
    """

    def __init__(self, library: ctypes.CDLL, name: str, *, pointers: str, sizes: str) -> None:
        """pointers, sizes: names of the fields with blanks between them, in the order of the struct: pointers first."""
        self.name = name
        self.pointers, self.sizes = pointers.split(), sizes.split()
        fields = [(field, ctypes.c_void_p) for field in self.pointers]

        class Arguments(ctypes.Structure):
            _fields_ = (*fields, *((field, ctypes.c_int64) for field in (*self.sizes, "threads")))

        self._arguments = Arguments
        try:
            self._function = getattr(library, name)
        except AttributeError:
            raise KernelError(
                f"the library {Path(library._name).name} has no kernel {name}: it was not built by vivace. Remove it "
                "(vivace cache --remove kernels), so that it is built anew."
            ) from None
        self._function.argtypes, self._function.restype = [ctypes.POINTER(Arguments)], ctypes.c_int

    def __call__(self, **values: Tensor | Address | int | None) -> None:
        """Runs the kernel. Raises TypeError for missing or unknown fields, MemoryError if it can't allocate."""
        if values.keys() != {*self.pointers, *self.sizes}:
            missing = {*self.pointers, *self.sizes} ^ values.keys()
            raise TypeError(f"the kernel {self.name} has missing or unknown fields: {', '.join(sorted(missing))}")
        passed = {name: _passed(value) for name, value in values.items()}
        if self._function(self._arguments(**passed, threads=torch.get_num_threads())):
            raise MemoryError(f"out of memory in the kernel {self.name}")


def _passed(value: Tensor | Address | int | None) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, Address):
        return value.tensor.data_ptr() + value.offset * value.tensor.element_size()
    return value
