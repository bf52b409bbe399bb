"""Which int8 layers of a module go back to float: those that bring its outputs nearer to the original's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vivace.acceleration.modules.reverting import MAX_GROUPS, float_sets

EXPECTED = [torch.ones(4), torch.arange(3)]


def sets_of(layers: Sequence[str], harm: dict[str, float], groups: int = 99) -> tuple[list[tuple[str, ...]], int]:
    """The sets where each int8 layer in `harm` moves the outputs by so much, and how many programs were built."""
    built = []

    def call(in_float: Sequence[str]) -> list[Tensor]:
        return [EXPECTED[0] + sum(moved for name, moved in harm.items() if name not in in_float), EXPECTED[1]]

    def build(in_float: Sequence[str]) -> Sequence[str]:
        built.append(tuple(in_float))
        return in_float

    found = float_sets(layers, build, call, EXPECTED, stop=lambda: len(built) > groups)  # type: ignore[arg-type]
    return found, len(built)


def test_layers_that_do_no_harm_stay_in_int8() -> None:
    assert sets_of("abcd", {"b": 0.5}) == ([("b",)], 5)
    assert sets_of("abcd", {}) == ([], 5)
    # in float it would be farther off
    assert sets_of("abcd", {"c": 0.5, "d": -0.1})[0] == [("c",)]


def test_sets_grow_and_neighbours_go_together_where_there_are_many() -> None:
    found, built = sets_of("abcd", dict.fromkeys("abcd", 0.1))
    assert ([len(layers) for layers in found], built) == ([1, 2, 4], 5)
    assert set(found[0]) < set(found[1]) < set(found[2])
    many = [str(place) for place in range(30)]
    found, built = sets_of(many, {"4": 1.0})
    assert (found, built) == ([("3", "4", "5")], 1 + 10)
    assert built <= 1 + MAX_GROUPS


def test_when_time_is_up_what_was_ranked_counts() -> None:
    assert sets_of("abcd", {"a": 0.5, "d": 0.5}, groups=2) == ([("a",)], 3)
