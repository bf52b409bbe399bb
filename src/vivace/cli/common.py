"""What every verb shares: parsing, errors to exit statuses, and JSON as the last line on stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

from vivace.errors import ConfigError, InputError, VivaceError, nearest

__all__ = ["option_names", "parse_assignments", "print_json", "run_verb", "verb_options"]

T = TypeVar("T")


def run_verb(verb: str, arguments: list[str]) -> int:
    """Parse a verb's options, run it, and return its exit status. Torch is imported by the verb, not here."""
    for stream in (sys.stdout, sys.stderr):
        # file names may hold bytes that are no UTF-8, class names what an ASCII terminal lacks: no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    module = import_module(f"vivace.cli.{verb}")
    try:
        parsed = _parse(verb, module, arguments)
    except InputError as error:
        print(f"{type(error).__name__}: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:
        return _read_enough()
    if not sys.warnoptions:
        # libraries' notes to their own developers: they would stand between the user and the result
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        # a verb whose answer may be "no" returns a status of its own
        status: int = module.run(parsed) or 0
        sys.stdout.flush()
    except VivaceError as error:
        print(f"{type(error).__name__}: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _read_enough()
    return status


def _read_enough() -> int:
    """The reader of stdout has what it wanted (`| head`): python must not complain at its exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


@dataclass_transform(kw_only_default=True, frozen_default=True)
def verb_options(cls: type[T]) -> type[T]:
    """A frozen dataclass of options, whose help shows the defaults that say something: neither None nor False."""
    import tyro

    hints = get_type_hints(cls, include_extras=True)
    for name in cls.__annotations__:
        default = getattr(cls, name, ...)
        if default is None or default is False or default == ():
            cls.__annotations__[name] = Annotated[hints[name], tyro.conf.arg(help_behavior_hint="")]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def option_names(cls: Any) -> list[str]:
    """All options of a verb, such as "--batch-size", those of its groups included."""
    hints, names = get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            names += option_names(hints[field.name])
        else:
            names.append("--" + field.name.replace("_", "-"))
    return names


def _parse(verb: str, module: Any, arguments: list[str]) -> Any:
    """The options of a verb. Raises ConfigError on one line for what does not fit, SystemExit after the help."""
    import tyro

    known = [*option_names(module.Options), "--help"]
    for argument in arguments:
        if argument == "--":
            break
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            raise ConfigError(f"the option is unknown: got {name!r}.{nearest(name, known)} See vivace {verb} --help.")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                module.Options,
                prog=f"vivace {verb}",
                description=module.__doc__,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(f"{_first_message(errors.getvalue())}. See vivace {verb} --help.") from None


def _first_message(box: str) -> str:
    """What the parser says in its box, shortened: without the frame, Python's types and the help that follows."""
    lines = [line.strip("│| ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts: list[list[str]] = [[]]
    for line in lines:
        if line and not line.strip("─-"):
            parts.append([])
        else:
            parts[-1].append(line)
    # where only ASCII can be printed there are rules in place of a box, and the title stands above the first of them
    message = parts[0] if "╭" in box or len(parts) == 1 else parts[1]
    text = _one_line(" ".join(message)).replace(", 'None'", "")
    text = re.sub(r"no type matching .*? Got errors: - <class '\w+'>: ", "", text)
    text = re.sub(r"^Missing from [^:]*: (\S+).*", r"\1 is missing", text)
    return text[:1].lower() + text[1:].rstrip(".") if not text[:2].isupper() else text


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object as one line on stdout; NaN and infinities, which JSON has not, become null."""
    print(json.dumps(_strict(value), ensure_ascii=True, allow_nan=False, default=str), flush=True)


def parse_assignments(pairs: tuple[str, ...]) -> dict[str, str]:
    """{"optimizer.lr": "0.1"} from ("optimizer.lr=0.1",). Raises ConfigError for a pair without "="."""
    assignments = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set needs field=value: got {pair!r}. Write, say, --set optimizer.lr=0.1.")
        assignments[key.strip()] = value.strip()
    return assignments


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _one_line(text: str) -> str:
    """On one line, and without characters that a terminal would obey: file names may hold any."""
    joined = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in joined)
