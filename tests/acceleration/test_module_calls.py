"""Calls and outputs of any module: flattened to tensors, and put together as they were."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vivace.acceleration.modules.signature import Call, FlatModule, Signature, flatten, rebuild

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass(frozen=True)
class Output:
    logits: Tensor
    more: dict[str, Any]
    loss: Tensor | None = None

    def __post_init__(self) -> None:
        # a constructor may do anything
        assert self.logits.ndim


class Named(OrderedDict):
    """As transformers' ModelOutput: a mapping whose names are attributes too."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        vars(self).update(values)


ONE, TWO = torch.ones(2), torch.zeros(3)
VALUES = [
    ONE,
    (ONE, [TWO, None], 3, "text"),
    {"a": ONE, 1: {"b": TWO}},
    OrderedDict(b=ONE, a=TWO),
    Pair(ONE, (TWO,)),
    Output(ONE, {"hidden": (TWO, ONE), "size": 2}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_is_flattened_is_rebuilt_with_other_tensors(value: Any) -> None:
    tensors, structure = flatten(value)
    made = rebuild(structure, [tensor + 5 for tensor in tensors])
    again, other = flatten(made)
    assert type(made) is type(value)
    assert other == structure
    assert all(torch.equal(one, tensor + 5) for one, tensor in zip(again, tensors, strict=True))
    assert structure.opaque_types() == []


def test_structures_differ_in_everything_but_tensors() -> None:
    def of(value: Any) -> Any:
        return flatten(value)[1]

    assert of((ONE, 1)) == of((TWO, 1))
    assert of((ONE, 1)) != of((ONE, 2))
    # equal to Python, and perhaps not to the module
    assert len({of((ONE, value)) for value in (1, 1.0, True)}) == 3
    assert of([ONE]) != of((ONE,))
    assert of({"a": ONE, "b": TWO}) != of({"b": ONE, "a": TWO})
    thing = object()
    assert of((ONE, thing)) == of((TWO, thing)) != of((ONE, object()))
    assert of([thing]).opaque_types() == ["object"]
    endless: list[Any] = []
    endless.append(endless)
    assert of(endless).opaque_types() == ["list"]


class Module(nn.Module):
    def forward(self, images: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, **more: Any) -> Any:
        return {"scaled": images * scale, "mask": mask, "more": tuple(more.values())}


def test_calls_that_mean_the_same_are_the_same() -> None:
    signature = Signature(Module())
    forms = [((ONE,), {}), ((), {"images": ONE}), ((ONE, None), {}), ((ONE,), {"mask": None, "scale": 1.0})]
    assert {signature.call(args, kwargs).flatten()[1] for args, kwargs in forms} == {
        Call((), {"images": ONE}).flatten()[1]
    }
    one, other = (signature.call((), kwargs) for kwargs in ({"mask": TWO, "images": ONE}, {"images": ONE, "mask": TWO}))
    assert list(one.kwargs) == list(other.kwargs) == ["images", "mask"]
    # True is not the default 1.0
    assert signature.call((ONE,), {"scale": True}).kwargs["scale"] is True
    # wrong ones are left to the module, which says what is wrong
    assert signature.call((ONE, None, 3), {}).args == (ONE, None, 3)
    assert signature.call((ONE,), {"images": TWO}) == Call((ONE,), {"images": TWO})


def test_modules_of_any_arguments_keep_their_positions() -> None:
    class Positions(nn.Module):
        def forward(self, *tensors: Tensor, bias: float = 0.0) -> Tensor:
            return sum(tensors) + bias

    assert Signature(Positions()).call((ONE, TWO), {"bias": 1.0}) == Call((ONE, TWO), {"bias": 1.0})


def test_a_flat_module_takes_and_returns_tensors() -> None:
    module = Module()
    tensors, structure = Signature(module).call((ONE,), {"scale": 2.0, "extra": TWO}).flatten()
    assert [tensor.tolist() for tensor in FlatModule(module, structure)(*tensors)] == [[2.0, 2.0], [0.0, 0.0, 0.0]]
