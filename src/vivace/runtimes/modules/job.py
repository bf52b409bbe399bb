"""What a runtime is given to run any torch.nn.Module, and the program that it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ModuleJob", "Program", "Shapes", "shapes_of", "side_names"]

# of each input of a call, the lengths of its sides
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ModuleJob:
    """A module in evaluation mode with examples of its calls. Runners keep it, and never change it.

    `runtimes.table` tells two kinds of them apart: those that take the network call `module`, and may run whatever it
    returns; the others make a graph of `flat`.
    """

    module: nn.Module
    flat: nn.Module | None
    """Takes the tensors of a call one by one and returns a tuple of tensors; None where there is no such form."""
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    """Positional and keyword arguments of calls that must be fast; the first is the one that is timed."""
    tensors: Sequence[Sequence[Tensor]]
    """The tensors of each of these calls, in the order of `flat`."""
    open_sides: Sequence[frozenset[int]]
    """For each tensor of a call, the sides whose length differs from call to call, such as the batch size."""
    precision: str
    exported: bool = False
    """Whether a graph is to come from torch.export, as one that was traced computed something else."""
    asymmetric: bool = False
    channels_last: bool = False
    transformer: bool = False
    """Whether the module has attention: int8 treats it in its own way."""
    calibration: Callable[[], Sequence[Sequence[Tensor]]] = tuple
    """The tensors of calls that ranges for int8 are measured on."""
    graph: Any = None
    """A graph of the runner's own kind that is compiled as it is, in place of the one that it would make."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Shared by the jobs of a module: what a runner uses again, such as its float32 graph, under its own name."""

    @property
    def device(self) -> torch.device:
        """Where the tensors of calls are; the processor for a module without any."""
        return next((tensor.device for tensor in self.tensors[0]), torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Program:
    """A module on a runtime. `run` takes what its runner's kind takes: arguments as the module, or a list of tensors.

    Raises nothing for calls that `takes` accepted, except what the runtime itself raises.
    """

    run: Callable[..., Any]
    takes: Callable[[Sequence[Tensor]], bool]
    """Whether it can run a call with these tensors, whose dtypes are those of the examples."""
    graph: Any = None
    """Of the runner's own kind, what can be written to a file; None: nothing can."""


def shapes_of(tensors: Sequence[Tensor]) -> Shapes:
    """The shape of each tensor."""
    return tuple(tuple(tensor.shape) for tensor in tensors)


def side_names(job: ModuleJob) -> list[dict[int, Any]]:
    """For each tensor, the open sides as torch.export takes them: open where the module allows it."""
    return [dict.fromkeys(sorted(sides), torch.export.Dim.AUTO) for sides in job.open_sides]
