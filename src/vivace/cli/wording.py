"""Messages of the library name parameters; on the command line they name options. The one place that translates.

A message has a parameter in backquotes, alone or with a value: `max_drop`, `resume=True`, `split='all'`, or a field of
the recipe, `optimizer.lr`. From Python it is read as it is. Here it becomes --max-drop, --resume, --split all, --lr.
A name without backquotes is one where the message begins with it: "batch_size is out of range: got 0."
"""

from __future__ import annotations

import ast
import dataclasses
import re
from importlib import import_module
from typing import Any, get_type_hints

from vivace.cli.options import is_positional

__all__ = ["as_options"]

MARKED = re.compile(r"`([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)(?:=([^`]*))?`")
FIRST = re.compile(r"^([a-z][a-z0-9_]*)(?= (?:is|has|would|needs) )")


def as_options(text: str, verb: str) -> str:
    """A message with the option names of `vivace VERB`; names that the verb does not have stay as they are."""
    if "`" not in text and FIRST.match(text) is None:
        return text
    names = _names(verb)
    text = FIRST.sub(lambda match: names.get(match[1], match[1]), text)
    return MARKED.sub(lambda match: _option(names, match[1], match[2]) or match[0], text)


def _option(names: dict[str, str], name: str, value: str | None) -> str | None:
    option = names.get(name)
    if option is None:
        if "set" not in names or not _is_field(name):
            return None
        return f"{names['set']} {name}" + ("" if value is None else f"={_plain(value)}")
    # a flag has no value, and DATA is a value itself
    if value is None or value == "True" or not option.startswith("--"):
        return option
    return f"{option} {_plain(value)}"


def _is_field(name: str) -> bool:
    """Whether a name with a dot is one of the recipe's."""
    from vivace.training.recipe import Recipe

    section, dot, _ = name.partition(".")
    return bool(dot) and section in {field.name for field in dataclasses.fields(Recipe)}


def _plain(value: str) -> str:
    """A value as it is typed in a shell: text without its quotes."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return found if isinstance(found, str) else value


def _names(verb: str) -> dict[str, str]:
    """parameter → what it is called on the command line of a verb."""
    module = import_module(f"vivace.cli.{verb}")
    # fields of the recipe that have an option of their own
    fields = {field: "--" + name.replace("_", "-") for name, field in getattr(module, "FIELDS", {}).items()}
    return {**_of(module.Options), **fields, **getattr(module, "PARAMETERS", {})}


def _of(options: Any) -> dict[str, str]:
    hints, names = get_type_hints(options, include_extras=True), {}
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(hints[field.name]):
            names.update(_of(hints[field.name]))
        else:
            positional = is_positional(hints[field.name])
            names[field.name] = field.name.upper() if positional else "--" + field.name.replace("_", "-")
    return names
