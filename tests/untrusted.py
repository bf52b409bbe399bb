"""Changes that an attacker may make to a bundle, with valid hashes afterwards."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivace.files import canonical_json

# one of each type that JSON has, and what is most often wrong within a type
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1.5, 2**62, "", "x", [], [None], ["x", "x"], {}, {"a": {"b": []}})


def read_sealed(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle."""
    manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return manifest


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose own hash is right."""
    sealed = {key: value for key, value in manifest.items() if key != "sha256"}
    sealed["sha256"] = hashlib.sha256(canonical_json(sealed)).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(sealed))


def file_facts(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the fields of a manifest are: keys and indices from the outside in; of a list its first item."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(manifest: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with one field changed."""
    copied = copy.deepcopy(manifest)
    node: Any = copied
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return copied
