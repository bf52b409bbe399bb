"""Any torch.nn.Module compiled by Inductor, its weights frozen into the program."""

from __future__ import annotations

import types
from typing import Any

import torch

from vivace.cachedir import default_cache_dir
from vivace.hardware import autocast
from vivace.runtimes.inductor_private import frozen
from vivace.runtimes.modules.job import ModuleJob, Program, shapes_of
from vivace.runtimes.quiet import quiet
from vivace.trust import keep_compiled_programs

__all__ = ["convert"]


def convert(job: ModuleJob) -> Program:
    """The module compiled for the shapes of the job's calls alone: each further shape would take as long again."""
    keep_compiled_programs(default_cache_dir())
    module, device, precision = job.module, job.device, job.precision

    def run(*args: Any, **kwargs: Any) -> Any:
        with autocast(device, precision):
            return module(*args, **kwargs)

    # torch counts compilations of each piece of code and gives up after eight: every module gets its own
    own = types.FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    compiled: Any = torch.compile(own, dynamic=False)
    with quiet(), frozen(), torch.no_grad():
        for args, kwargs in job.calls:
            compiled(*args, **kwargs)
    ready = {shapes_of(tensors) for tensors in job.tensors}
    return Program(run=compiled, takes=lambda tensors: shapes_of(tensors) in ready)
