"""Calls and outputs of any module as lists of tensors, and what puts them together again.

torch's own pytrees are private here, and refuse dataclasses that nobody registered.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Call", "FlatModule", "Signature", "Structure", "flatten", "rebuild"]

# what is equal where it looks equal, and can't hold a tensor
PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.memory_format)
# a structure that holds itself would never end
MAX_DEPTH = 50


@dataclass(frozen=True)
class Structure:
    """What a value is but for its tensors. Two are equal if they differ in their tensors alone."""

    kind: str
    """tensor, sequence, named (a namedtuple), mapping, dataclass, constant, or opaque: an object of any other type."""
    type: type
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()
    constant: Any = None

    def opaque_types(self) -> list[str]:
        """Names of the types in it that are not understood."""
        own = [self.type.__name__] if self.kind == "opaque" else []
        return own + [name for child in self.children for name in child.opaque_types()]

    def any_objects(self) -> Structure:
        """The same, but that objects of a type that is not understood are all alike: every call may make new ones."""
        constant = None if self.kind == "opaque" else self.constant
        children = tuple(child.any_objects() for child in self.children)
        return Structure(self.kind, self.type, self.keys, children, constant)


def flatten(value: Any) -> tuple[list[Tensor], Structure]:
    """The tensors in tuples, lists, dicts, other mappings and dataclasses, in their order, and the structure."""
    tensors: list[Tensor] = []
    return tensors, _structure(value, tensors, 0)


def _structure(value: Any, tensors: list[Tensor], depth: int) -> Structure:
    kind = type(value)
    if isinstance(value, Tensor):
        tensors.append(value)
        return Structure("tensor", Tensor)

    def inner(values: Sequence[Any]) -> tuple[Structure, ...]:
        return tuple(_structure(one, tensors, depth + 1) for one in values)

    if isinstance(value, PLAIN):
        # 1, 1.0 and True are equal to Python, and a module may tell them apart
        return Structure("constant", kind, constant=value)
    if depth < MAX_DEPTH:
        if kind in (tuple, list, torch.Size):
            return Structure("sequence", kind, children=inner(value))
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return Structure("named", kind, children=inner(value))
        # outputs of Hugging Face are mappings and dataclasses at once
        if isinstance(value, Mapping):
            return Structure("mapping", kind, tuple(value), inner(list(value.values())))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = tuple(field.name for field in dataclasses.fields(value) if hasattr(value, field.name))
            return Structure("dataclass", kind, names, inner([getattr(value, name) for name in names]))
    return Structure("opaque", kind, constant=_Same(value))


class _Same:
    """Equal to the same object alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def rebuild(structure: Structure, tensors: Sequence[Tensor]) -> Any:
    """The value of a structure with these tensors, as many as `flatten` found. No constructor of a dataclass runs."""
    left = iter(tensors)
    return _rebuilt(structure, lambda: next(left))


def _rebuilt(structure: Structure, take: Callable[[], Tensor]) -> Any:
    kind = structure.type
    if structure.kind == "tensor":
        return take()
    if structure.kind == "constant":
        return structure.constant
    if structure.kind == "opaque":
        return structure.constant.value
    children = [_rebuilt(child, take) for child in structure.children]
    if structure.kind == "named":
        return kind(*children)
    if structure.kind == "sequence":
        return kind(children)
    fields = dict(zip(structure.keys, children, strict=True))
    if structure.kind == "mapping":
        if kind in (dict, OrderedDict):
            return kind(fields)
        return kind(**fields) if dataclasses.is_dataclass(kind) else kind(fields)
    made: Any = object.__new__(kind)
    for name, child in fields.items():
        # frozen ones too
        object.__setattr__(made, name, child)
    return made


@dataclass(frozen=True)
class Call:
    """The arguments of one call, those with a name by their name, without those that are the default."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def flatten(self) -> tuple[list[Tensor], Structure]:
        return flatten((self.args, self.kwargs))

    @classmethod
    def of(cls, structure: Structure, tensors: Sequence[Tensor]) -> Call:
        """The call of a structure that `Call.flatten` gave."""
        args, kwargs = rebuild(structure, tensors)
        return cls(args, kwargs)


class Signature:
    """How a module is called: gives one form to calls that mean the same, by position or by name."""

    def __init__(self, module: nn.Module) -> None:
        self._names: list[str] = []
        self._defaults: dict[str, Any] = {}
        try:
            parameters = list(inspect.signature(module.forward).parameters.values())
        except (TypeError, ValueError):
            return
        if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) for parameter in parameters):
            return
        self._names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        self._defaults = {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.default is not parameter.empty and isinstance(parameter.default, PLAIN)
        }

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The call in its one form. Of arguments that do not fit the module it gives them back as they are."""
        names, kwargs = self._names, dict(kwargs)
        if not names or len(args) > len(names) or any(name in kwargs for name in names[: len(args)]):
            return Call(tuple(args), kwargs)
        named = dict(zip(names, args, strict=False))
        # in the order of the parameters, then what **kwargs takes
        named |= {name: kwargs.pop(name) for name in names[len(args) :] if name in kwargs}
        named |= kwargs
        return Call((), {name: value for name, value in named.items() if not self._is_default(name, value)})

    def _is_default(self, name: str, value: Any) -> bool:
        default = self._defaults.get(name, self)
        return default is not self and type(value) is type(default) and bool(value == default)


class FlatModule(nn.Module):
    """A module that takes the tensors of a call one by one, and returns a tuple of the tensors of its outputs."""

    def __init__(self, module: nn.Module, structure: Structure) -> None:
        super().__init__()
        self.module = module
        self._structure = structure

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        call = Call.of(self._structure, tensors)
        return tuple(flatten(self.module(*call.args, **call.kwargs))[0])
