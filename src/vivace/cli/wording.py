"""Messages of the library name parameters; on the command line they name options. The one place that translates.

A message has a parameter in backquotes, alone or with a value: `max_drop`, `resume=True`, `split='all'`, or a field of
the recipe, `optimizer.lr`. From Python it is read as it is. Here it becomes --max-drop, --resume, --split all, --lr.
A whole call, `vivace.train('photos', resume=True)`, becomes a command: vivace train photos --resume.
A name without backquotes is one where the message begins with it: "batch_size is out of range: got 0."

A value that a message repeats may hold backquotes too. It stays as it is where it is in quotation marks, is a part of
a path, or was given as an argument.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterable
from importlib import import_module
from typing import Any, get_type_hints

from vivace.cli.options import is_positional

__all__ = ["as_options"]

NAME = r"`([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)(?:=([^`]*))?`"
# in quotation marks, as repr writes a text; the apostrophe of a word is none
QUOTED = r"""(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|(?<!\w)"(?:[^"\\]|\\.)*"(?!\w)"""
MARKED = re.compile(rf"(?<![^\s(]){NAME}(?![^\s.,;:?!)…])|{QUOTED}")
MAX_VALUE = 200
CALL = re.compile(r"`vivace\.([a-z]+\([^`]*\))`")
FIRST = re.compile(r"^([a-z][a-z0-9_]*)(?= (?:is|has|would|needs) )")


def as_options(text: str, verb: str, given: Iterable[str] = ()) -> str:
    """A message with the option names of `vivace VERB`; names that the verb does not have stay as they are.

    given: the arguments that the message may repeat.
    """
    if "`" not in text and FIRST.match(text) is None:
        return text
    text = CALL.sub(lambda match: _command(match[1]) or match[0], text)
    names, marked = _names(verb), _marked(text, given)
    if FIRST.match(text) and text.partition(" ")[0] not in given:
        text = FIRST.sub(lambda match: names.get(match[1], match[1]), text)
    return marked.sub(lambda match: _option(names, match[1], match[2]) or match[0], text)


def _marked(text: str, given: Iterable[str]) -> re.Pattern[str]:
    """What to translate in `text`, in groups 1 and 2; what is to stay matches without groups."""
    values = {part for one in given if "`" in one for part in (one, one.partition("=")[2]) if "`" in part}
    # in quotation marks it is seen anyway, and then a parameter of the same name can be told from it
    values = {value for value in values if value in text and repr(value) not in text}
    kept = sorted(values, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, kept), MARKED.pattern])) if kept else MARKED


def _option(names: dict[str, str], name: str | None, value: str | None) -> str | None:
    if name is None:
        return None
    option = names.get(name)
    if option is None:
        if "set" not in names or not _is_field(name):
            return None
        return f"{names['set']} {name}" + ("" if value is None else f"={_plain(value)}")
    # a flag has no value, and DATA is a value itself
    if value is None or value == "True" or not option.startswith("--"):
        return option
    return f"{option} {_plain(value)}"


def _command(call: str) -> str | None:
    """A call such as "train('my photos', resume=True)" as it is typed in a shell; None if it is none."""
    try:
        parsed = ast.parse(call, mode="eval").body
        return shlex.join(["vivace", *_words(parsed)])
    except (SyntaxError, ValueError, AttributeError):
        return None


def _words(call: Any) -> list[str]:
    """The name of a verb, then its arguments; those of a `vivace.Data` among them are options of the verb too."""
    words = [call.func.id] if isinstance(call.func, ast.Name) else []
    for value in call.args:
        words += _words(value) if isinstance(value, ast.Call) else [str(ast.literal_eval(value))]
    for keyword in call.keywords:
        value = ast.literal_eval(keyword.value)
        words += ["--" + keyword.arg.replace("_", "-"), *([] if value is True else [str(value)])]
    return words


def _is_field(name: str) -> bool:
    """Whether a name with a dot is one of the recipe's."""
    from vivace.training.recipes.recipe import Recipe

    section, dot, _ = name.partition(".")
    return bool(dot) and section in {field.name for field in dataclasses.fields(Recipe)}


def _plain(value: str) -> str:
    """A value as it is typed in a shell: text without its quotes."""
    if len(value) > MAX_VALUE:
        return value
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
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
            names[field.name] = field.name.upper() if positional else "--" + field.name.rstrip("_").replace("_", "-")
    return names
