"""The index of a cache, cache.json, read as if a stranger had written it: bounded, and every value of its type."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivace.cachedir import INDEX
from vivace.data.caching.signature import SCHEMA_VERSION
from vivace.data.splits import DataSource
from vivace.errors import ConfigError
from vivace.files import canonical_json, open_regular, read_printable
from vivace.plain import parse_json

__all__ = ["MAX_INDEX_BYTES", "DamagedFiles", "folders_with", "index_limit", "parse_index", "read_index", "sealed"]

# of any index: those of five million images have a quarter of it
MAX_INDEX_BYTES = 2**31
# of the index of given images: in any case, for what the audit found about each, and how often that names it
FREE_BYTES, BYTES_PER_IMAGE, TIMES_NAMED = 2**24, 2048, 20
# read at once in a search
CHUNK_BYTES = 1 << 20


class DamagedFiles(Exception):
    """The files of a cache are not what was written: the message tells which."""


def sealed(index: dict[str, Any]) -> bytes:
    """The bytes of an index with its own hash."""
    return canonical_json({**index, "sha256": _hash(index)})


def _hash(index: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(index)).hexdigest()


def index_limit(source: DataSource) -> int:
    """Bytes that the index of a source's cache may have: a multiple of what it needs."""
    names = [list(split.names) for split in source.splits.values()]
    named = len(canonical_json([*names, list(source.ignored), list(source.classes)]))
    images = sum(map(len, names)) + len(source.ignored)
    return min(MAX_INDEX_BYTES, FREE_BYTES + BYTES_PER_IMAGE * images + TIMES_NAMED * named)


def read_index(path: Path, max_bytes: int = MAX_INDEX_BYTES) -> dict[str, Any] | None:
    """The index at `path` without its own hash; None if there is none, or one of another version.

    Raises DamagedFiles for one that is not whole, OSError for what is no file, or a larger one than max_bytes.
    """
    try:
        text = read_printable(path, max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise DamagedFiles(f"{path.name} can't be read") from None
    index = parse_index(text)
    if index.get("schema_version") != SCHEMA_VERSION:
        return None
    if not _is_plausible(index):
        raise DamagedFiles(f"{path.name} holds values of other types")
    return index


def parse_index(text: bytes) -> dict[str, Any]:
    """The index that `text` is, of whatever version, without its own hash. Raises DamagedFiles if it is not whole."""
    try:
        index = parse_json(text, INDEX)
    except ConfigError:
        raise DamagedFiles(f"{INDEX} can't be read") from None
    if not isinstance(index, dict) or index.pop("sha256", None) != _hash(index):
        raise DamagedFiles(f"{INDEX} has changed")
    return index


def _is_plausible(index: dict[str, Any]) -> bool:
    """Whether all values but those of the audit, which tells by itself, are of the types that `write_splits` writes."""
    names, sums, facts, origin = (index.get(key) for key in ("names", "checksums", "facts", "origin"))
    return (
        all(isinstance(index.get(key), str) for key in ("signature", "fingerprint"))
        and isinstance(names, dict)
        and isinstance(sums, dict)
        and names.keys() == sums.keys()
        # a name is that of files
        and all(name.isidentifier() and _is_list(names[name], str) and _is_list(sums[name], int) for name in names)
        and _is_list(origin, str, 2)
        and isinstance(facts, list)
        and len(facts) == 2
        and _is_list(facts[1], str)
    )


def _is_list(value: Any, kind: type, length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value)) and all(type(item) is kind for item in value)


def folders_with(fingerprint: str, first: Path) -> Iterator[Path]:
    """The folders of caches whose index tells this fingerprint: `first`, and those that lie beside it."""
    for folder in (first, *sorted(first.parent.glob("[!.]*/"))):
        with contextlib.suppress(OSError):
            # a search of bytes: the index of a million images takes seconds to parse
            if _holds(folder / INDEX, f'"fingerprint":"{fingerprint}"'.encode()):
                yield folder


def _holds(path: Path, wanted: bytes) -> bool:
    """Whether a file holds these bytes, in the memory of a part of it. Raises OSError."""
    with open_regular(path, MAX_INDEX_BYTES) as file:
        before = b""
        while part := file.read(CHUNK_BYTES):
            # zeros take no room on a disk: of an index they are no part, and gigabytes of them need no search
            if b"\0" in part:
                return False
            if wanted in before + part:
                return True
            before = part[-len(wanted) :]
    return False
