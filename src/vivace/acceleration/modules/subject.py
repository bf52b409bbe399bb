"""The module that is to be replaced: a private copy in evaluation mode, and whether it can be replaced at all."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivace.acceleration.modules.batches import Batch
from vivace.acceleration.modules.preserving import evaluating
from vivace.acceleration.modules.signature import Call, Signature, Structure, flatten
from vivace.errors import ModelError, VivaceError, first_line
from vivace.torch_private import has_forward_hooks

__all__ = ["Subject", "Unsupported"]

# of two calls with the same inputs: sums in another order differ less, dropout differs more
MAX_NOISE = 1e-3
# of a sample in batches of two sizes: bf16 and dynamic int8 differ less, normalising over the batch differs more
MAX_MIXED = 0.05


class Unsupported(VivaceError):
    """A module that no program can replace; the message says why."""


class Subject:
    """A module, in evaluation mode, that nothing here changes; and what is known of it."""

    def __init__(self, given: nn.Module) -> None:
        """Raises Unsupported for a module on several devices or none, ModelError for one without weights yet."""
        lazy = next((name for name, weight in given.named_parameters() if nn.parameter.is_lazy(weight)), None)
        if lazy is not None:
            raise ModelError(f"the weight {lazy!r} has no shape yet. Call the module with a batch first.")
        self.given = given
        self.signature = Signature(given)
        self.device = _device_of(given)
        self.notes: list[str] = []
        try:
            self.module = copy.deepcopy(given).eval()
            # one by one: what torch.jit scripts refuses it as a whole
            for weight in self.module.parameters():
                weight.requires_grad_(False)
            self.is_copy = True
        except Exception as error:
            self.module, self.is_copy = given, False
            self.notes.append(
                f"the module can't be copied ({type(error).__name__}: {first_line(error)}): it is used itself, in "
                "evaluation mode meanwhile"
            )
        if any(map(has_forward_hooks, given.modules())):
            self.notes.append("its forward hooks are called as it is measured; of them a graph has what they compute")

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Within, the module is in evaluation mode. Afterwards the given one is as it was."""
        with contextlib.nullcontext() if self.is_copy else evaluating(self.given), torch.no_grad():
            yield

    def run(self, call: Call) -> Any:
        """The outputs of a call."""
        return self.module(*call.args, **call.kwargs)

    def outputs(self, batch: Batch) -> Any:
        """The outputs for a batch. Raises ModelError for what the module raises, and for outputs that are NaN."""
        try:
            found = self.run(batch.call)
        except Exception as error:
            raise ModelError(
                f"the module failed on a batch of {batch.size}: {type(error).__name__}: {first_line(error)}. It is "
                f"called with {_shown(batch.call)}."
            ) from error
        if any(bool(tensor.isnan().any()) for tensor in flatten(found)[0] if tensor.is_floating_point()):
            raise ModelError(
                f"the module's outputs are NaN on a batch of {batch.size}. Are its weights and the inputs finite?"
            )
        return found

    def check(self, batch: Batch) -> tuple[Structure, list[Tensor]]:
        """The structure and the tensors of its outputs for a batch.

        Raises Unsupported if two calls differ, or if a call changes the module or its inputs; ModelError as `outputs`.
        """
        tensors, structure = batch.call.flatten()
        own = Call.of(structure, [tensor.clone() for tensor in tensors])
        inputs, state, plain = own.flatten()[0], _state(self.module), _plain_state(self.module)
        generators = _generators()
        first, kept = self._copied(Batch(own, batch.targets, batch.size))
        if generators != _generators():
            self.notes.append("its forward draws random numbers, and was the same twice: it may differ at another call")
        if any(not _equal(one, other) for one, other in zip(inputs, tensors, strict=True)):
            raise Unsupported("its forward changes its inputs in place, which no other program would do")
        changed = [name for name, facts in _state(self.module).items() if state.get(name) != facts]
        if changed:
            raise Unsupported(f"its forward changes {changed[0]!r}, which no other program would do")
        second, again = self._copied(batch)
        if first.any_objects() != second.any_objects():
            raise Unsupported("its outputs differ in structure from call to call with the same inputs")
        if not all(map(_near, kept, again)):
            raise Unsupported("its outputs are random: two calls with the same inputs differ")
        if counted := [name for name, value in _plain_state(self.module).items() if plain.get(name, value) != value]:
            self.notes.append(f"its forward changes {counted[0]!r}: a faster program computes as it does at first")
        return first, kept

    def mixes_samples(self, batch: Batch, outputs: Any) -> bool:
        """Whether its outputs for a sample depend on the other samples of the batch, which is noted: whether half of
        it has other outputs alone. Raises nothing: some modules take one size alone."""
        tensors = flatten(outputs)[0]
        half = batch.part(0, batch.size // 2) if batch.size > 1 else None
        try:
            found = [] if half is None else flatten(self.outputs(half))[0]
        except ModelError:
            return False
        if half is None or len(found) != len(tensors):
            return False
        pairs = [
            (one[: half.size], other)
            for one, other in zip(tensors, found, strict=True)
            if one.is_floating_point() and one.ndim and len(one) == batch.size and len(other) == half.size
        ]
        mixed = any(one.shape == other.shape and not _near(one, other, MAX_MIXED) for one, other in pairs)
        if mixed:
            self.notes.append(
                "its outputs for a sample depend on the other samples of the batch: batches are compared by their mean "
                "score, and a batch counts as one sample"
            )
        return mixed

    def _copied(self, batch: Batch) -> tuple[Structure, list[Tensor]]:
        tensors, structure = flatten(self.outputs(batch))
        # what it returns may be its own memory, which the next call writes to
        return structure, [tensor.clone() for tensor in tensors]


def _device_of(module: nn.Module) -> torch.device:
    found = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(found) > 1:
        raise Unsupported(f"its weights are on several devices: {', '.join(sorted(map(str, found)))}")
    device = found.pop() if found else torch.device("cpu")
    if device.type == "meta":
        raise Unsupported("its weights are on the device meta, which holds no values")
    return device


def _state(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Of each weight and buffer, what changes if it is written to or replaced."""
    found: dict[str, tuple[int, int]] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found[name] = (id(tensor), 0 if tensor.is_inference() else tensor._version)
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _generators() -> tuple[Any, ...]:
    """The state of the random generators of Python, NumPy and torch."""
    arrays = np.random.get_state(legacy=False)["state"]
    return random.getstate(), arrays["key"].tobytes(), arrays["pos"], torch.get_rng_state().numpy().tobytes()


def _plain_state(module: nn.Module) -> dict[str, Any]:
    """Of each part, the attributes that are numbers or texts."""
    parts = module.named_modules()
    return {
        f"{name}.{key}".lstrip("."): value
        for name, part in parts
        for key, value in vars(part).items()
        if isinstance(value, bool | int | float | str) and key != "training"
    }


def _near(one: Tensor, other: Tensor, most: float = MAX_NOISE) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return _equal(one, other)
    # infinities are equal or not
    same = one == other
    difference = (one.float() - other.float()).masked_fill(same, 0)
    return float(difference.norm()) <= most * float(one.float().masked_fill(~one.isfinite(), 0).norm())


def _shown(call: Call) -> str:
    """Such as (x: float32 [4, 3, 32, 32])."""
    values = [("", value) for value in call.args] + [(f"{name}: ", value) for name, value in call.kwargs.items()]
    return f"({', '.join(name + _type_of(value) for name, value in values)})"


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
