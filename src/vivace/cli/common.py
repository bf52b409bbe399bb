"""What every verb shares: parsing, errors to exit statuses, and JSON as the last line on stdout."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from vivace.errors import VivaceError

__all__ = ["parse_assignments", "print_json", "run_verb"]


def run_verb(verb: str, arguments: list[str]) -> int:
    """Parse a verb's options, run it, and return its exit status. Torch is imported by the verb, not here."""
    import tyro

    for stream in (sys.stdout, sys.stderr):
        # file names may hold bytes that are no UTF-8, class names what an ASCII terminal lacks: no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    module = import_module(f"vivace.cli.{verb}")
    try:
        options = tyro.cli(
            module.Options,
            prog=f"vivace {verb}",
            description=module.__doc__,
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    if not sys.warnoptions:
        # libraries' notes to their own developers: they would stand between the user and the result
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        module.run(options)
        sys.stdout.flush()
    except VivaceError as error:
        print(f"{type(error).__name__}: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has what it wanted (`| head`): python must not complain at its exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object as one line on stdout."""
    print(json.dumps(value, ensure_ascii=True, allow_nan=True, default=str), flush=True)


def parse_assignments(pairs: tuple[str, ...]) -> dict[str, str]:
    """{"optimizer.lr": "0.1"} from ("optimizer.lr=0.1",). Raises ConfigError for a pair without "="."""
    from vivace.errors import ConfigError

    assignments = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set needs field=value: got {pair!r}. Write, say, --set optimizer.lr=0.1.")
        assignments[key.strip()] = value.strip()
    return assignments


def _one_line(text: str) -> str:
    return " ".join(text.split())
