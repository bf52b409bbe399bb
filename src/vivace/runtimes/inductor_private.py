"""What is used of torch's compiler beyond its public interface, in one place to be checked against a new release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["compile_and_package", "freeze_weights", "library_runner", "load_package", "profile_kernels"]


def freeze_weights() -> None:
    """Weights as constants, from now on: laid out for the processor once, and batch norm folded into convolutions."""
    import torch._inductor.config as settings

    settings.freezing = True


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
