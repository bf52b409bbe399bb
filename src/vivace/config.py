"""Converts frozen dataclasses to YAML and strictly back.

A configuration is a frozen, keyword-only dataclass beside the component that reads it, and validates itself when it is
made. Reading is strict: an unknown key is an error that names the nearest known one, a value of the wrong type is an
error that names the field, and YAML tags that build objects are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from vivace.errors import ConfigError, nearest
from vivace.plain import MAX_NUMBER, MAX_YAML_BYTES, dump_yaml, parse_yaml

__all__ = [
    "check_choice",
    "check_count",
    "check_path",
    "check_range",
    "from_dict",
    "from_yaml",
    "override",
    "parse_duration",
    "shown_value",
    "to_dict",
    "to_yaml",
]

C = TypeVar("C")
# of images, threads or classes; a library in C takes no more
MAX_COUNT = 10**9
# thirty years
MAX_SECONDS = 1e9


def check_range(
    field: str,
    value: float | None,
    low: float,
    high: float = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise ConfigError unless the value is None, or finite and low <= value <= high (strict with `open_*`)."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(field, value, "a number")
    inside = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
    if not inside or abs(value) > sys.float_info.max:
        left, right = "(" if open_low else "[", ")" if open_high or high == float("inf") else "]"
        raise ConfigError(
            f"{field} is out of range: got {shown_value(value)}. Give a value in {left}{low:g}, {high:g}{right}."
        )


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        hint = nearest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{field} is unknown: got {shown_value(value)}.{hint} Known: {', '.join(choices)}.")


def check_count(field: str, value: Any) -> None:
    """Raise ConfigError unless the value is a whole number from 1 to MAX_COUNT."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(field, value, "a whole number")
    check_range(field, value, 1, MAX_COUNT)


def check_path(field: str, value: Any) -> None:
    """Raise ConfigError unless the value is None or a path that a system can have."""
    if value is None:
        return
    if not isinstance(value, str | Path):
        raise _wrong_type(field, value, "a path")
    if "\0" in str(value):
        raise ConfigError(f"{field} is no path: got {shown_value(str(value))}. Give one without a NUL character.")


def shown_value(value: object) -> str:
    """A value as a message shows it: shortened, also a number that Python refuses to print for its many digits."""
    if isinstance(value, int) and abs(value) >= 10**MAX_NUMBER:
        return f"a number of about {math.ceil(value.bit_length() * math.log10(2)):,} digits"
    return f"{value!r:.200}"


def parse_duration(text: str | float) -> float:
    """Seconds of "90s", "10m" (or "10min"), "1.5h" or a plain number of seconds. Raises ConfigError."""
    # its length first: Python refuses to print a number with thousands of digits
    plain = shown_value(text) if isinstance(text, int) else str(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", plain)
    seconds = float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"] if match else 0.0
    if not 0 < seconds < MAX_SECONDS:
        raise ConfigError(
            f"`within` is no duration: got {shown_value(text)}. Write 90s, 10m, 1.5h, or a number of seconds: 90."
        )
    return seconds


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists, strings, numbers and None, for YAML or JSON.

    A field whose metadata has `omit_default` is left out where it has its default: older versions do not know it.
    """
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not (field.metadata.get("omit_default") and value == field.default):
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_dict(cls: type[C], values: Mapping[str, Any], *, where: str = "") -> C:
    """A `cls` built from plain values; missing fields get their defaults.

    where: prefix of field names in messages. Raises ConfigError for an unknown key, a value of the wrong type, or a
    missing field without a default.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where or cls.__name__} must be a mapping of fields: got {values!r}. Write lines of 'field: value'."
        )
    hints = typing.get_type_hints(cls)
    known = sorted(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"unknown key {name!r}.{nearest(str(key), known)} Known here: {', '.join(known)}.")
        built[key] = _coerce(value, hints[key], name)
    required = {
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - built.keys()):
        raise ConfigError(f"{where or cls.__name__} lacks required fields: {', '.join(missing)}. Add them.")
    return cls(**built)


def override(config: C, assignments: Mapping[str, Any]) -> C:
    """A copy of `config` with fields replaced, given by dotted names such as {"optimizer.lr": "0.1"}.

    Strings are parsed as YAML, except numbers for fields that hold text. Raises ConfigError as `from_dict` does.
    """
    nested = to_dict(config)
    for dotted, value in assignments.items():
        node = nested
        *parents, leaf = dotted.split(".")
        for depth, part in enumerate(parents):
            child = node.get(part)
            if child is None and part in node:
                child = node[part] = {}
            if not isinstance(child, dict):
                raise ConfigError(
                    f"unknown key {'.'.join(parents[: depth + 1])!r}.{nearest(part, sorted(node))} "
                    f"Known here: {', '.join(sorted(node))}."
                )
            node = child
        node[leaf] = _Unread(value, dotted) if isinstance(value, str) else value
    return from_dict(type(config), nested)


