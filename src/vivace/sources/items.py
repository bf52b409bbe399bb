"""An image of a source: its name, where its bytes are, and what tells that it is still the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vivace.errors import ImageError

__all__ = ["Item", "NotHere", "Slice", "content_of", "file_item"]


class NotHere(Exception):
    """What an item names is not on this machine as it was where the item was found."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source."""

    name: str
    """A path; of an image in a file of many, that file's path and a name or number in it."""
    content: str | bytes | Slice | ImageError | None
    """A path, the bytes, where they are, or why there are none; None: it is passed over, for it was done before."""
    stamp: str
    """Changes when the image does, as far as its size and date tell; "" where nothing tells."""

    @property
    def path(self) -> str | None:
        """The path of the image's own file; None if it has none."""
        return self.content if isinstance(self.content, str) else None

    @property
    def held_bytes(self) -> int:
        """What it holds in memory."""
        return len(self.content) if isinstance(self.content, bytes) else 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes that are read when they are needed: those of a member of a tar, by whichever thread decodes it."""

    read: Callable[[], bytes]
    num_bytes: int


def file_item(path: str) -> Item:
    """The item of a file, which need not be there."""
    try:
        facts = os.stat(path)  # noqa: PTH116 (a million Path objects)
    except (OSError, ValueError):
        return Item(path, path, "absent")
    return Item(path, path, f"{facts.st_size}:{facts.st_mtime_ns}")


def content_of(item: Item) -> Any:
    """What `Preprocess.load` takes: a path or bytes. Raises ImageError for an image that has none, or can't be read."""
    # here, since one path takes longer to import it than to be decoded
    from vivace.data.decoding.memory import READING

    found = item.content
    if isinstance(found, ImageError):
        raise found
    if not isinstance(found, Slice):
        return found
    with READING.hold(found.num_bytes):
        try:
            return found.read()
        except OSError as error:
            raise ImageError(
                f"the image can't be read: {item.name} ({error.strerror or error}). Restore it from a copy.",
                problem="unreadable",
            ) from None
