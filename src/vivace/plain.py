"""Parses untrusted YAML and JSON into plain values, with bounds on size, depth and the length of numbers.

The results are None, booleans, finite numbers, text, lists, and mappings with text as keys. Whatever could take far
more time or memory than its text (aliases, thousands of levels, numbers with thousands of digits) is refused before it
is built.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from vivace.errors import ConfigError, first_line

__all__ = ["dump_yaml", "parse_json", "parse_yaml"]

# a complete recipe has 3 kB; the parser takes a second for 200 kB
MAX_YAML_BYTES = 64 * 1024
MAX_YAML_DEPTH = 20
MAX_JSON_DEPTH = 40
# 2^64 has 20 digits
MAX_DIGITS = 20
MAX_NUMBER = 40
PLAIN_TAGS = ("!", "tag:yaml.org,2002:str")
# YAML 1.1 reads 1e-3 as text, 1:30 as 90 and 2024-11-28 as a date. Here these are a number and two texts
NUMBERS = {
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0[0-7_]+|0b[01_]+)\Z"),
    "float": re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
    ),
}


def parse_yaml(text: str, where: str) -> Any:
    """The plain value of a YAML text. Raises ConfigError, whose message begins with `where`, for anything else."""
    import yaml

    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_YAML_BYTES:
        raise _refused(where, f"it has {size:,} bytes, the limit is {MAX_YAML_BYTES:,}", "Shorten it")
    loader_class, _ = _yaml_classes()
    try:
        _check_events(yaml.parse(text, Loader=loader_class), where)
        value = yaml.load(text, Loader=loader_class)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise _refused(where, reason, "Object tags are refused; write plain values") from None
    except (ValueError, RecursionError) as error:
        raise _refused(where, first_line(error), "Write plain values") from None
    _check_numbers(value, where)
    return value


def dump_yaml(value: Any) -> str:
    """The YAML text that `parse_yaml` reads back as `value`; keys keep their order."""
    import yaml

    _, dumper = _yaml_classes()
    text: str = yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_json(data: bytes | str, where: str, *, fix: str = "Restore it from a copy") -> Any:
    """The plain value of a JSON text. Raises ConfigError, whose message begins with `where`, for anything else.

    NaN, infinities, duplicate keys, integers with over MAX_DIGITS digits and over MAX_JSON_DEPTH levels are refused.
    fix: what the message advises, without its period.
    """
    try:
        value = json.loads(
            data,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_unique,
        )
        _check_depth(value, MAX_JSON_DEPTH)
    except (ValueError, RecursionError) as error:
        raise _refused(where, first_line(error), fix, kind="JSON") from None
    return value


def _refused(where: str, cause: str, fix: str, *, kind: str = "YAML") -> ConfigError:
    return ConfigError(f"{where} is not plain {kind}: {cause}. {fix}.")


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number with {len(text):,} digits: {text[:12]}…")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number that is not finite: {text[:MAX_NUMBER]}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice!r}")
    return values


def _check_depth(value: Any, levels: int) -> None:
    """Raise ValueError if lists and mappings are nested deeper than `levels`."""
    level: list[Any] = [value]
    for _ in range(levels + 1):
        level = [item for node in level if isinstance(node, dict | list) for item in _items(node)]
        if not level:
            return
    raise ValueError(f"more than {levels} levels")


def _items(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _check_events(events: Iterable[Any], where: str) -> None:
    """Raise ConfigError for events that must not be built; the parser yields them one by one, without recursion."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise _refused(where, f"it has an alias, *{str(event.anchor)[:MAX_NUMBER]}", "Write the value itself")
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in PLAIN_TAGS:
            raise _refused(where, f"it has the tag {tag!r}", "Object tags are refused; write plain values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_YAML_DEPTH:
                raise _refused(where, f"it has more than {MAX_YAML_DEPTH} levels", "Write fewer")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_NUMBER and _is_number(event):
            raise _refused(
                where,
                f"it has a number with {len(event.value):,} characters, {event.value[:12]}…",
                "Write a shorter one",
            )


def _is_number(event: Any) -> bool:
    return event.implicit[0] and any(pattern.match(event.value) for pattern in NUMBERS.values())


def _check_numbers(value: Any, where: str) -> None:
    level = [value]
    while level:
        for node in level:
            if isinstance(node, float) and not math.isfinite(node):
                raise _refused(where, f"it has the number {node}", "Write a finite one")
        level = [item for node in level if isinstance(node, dict | list) for item in _items(node)]


@functools.cache
def _yaml_classes() -> tuple[Any, Any]:
    """PyYAML's safe loader and dumper, changed to agree on what is a number."""
    import yaml

    def unique_mapping(loader: Any, node: Any, deep: bool = False) -> dict[str, Any]:
        values = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                # such as the index of a class, or on and off, which YAML reads as booleans
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key in values:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    "a key that is not text" if key is None else f"duplicate key {key!r}",
                    key_node.start_mark,
                )
            values[key] = loader.construct_object(value_node, deep=True)
        return values

    class Loader(yaml.SafeLoader):
        pass

    class Dumper(yaml.SafeDumper):
        pass

    kept = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"}
    for cls in (Loader, Dumper):
        cls.yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in rows if tag in kept]
            for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        for name, pattern in NUMBERS.items():
            cls.add_implicit_resolver(f"tag:yaml.org,2002:{name}", pattern, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:map", unique_mapping)
    return Loader, Dumper
