"""Reads the index of a cache, cache.json, as untrusted input: bounded in size, with the type of each value checked."""

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

# for any index; five million images need a quarter of it
MAX_INDEX_BYTES = 2**31
# for the index of given images: a constant, findings of the audit per image, and how often their names may occur
FREE_BYTES, BYTES_PER_IMAGE, TIMES_NAMED = 2**24, 2048, 20
# read at once in a search
CHUNK_BYTES = 1 << 20


class DamagedFiles(Exception):
    """The files of a cache are not as they were written; the message says which one."""


def sealed(index: dict[str, Any]) -> bytes:
    """The bytes of an index, with its own hash added."""
    return canonical_json({**index, "sha256": _hash(index)})


def _hash(index: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(index)).hexdigest()


def index_limit(source: DataSource) -> int:
    """The maximum size in bytes of the index of a source's cache: a multiple of what it needs."""
    names = [list(split.names) for split in source.splits.values()]
    named = len(canonical_json([*names, list(source.ignored), list(source.classes)]))
    images = sum(map(len, names)) + len(source.ignored)
    return min(MAX_INDEX_BYTES, FREE_BYTES + BYTES_PER_IMAGE * images + TIMES_NAMED * named)


def read_index(path: Path, max_bytes: int = MAX_INDEX_BYTES) -> dict[str, Any] | None:
    """The index at `path`, without its own hash; None if there is none, or if it is of another version.

    Raises DamagedFiles if it is incomplete or changed, OSError if it is not a file or larger than max_bytes.
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
        raise DamagedFiles(f"{path.name} holds values of wrong types")
    return index


def parse_index(text: bytes) -> dict[str, Any]:
    """The index in `text`, of any version, without its own hash. Raises DamagedFiles if it is incomplete or changed."""
    try:
        index = parse_json(text, INDEX)
    except ConfigError:
        raise DamagedFiles(f"{INDEX} can't be read") from None
    if not isinstance(index, dict) or index.pop("sha256", None) != _hash(index):
        raise DamagedFiles(f"{INDEX} has changed")
    return index


def _is_plausible(index: dict[str, Any]) -> bool:
    """Whether the values have the types that `write_splits` writes; `Audit.from_dict` checks those of the audit."""
    names, sums, facts, origin = (index.get(key) for key in ("names", "checksums", "facts", "origin"))
    return (
        all(isinstance(index.get(key), str) for key in ("signature", "fingerprint"))
        and isinstance(names, dict)
        and isinstance(sums, dict)
        and names.keys() == sums.keys()
        # a split's name is part of file names
        and all(name.isidentifier() and _is_list(names[name], str) and _is_list(sums[name], int) for name in names)
        and _is_list(origin, str, 2)
        and isinstance(facts, list)
        # the third, of images with sets of labels, is checked where it is read
        and len(facts) in (2, 3)
        and _is_list(facts[1], str)
    )


def _is_list(value: Any, kind: type, length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value)) and all(type(item) is kind for item in value)


def folders_with(fingerprint: str, first: Path) -> Iterator[Path]:
    """The folders of caches whose index holds this fingerprint, among `first` and those beside it."""
    for folder in (first, *sorted(first.parent.glob("[!.]*/"))):
        with contextlib.suppress(OSError):
            # a byte search, because parsing the index of a million images takes seconds
            if _holds(folder / INDEX, f'"fingerprint":"{fingerprint}"'.encode()):
                yield folder


def _holds(path: Path, wanted: bytes) -> bool:
    """Whether a file holds these bytes, reading it part by part. Raises OSError."""
    with open_regular(path, MAX_INDEX_BYTES) as file:
        before = b""
        while part := file.read(CHUNK_BYTES):
            # an index holds no zeros; a sparse file may hold gigabytes of them, which need not be searched
            if b"\0" in part:
                return False
            if wanted in before + part:
                return True
            before = part[-len(wanted) :]
    return False
