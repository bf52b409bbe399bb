"""Any torch.nn.Module in PyTorch, eager: in bf16 by autocast, or with its weights channels last."""

from __future__ import annotations

import copy
from typing import Any

import torch

from vivace.errors import ExportError
from vivace.hardware import autocast
from vivace.runtimes.modules.job import ModuleJob, Program

__all__ = ["convert"]


def convert(job: ModuleJob) -> Program:
    """The module with its arguments as they are. Raises ExportError where channels last would change nothing."""
    # not the job itself, which holds what other programs are made of
    module, device, precision = job.module, job.device, job.precision
    if job.channels_last:
        if not any(weight.ndim == 4 for weight in module.parameters()):
            raise ExportError("it has no convolutions of images")
        # of a copy: the layout of the weights is part of the module. Images follow at the first convolution
        module = copy.deepcopy(module).to(memory_format=torch.channels_last)

    def run(*args: Any, **kwargs: Any) -> Any:
        with autocast(device, precision):
            return module(*args, **kwargs)

    return Program(run=run, takes=lambda tensors: True)