def to_yaml(config: Any) -> str:
    """The config as YAML, fields in the order of their declaration."""
    return dump_yaml(to_dict(config))


def from_yaml(cls: type[C], source: Path | str) -> C:
    """A `cls` read from a YAML file (a Path) or from YAML text (a str). Raises ConfigError."""
    if not isinstance(source, Path):
        return from_dict(cls, parse_yaml(source, "config") or {})
    try:
        with source.open("rb") as file:
            # bounded, because a device, or a file that grows, may never end
            text = file.read(MAX_YAML_BYTES + 1).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config file can't be read: {source} ({error}). Give a readable YAML file.") from None
    return from_dict(cls, parse_yaml(text, str(source)) or {})


@dataclasses.dataclass(frozen=True)
class _Unread:
    """An unparsed value of "field=value" on the command line: the type of its field decides how it is parsed."""

    text: str
    field: str

    def read(self, hint: Any) -> Any:
        """The parsed value; 12.10 is a number for a field of numbers, and text for a field of text."""
        value = parse_yaml(self.text, self.field)
        is_text = hint is str or (get_origin(hint) in (Union, types.UnionType) and str in get_args(hint))
        return self.text if is_text and isinstance(value, int | float) else value


def _coerce(value: Any, hint: Any, name: str) -> Any:
    if isinstance(value, _Unread):
        value = value.read(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args, name)
    if origin is Literal:
        # True == 1 and 1.0 == 1 in Python, but only 1 is a number of channels
        if not any(type(value) is type(arg) and value == arg for arg in args):
            choices = tuple(str(arg) for arg in args)
            raise ConfigError(
                f"{name} is unknown: got {value!r}.{nearest(str(value), choices)} Known: {', '.join(choices)}."
            )
        return value
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return value
        return from_dict(typing.cast(type, hint), value, where=name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(name, value, "a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(item, args[0], f"{name}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise _wrong_type(name, value, f"a list of {len(args)} values")
        return tuple(_coerce(item, arg, f"{name}[{i}]") for i, (item, arg) in enumerate(zip(value, args, strict=True)))
    if origin in (dict, Mapping) or hint is dict or getattr(origin, "__name__", "") == "Mapping":
        if not isinstance(value, Mapping):
            raise _wrong_type(name, value, "a mapping")
        free = _free_mapping(value, name)
        return free if args[-1:] != (float,) else {key: _coerce(free[key], float, f"{name}.{key}") for key in free}
    return _coerce_scalar(value, hint, name)


def _coerce_union(value: Any, options: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in options:
        return None
    reasons: list[tuple[bool, ConfigError]] = []
    # an exact type match comes first, so that `bool | str` keeps True and `int | float` keeps 3
    for option in options:
        if isinstance(option, type) and type(value) is option:
            return value
    for option in options:
        if option is type(None):
            continue
        try:
            return _coerce(value, option, name)
        except ConfigError as error:
            # of what is meant: a mapping is told what is wrong with it as one
            reasons.append((isinstance(value, Mapping) == (get_origin(option) is Mapping), error))
    raise next((error for is_meant, error in reasons if is_meant), reasons[0][1])


def _coerce_scalar(value: Any, hint: Any, name: str) -> Any:
    if hint is Any:
        return value
    if hint is float:
        return float(_number(value, name, "a number"))
    if hint is int:
        number = _number(value, name, "an integer")
        if int(number) != number:
            raise _wrong_type(name, value, "an integer")
        return int(number)
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong_type(name, value, "true or false")
        return value
    if hint is str:
        # str() of an integer gives back its text, unlike that of 12.10 and 1e3
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise _wrong_type(name, value, "text, in quotes if it looks like a number")
        return str(value)
    if hint is Path:
        if not isinstance(value, str | Path):
            raise _wrong_type(name, value, "a path")
        return Path(value)
    raise TypeError(f"{name}: config fields of type {hint!r} are not supported")


def _number(value: Any, name: str, expected: str) -> int | float:
    """A finite number, given as a number or as text such as "0.1"."""
    number = value
    if isinstance(value, str) and len(value) <= MAX_NUMBER:
        with contextlib.suppress(ValueError):
            number = float(value)
    # integers that overflow a float are refused too
    if isinstance(number, bool) or not isinstance(number, int | float) or abs(number) > sys.float_info.max:
        raise _wrong_type(name, value, expected)
    if math.isnan(number):
        raise _wrong_type(name, value, expected)
    return number


def _free_mapping(value: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """The values unchanged, even text: "2024" is not 2024, and "1e18" may be a fingerprint."""
    if not all(isinstance(key, str) for key in value):
        raise _wrong_type(name, value, "a mapping whose keys are text")
    return {key: item.read(Any) if isinstance(item, _Unread) else item for key, item in value.items()}


def _wrong_type(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{name} has the wrong type: got {shown_value(value)}. Give {expected}.")
