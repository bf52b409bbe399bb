"""What replaces a module: an nn.Module that is called like it, and runs the fast program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vivace.acceleration.modules.preserving import evaluating
from vivace.acceleration.modules.signature import Signature, Structure, flatten, rebuild
from vivace.cpus import forked_with
from vivace.notices import warn
from vivace.runtimes.modules.job import Program
from vivace.runtimes.table import RUNTIMES

__all__ = ["AcceleratedModule"]


class AcceleratedModule(nn.Module):
    """A drop-in replacement of a module for inference: the same arguments, and outputs of the same structure.

    A call that the fast program does not take goes to `original`, a copy of the module in evaluation mode: another
    batch size than it was made for, another structure of arguments, inputs that require gradients, a trace by
    torch.jit, or a process that was forked. Attributes and methods that it lacks are the original's. It can't be
    trained, moved, converted, pickled or saved, and takes no other weights.
    """

    def __init__(
        self,
        original: nn.Module,
        program: Program,
        *,
        runtime: str,
        precision: str,
        inputs: tuple[Structure, Sequence[Tensor]],
        outputs: tuple[Structure, Sequence[Tensor]],
        is_copy: bool = True,
        network: str = "",
    ) -> None:
        """inputs, outputs: the structure and the tensors of an example of a call, and of what it returned.

        is_copy: whether `original` is ours, in evaluation mode; the user's own is put into it for each call. network:
        name of the smaller one that the program runs in place of the original.
        """
        super().__init__()
        self.original = original
        self.runtime, self.precision, self.network = runtime, precision, network
        row = RUNTIMES[runtime]
        self._program, self._signature = program, Signature(original)
        self._takes_module, self._unsafe_library = row.takes_network, row.fork_unsafe_library
        self._inputs, self._dtypes = inputs[0], [tensor.dtype for tensor in inputs[1]]
        self._device = next((tensor.device for tensor in inputs[1]), torch.device("cpu"))
        self._outputs, self._output_dtypes = outputs[0], [tensor.dtype for tensor in outputs[1]]
        self._is_copy = is_copy
        self.training = False

    @property
    def graph(self) -> Any:
        """What the fast program runs, of its runtime's own kind, where it can be written to a file; else None."""
        return self._program.graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original's forward."""
        found = self.try_fast(args, kwargs)
        return self._slow(args, kwargs) if found is None else found[0]

    def try_fast(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """The outputs of the fast program, in a tuple; None for a call that it does not take."""
        call = self._signature.call(args, kwargs)
        tensors, structure = call.flatten()
        if structure != self._inputs or not self._fits(tensors) or not self._program.takes(tensors):
            return None
        with torch.no_grad():
            if not self._takes_module:
                return (rebuild(self._outputs, self._in_dtypes(self._program.run(tensors))),)
            found = self._program.run(*args, **kwargs)
        if self.precision == RUNTIMES[self.runtime].precisions[0]:
            return (found,)
        # what autocast computed in bf16
        tensors, structure = flatten(found)
        if len(tensors) == len(self._output_dtypes):
            return (rebuild(structure, self._in_dtypes(tensors)),)
        # as many as there are samples, say
        return (rebuild(structure, [one.float() if one.dtype == torch.bfloat16 else one for one in tensors]),)

    def _in_dtypes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [
            tensor if tensor.dtype == dtype else tensor.to(dtype)
            for tensor, dtype in zip(tensors, self._output_dtypes, strict=True)
        ]

    def _fits(self, tensors: Sequence[Tensor]) -> bool:
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            # of the program a trace keeps its outputs, as constants
            return False
        needs_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        same = all(
            tensor.dtype == dtype and tensor.device == self._device
            for tensor, dtype in zip(tensors, self._dtypes, strict=True)
        )
        return same and not needs_gradients and not (self._unsafe_library and forked_with(self._unsafe_library))

    def _slow(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self._is_copy:
            return self.original(*args, **kwargs)
        # it could not be copied: the user's own, in whatever mode it is now
        with evaluating(self.original):
            return self.original(*args, **kwargs)

    def train(self, mode: bool = True) -> AcceleratedModule:
        """Itself, which stays in evaluation mode: a larger network that holds it can be trained around it."""
        if mode:
            warn("an accelerated module stays in evaluation mode: train the original, and accelerate it again")
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("_modules", {}).get("original")
            if original is None:
                raise
            return getattr(original, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AcceleratedModule:
        """As of nn.Module, which `to`, `half`, `cuda` and the like call: nothing but what changes nothing."""
        for tensor in (*self.original.parameters(), *self.original.buffers()):
            found = fn(tensor)
            if found.dtype != tensor.dtype or found.device != tensor.device:
                raise TypeError(
                    "an accelerated module can't be moved or converted: its program is compiled for "
                    f"{_shown(tensor)}, got {_shown(found)}. Convert the original, and accelerate it again."
                )
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As of nn.Module, for itself and for what holds it: the weights may be those that it has, no others."""
        *_, errors = rest
        own = self.original.state_dict(prefix=f"{prefix}original.")
        others = [name for name, tensor in own.items() if name in state_dict and not _same(state_dict[name], tensor)]
        if others:
            errors.append(
                f"{others[0]} differs from the weights that the accelerated module was compiled with. Load it into the "
                "original, and accelerate that."
            )
            # what torch goes on to load
            state_dict.update({name: own[name] for name in others})

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedModule:
        # compiled programs can't be copied, and nothing of it changes
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "an accelerated module can't be pickled: it holds a program compiled for this machine. Save the original, "
            "and accelerate it where it is loaded."
        )

    def extra_repr(self) -> str:
        network = f"network={self.network!r}, " if self.network else ""
        return f"{network}runtime={self.runtime!r}, precision={self.precision!r}"


def _same(given: Any, tensor: Tensor) -> bool:
    return isinstance(given, Tensor) and torch.equal(given.to(tensor), tensor)


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
