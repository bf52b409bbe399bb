"""Which of the kernels this machine can use: built, unusable here, or failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch  # noqa: F401 (before its OpenMP is used)

from vivace.errors import KernelError
from vivace.hardware import cpu_features
from vivace.kernels.build import OPTIONS, load_library
from vivace.kernels.resize import can_resize
from vivace.kernels.winograd import has_winograd
from vivace.trust import trusted_folder

__all__ = ["KernelStatus", "kernel_statuses"]

# instructions that a kernel needs
NEEDS = {"gradients": "amx_bf16", "winograd": "avx512_bf16", "winograd_gradients": "avx512_bf16"}


@dataclass(frozen=True)
class KernelStatus:
    """One C file of the kernels, on this machine."""

    name: str
    state: Literal["built", "unusable", "failed"]
    note: str = ""
    """Why it is not used, on one line: the instruction that is missing, or the compiler's first error."""


def kernel_statuses(folder: Path) -> tuple[KernelStatus, ...]:
    """A row for each kernel, built into `folder` if it was not yet (half a second each), or where it is private."""
    return tuple(_status(name, folder) for name in sorted(OPTIONS))


def _status(name: str, folder: Path) -> KernelStatus:
    try:
        library = load_library(name, folder)
    except KernelError as error:
        return KernelStatus(name, "failed", str(error))
    needed = NEEDS.get(name)
    if needed and needed not in cpu_features():
        return KernelStatus(name, "unusable", f"the processor has no {needed}: torch does its work")
    if needed and name in ("gradients", "winograd") and not library.usable():
        return KernelStatus(name, "unusable", f"the system does not let a process use {needed}: torch does its work")
    if name.startswith("winograd") and not has_winograd():
        return KernelStatus(name, "built", "training doesn't try it here: for bf16 this processor has amx_bf16")
    if name == "resize" and not can_resize(folder):
        return KernelStatus(name, "unusable", "its pixels are not those of the Pillow here: Pillow does its work")
    place = trusted_folder(folder)
    return KernelStatus(name, "built", "" if place == folder.resolve() else f"in {place}: {folder} is not private")
