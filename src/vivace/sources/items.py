"""An image of a source: its name, where its bytes are, and what tells that it is still the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vivace.data.layouts.listing import is_candidate
from vivace.errors import ImageError

if TYPE_CHECKING:
    from vivace.data.decoding.memory import Budget

__all__ = ["Item", "Larger", "NotHere", "Slice", "content", "content_of", "file_item", "named_file_item"]

UNPACK = "It is not looked into: unpack it and give the folder, or make a tar of it."
LIST = "Give the names in it, a line each, on stdin, by -."
# extension of files that are no images, but mean some → what to do
HINTS = {
    **dict.fromkeys((".zip", ".7z", ".rar"), UNPACK),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".lst", ".json", ".jsonl"), LIST),
}


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
    """Their number, or what `read` takes at most: it raises `Larger` for more."""
    exact: bool = True
    """Whether it is their number."""


class Larger(Exception):
    """What is read is larger than was thought: read it again, by this slice."""

    def __init__(self, again: Slice) -> None:
        super().__init__(again)
        self.again = again


def file_item(path: str) -> Item:
    """The item of a file, which need not be there."""
    try:
        facts = os.stat(path)  # noqa: PTH116 (a million Path objects)
    except (OSError, ValueError):
        return Item(path, path, "absent")
    return Item(path, path, f"{facts.st_size}:{facts.st_mtime_ns}")


def named_file_item(path: str) -> Item:
    """The same of a file that was named itself: of what holds images, or their names, the item says how to give it."""
    hint = HINTS.get(os.path.splitext(path)[1].lower())  # noqa: PTH122
    item = file_item(path)
    if hint is None or is_candidate(path):
        return item
    return Item(path, ImageError(f"{path} is no image. {hint}", problem="not_an_image"), item.stamp)


def content_of(item: Item) -> Any:
    """What `Preprocess.load` takes: a path or bytes. Raises ImageError for an image that has none, or can't be read."""
    with content(item) as found:
        return found


@contextlib.contextmanager
def content(item: Item) -> Iterator[Any]:
    """A context with the same, which holds the memory for bytes that are read now."""
    # here, since one path takes longer to import it than to be decoded
    from vivace.data.decoding.memory import READING

    found = item.content
    if isinstance(found, ImageError):
        raise found
    if not isinstance(found, Slice):
        yield found
        return
    with contextlib.ExitStack() as held:
        try:
            data = _held(found, held, READING)
        except Larger as larger:
            held.close()
            data = _held(larger.again, held, READING)
        except OSError as error:
            raise ImageError(
                f"the image can't be read: {item.name} ({error.strerror or error}). Restore it from a copy.",
                problem="unreadable",
            ) from None
        yield data


def _held(part: Slice, held: contextlib.ExitStack, reading: Budget) -> bytes:
    """The bytes of a slice, for which memory is held."""
    if part.exact:
        held.enter_context(reading.hold(part.num_bytes))
        return part.read()
    keep = held.enter_context(reading.hold_at_most(part.num_bytes))
    data = part.read()
    keep(len(data))
    return data
