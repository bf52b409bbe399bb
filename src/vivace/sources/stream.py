"""`Sources`: everything behind PATHS as one stream of images, in an order that is the same each time."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from vivace.data.decoding.formats import EXTENSIONS
from vivace.data.layouts.splitnames import is_system
from vivace.errors import ConfigError, DataError, ImageError, InputError, OutputPathError
from vivace.sources.items import Item, file_item, named_file_item
from vivace.sources.kinds import is_parquet, is_tar, is_url, plain_url
from vivace.sources.paths import ADVICE, Left, images_below, lines_of, matches_of, nothing_in, text_of

__all__ = ["Sources"]

# inputs without images that are named
NUM_NAMED = 5


class Sources:
    """The images behind paths, each once, in the order given; read as they are asked for, never held.

    paths: files, folders (all images below them), globs, tars and parquet files that hold images, URLs of all these, or
    "-" for a list of such on stdin. The names in a list or glob take 90 bytes of memory each, to notice repeats.
    left: notes what is passed over.
    Raises DataError if there is nothing behind all of the paths, also the iterator where only reading them tells. It
    raises DataError too for a folder that can't be read; what is wrong with a name in a list is an item with the error.
    """

    def __init__(self, paths: Iterable[str | Path], *, left: Left, stdin: BinaryIO | None = None) -> None:
        self.given = [text_of(path) for path in paths]
        if not self.given:
            raise DataError(f"no images are named: got an empty list. {ADVICE}")
        if self.given.count("-") > 1:
            raise ConfigError("stdin is named twice: got - more than once. Give it once.")
        self._left, self._stdin = left, stdin
        self.num_repeated = 0
        """Names so far of files that were named before."""
        self.done = 0
        """Images at the start that need no content, for they were classified before."""
        self.reading: Callable[[str], None] = lambda name: None
        """Called with each file or URL before it is read; raises OutputPathError for one that must not be."""
        self.num_empty = 0
        """Inputs so far without an image."""
        self._empty: list[str] = []
        self._place = 0
        # one folder names no file twice
        alone = len(self.given) == 1 and (os.path.isdir(self.given[0]) or is_url(self.given[0]))  # noqa: PTH112
        self._seen: set[bytes] | None = None if alone else set()
        self._names = {path: [path] if is_url(path) else matches_of(path) for path in self.given if path != "-"}
        if "-" not in self.given and not any(map(_holds_some, self.named())):
            raise nothing_in(*self.given)

    def named(self) -> Iterator[str]:
        """The files, folders and URLs that paths name, those of globs among them, without those of a list."""
        return chain.from_iterable(self._names.values())

    def __iter__(self) -> Iterator[Item]:
        for path in self.given:
            listed, any_name = path == "-", False
            # a name in a list is no pattern
            for name in self._lines() if listed else self._names[path]:
                any_name = True
                yield from self._counted(name, listed)
            if not any_name:
                self._note_empty(path)
        if not self._place:
            raise nothing_in(*self.given)

    def _lines(self) -> Iterator[str]:
        return lines_of(sys.stdin.buffer if self._stdin is None else self._stdin)

    def _counted(self, name: str, listed: bool) -> Iterator[Item]:
        """The items behind a name; of a list what is wrong with it is one, for the others are worth their rows."""
        before = self._place, self.num_repeated
        try:
            for item in self._items_of(name):
                self._place += 1
                yield item
        except InputError as error:
            if not listed or isinstance(error, OutputPathError):
                raise
            self._place += 1
            yield Item(name, ImageError(str(error), problem="unreadable"), "unusable")
        if before == (self._place, self.num_repeated):
            self._note_empty(name)

    def _note_empty(self, name: str) -> None:
        self.num_empty += 1
        if len(self._empty) < NUM_NAMED:
            self._empty.append(name)

    def told_empty(self) -> str | None:
        """One line with the inputs so far that have no images; None if there are none."""
        if not self.num_empty:
            return None
        more = f" and {self.num_empty - len(self._empty):,} more" if self.num_empty > len(self._empty) else ""
        return f"no images in {', '.join(map(repr, self._empty))}{more}: passed over"

    @property
    def remote(self) -> bool:
        """Whether images are at URLs, as far as paths tell."""
        return any(map(is_url, self.given))

    def count(self, seconds: float = 0.5) -> int | None:
        """About how many images there are, by the extensions of names; None: unknown, or it would take longer."""
        until, found = time.monotonic() + seconds, 0
        if "-" in self.given:
            return None
        for name in self.named():
            if is_url(name) or is_tar(name) or is_parquet(name):
                return None
            if not os.path.isdir(name):  # noqa: PTH112
                found += 1
                continue
            for _, folders, files in os.walk(name):
                folders[:] = [folder for folder in folders if not is_system(folder)]
                found += sum(os.path.splitext(file)[1].lower() in EXTENSIONS for file in files)  # noqa: PTH122
                if time.monotonic() > until:
                    return None
        return found

    def _items_of(self, name: str) -> Iterator[Item]:
        if is_url(name):
            from vivace.sources.remote import remote_items

            self.reading(name)
            for item in remote_items(name, self._left, max(0, self.done - self._place), reading=self.reading):
                if self._is_new(item.name):
                    yield item
        elif os.path.isdir(name):  # noqa: PTH112
            for path in images_below(name, self._left):
                if self._is_new(path):
                    self.reading(path)
                    yield file_item(path)
        elif not self._is_new(name):
            return
        elif not os.path.exists(name):  # noqa: PTH110
            # a tar or parquet file that is not there is not a damaged one
            yield file_item(name)
        else:
            self.reading(name)
            yield from self._read(name)

    def _read(self, name: str) -> Iterator[Item]:
        """What is in a file."""
        if is_tar(name):
            from vivace.sources.shards import tar_items

            yield from tar_items(name, self._left)
        elif is_parquet(name):
            from vivace.sources.parquet_rows import parquet_items

            yield from parquet_items(name, max(0, self.done - self._place))
        else:
            yield named_file_item(name)

    def _is_new(self, path: str) -> bool:
        """Whether this file was not named before."""
        if self._seen is None:
            return True
        name = plain_url(path) if is_url(path) else os.path.abspath(path)  # noqa: PTH100
        key = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        if key in self._seen:
            self.num_repeated += 1
            return False
        self._seen.add(key)
        return True


def _holds_some(name: str) -> bool:
    """Whether it is no folder, or one with images."""
    return not os.path.isdir(name) or next(images_below(name, []), None) is not None  # noqa: PTH112
