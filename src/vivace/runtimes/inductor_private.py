"""What is used of torch's compiler beyond its public interface, in one place to be checked against a new release."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["compile_and_package", "frozen", "library_runner", "load_package", "profile_kernels"]


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """What is compiled within has its weights as constants: laid out for the processor once, batch norm folded.

    Not as a setting of the process, which would freeze the user's own programs too, and not as an option of
    torch.compile, which leaves int8 without some of its kernels (torch 2.15).
    """
    import torch._inductor.config as settings

    with settings.patch(freezing=True):
        yield


def profile_kernels() -> None:
    """What Inductor writes itself shows in a profile as one event for each kernel, from now on."""
    import torch._inductor.config as settings

    settings.cpp.enable_kernel_profile = True


def compile_and_package(program: Any, path: Path) -> None:
    """Write AOTInductor's package of an exported program to `path`, a .pt2, its weights frozen."""
    compile_it: Callable[..., Any] = torch._inductor.aoti_compile_and_package
    compile_it(program, package_path=str(path), inductor_configs={"freezing": True})


def load_package(path: Path) -> Callable[[Tensor], Tensor]:
    """The program of a package, for any number of images."""
    loaded: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(str(path))
    return loaded


def library_runner(library: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """The program of a package's library itself, on a CPU: the package around it would be unpacked at every start."""
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    run: Callable[[list[Tensor]], list[Tensor]] = runner.run
    return run
