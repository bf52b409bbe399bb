"""What is used of torch beyond its public interface, in one place to be checked against a new release.

`runtimes.inductor_private` has what is used of its compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode

__all__ = [
    "BatchNorm",
    "ConvNd",
    "DispatchMode",
    "NormBase",
    "foreach_add",
    "foreach_add_",
    "foreach_lerp_",
    "foreach_mul_",
    "foreach_norm",
    "has_forward_hooks",
    "in_bad_fork",
    "load_compiler",
    "standard_gamma",
]

# one kernel for all tensors of a list, as torch's own optimizers use them: there is no public name for it
foreach_add, foreach_add_ = torch._foreach_add, torch._foreach_add_
foreach_lerp_, foreach_mul_, foreach_norm = torch._foreach_lerp_, torch._foreach_mul_, torch._foreach_norm
# gamma-distributed numbers by a generator, which torch.distributions does not take
standard_gamma = torch._standard_gamma


def in_bad_fork() -> bool:
    """Whether this process was forked from one that used CUDA, and can't use it."""
    return torch.cuda._is_in_bad_fork()


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether anybody looks at what goes into a module, or comes out of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def load_compiler() -> Any:
    """Import torch's compiler, which takes a second or more."""
    import torch._dynamo

    return torch._dynamo
