"""What --json prints: one object on the last line of stdout, as `vivace/schemas/VERB.json` describes it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vivace.errors import one_line
from vivace.notices import recorded_warnings, worded

__all__ = ["SCHEMA_VERSION", "failed", "print_json", "wants_json"]

# of the output of all verbs; it is raised when a key is removed, renamed or gets another meaning, not when one is added
SCHEMA_VERSION = 2


def print_json(verb: str, value: Mapping[str, Any]) -> None:
    """Print an answer as one line; NaN and infinities, which JSON lacks, become null.

    It starts with `schema_version` and `verb`, and ends with `warnings`: those of `value`, and those shown beside them.
    """
    answer = {"schema_version": SCHEMA_VERSION, "verb": verb, **value}
    answer["warnings"] = list(dict.fromkeys([*map(worded, value.get("warnings", ())), *recorded_warnings()]))
    print(json.dumps(_strict(answer), ensure_ascii=True, allow_nan=False, default=str), flush=True)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether --json is among the options."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def failed(verb: str | None, error: BaseException, message: str, status: int, *, as_json: bool) -> int:
    """The exit status of a failure, which is printed as an object under `error` with --json.

    verb: None where none was recognised.
    """
    if as_json:
        # a stdout that can't be written may be what failed
        with contextlib.suppress(OSError, ValueError):
            told = {"type": type(error).__name__, "message": one_line(message), "exit_status": status}
            _print_error(verb, told)
    return status


def _print_error(verb: str | None, told: Mapping[str, Any]) -> None:
    answer = {"schema_version": SCHEMA_VERSION, "verb": verb, "error": told, "warnings": list(recorded_warnings())}
    print(json.dumps(answer, ensure_ascii=True), flush=True)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
