"""Names of networks of the user's own, such as "own/nets.py:MyNet", and the arguments they may get (no torch here).

A name says where a network came from. It is never followed: code is imported only from what the user passes in a call
or names on the command line (`models.own.given`), so a bundle, a recipe or a run folder can't cause any to run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vivace.errors import ModelError

__all__ = ["PASSED", "PREFIX", "check_own_arguments", "check_own_name", "is_own", "own_name"]

PREFIX = "own/"
# a file's or module's name, then a qualified name in it, such as "make.<locals>.Net"
PATTERN = re.compile(r"own/[\w][\w.+ -]{0,99}:[\w<][\w.<>]{0,199}")
# what is passed to constructors that have such a parameter → the parameter's names
PASSED: dict[str, tuple[str, ...]] = {
    "num_classes": ("num_classes",),
    "in_channels": ("in_channels", "in_chans"),
    "size": ("size", "img_size", "image_size"),
}
MAX_VALUES, MAX_LEVELS = 1_000, 4
# a path or a URL could make a constructor load what a stranger put there
WORD = re.compile(r"[\w +-]{0,64}")
ARGUMENT = re.compile(r"[^\W\d]\w{0,63}")


def is_own(name: str) -> bool:
    """Whether a network's name is one of the user's own, as recipes and bundles record it."""
    return name.startswith(PREFIX)


def own_name(place: str, qualified: str) -> str:
    """The name of what is called `qualified` in a file or module."""
    shown = re.sub(r"[^\w.+ -]", "_", place).replace("..", "_")[:100] or "_"
    inside = re.sub(r"[^\w.<>]", "_", qualified).replace("..", "_")[:200] or "_"
    return f"{PREFIX}{shown if shown[0] not in '.+ -' else '_' + shown[1:]}:{inside}"


def check_own_name(name: str) -> None:
    """Raises ModelError for a name that `own_name` never gives."""
    if PATTERN.fullmatch(name) is None or ".." in name:
        raise ModelError(
            f"the network's name is no name of one of your own: got {name[:80]!r}. Such names are like "
            "'own/nets.py:MyNet'; the code itself is given by `model`."
        )


def check_own_arguments(arguments: Mapping[str, Any], *, where: str = "model.arguments") -> None:
    """Raises ModelError unless all are plain values: numbers, words, true or false, and lists and mappings of these.

    A text is a word without dots and slashes: recipes and bundles come from strangers too, and a constructor may open
    what a text names.
    """
    left = [MAX_VALUES]
    reserved = {name for names in PASSED.values() for name in names}
    for name, value in arguments.items():
        if not isinstance(name, str) or ARGUMENT.fullmatch(name) is None:
            raise ModelError(
                f"{where} names no argument: got {name!r:.80}. Give names of the constructor's parameters."
            )
        if name in reserved:
            fix = "Set `size`" if name in PASSED["size"] else "Leave it out: the images decide"
            raise ModelError(f"{where}.{name} is not the network's own: got {value!r:.80}. {fix}.")
        _check(value, f"{where}.{name}", MAX_LEVELS, left)


def _check(value: Any, where: str, levels: int, left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0 or levels < 0:
        raise ModelError(f"{where} holds too much: over {MAX_VALUES:,} values or {MAX_LEVELS} levels. Give fewer.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(key, where, 0, left)
            _check(item, where, levels - 1, left)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, where, levels - 1, left)
    elif isinstance(value, str):
        if WORD.fullmatch(value) is None:
            raise ModelError(
                f"{where} is no word: got {value[:80]!r}. Recipes and bundles hold words of up to 64 letters, without "
                "dots and slashes. Give a path in a function of your own: model=lambda num_classes: Net(num_classes, "
                "path)."
            )
    elif not (value is None or isinstance(value, bool | int | float)) or (
        isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < 1e15)
    ):
        raise ModelError(f"{where} is no plain value: got {value!r:.80}. Give numbers, words, true or false.")
