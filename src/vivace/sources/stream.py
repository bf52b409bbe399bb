"""`Sources`: everything behind PATHS as one stream of images, in an order that is the same each time."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from vivace.data.decoding.formats import EXTENSIONS
from vivace.data.layouts.splitnames import is_system
from vivace.errors import ConfigError, DataError
from vivace.sources.items import Item, file_item
from vivace.sources.kinds import is_parquet, is_tar, is_url
from vivace.sources.paths import ADVICE, Left, images_below, lines_of, matches_of, nothing_in, text_of

__all__ = ["Sources"]


class Sources:
    """The images behind paths, each once, in the order given; read as they are asked for, never held.

    paths: files, folders (all images below them), globs, tars and parquet files that hold images, URLs of all these, or
    "-" for a list of such on stdin. The names in a list or glob take 90 bytes of memory each, to notice repeats.
    left: notes what is passed over.
    Raises DataError if there is nothing behind one of the paths. The iterator raises DataError for a folder that can't
    be read, and for a list on stdin without a name.
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
        self._place = 0
        # one folder names no file twice
        alone = len(self.given) == 1 and (os.path.isdir(self.given[0]) or is_url(self.given[0]))  # noqa: PTH112
        self._seen: set[bytes] | None = None if alone else set()
        self._names = {path: [path] if is_url(path) else matches_of(path) for path in self.given if path != "-"}
        for path, names in self._names.items():
            if not any(_holds_some(name) for name in names):
                raise nothing_in(path)

    def __iter__(self) -> Iterator[Item]:
        for path in self.given:
            items = self._listed() if path == "-" else chain.from_iterable(map(self._items_of, self._names[path]))
            for item in items:
                self._place += 1
                yield item

    def _listed(self) -> Iterator[Item]:
        """What a list on stdin names; a name in it is no pattern."""
        empty = True
        for name in lines_of(sys.stdin.buffer if self._stdin is None else self._stdin):
            for item in self._items_of(name):
                empty = False
                yield item
        if empty:
            raise nothing_in("-")

    @property
    def remote(self) -> bool:
        """Whether images are at URLs, as far as paths tell."""
        return any(map(is_url, self.given))

    def count(self, seconds: float = 0.5) -> int | None:
        """About how many images there are, by the extensions of names; None: unknown, or it would take longer."""
        until, found = time.monotonic() + seconds, 0
        if "-" in self.given:
            return None
        for name in chain.from_iterable(self._names.values()):
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

            for item in remote_items(name, self._left, max(0, self.done - self._place)):
                if self._is_new(item.name):
                    yield item
        elif os.path.isdir(name):  # noqa: PTH112
            yield from (file_item(path) for path in images_below(name, self._left) if self._is_new(path))
        elif not self._is_new(name):
            return
        elif not os.path.exists(name):  # noqa: PTH110
            # a tar or parquet file that is not there is not a damaged one
            yield file_item(name)
        elif is_tar(name):
            from vivace.sources.shards import tar_items

            yield from tar_items(name, self._left)
        elif is_parquet(name):
            from vivace.sources.parquet_rows import parquet_items

            yield from parquet_items(name, max(0, self.done - self._place))
        else:
            yield file_item(name)

    def _is_new(self, path: str) -> bool:
        """Whether this file was not named before."""
        if self._seen is None:
            return True
        name = path if is_url(path) else os.path.abspath(path)  # noqa: PTH100
        key = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        if key in self._seen:
            self.num_repeated += 1
            return False
        self._seen.add(key)
        return True


def _holds_some(name: str) -> bool:
    """Whether it is no folder, or one with images."""
    return not os.path.isdir(name) or next(images_below(name, []), None) is not None  # noqa: PTH112
