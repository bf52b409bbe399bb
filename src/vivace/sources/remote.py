"""Images at URLs, by fsspec: over HTTP, in S3 and other object stores, or whatever it has a library for."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from vivace.data.decoding.decode import MAX_BYTES
from vivace.data.decoding.formats import EXTENSIONS
from vivace.data.layouts.splitnames import is_system
from vivace.errors import ConfigError, DataError, MissingExtra, first_line
from vivace.sources.items import Item, Slice
from vivace.sources.kinds import is_parquet, is_tar
from vivace.sources.parquet_rows import parquet_items
from vivace.sources.paths import Left
from vivace.sources.shards import DAMAGE, damaged, streamed_items

__all__ = ["remote_items"]

T = TypeVar("T")
MAGIC = re.compile(r"[*?\[]")
# seconds before each further attempt
PAUSES = (0.5, 2.0)
COPY = 1 << 20


def remote_items(url: str, left: Left, done: int = 0) -> Iterator[Item]:
    """The images behind a URL: a file, a glob, a folder, a tar or a parquet file; named by their URLs.

    An image is fetched when it is decoded, at most three times. A tar is read once from its start, a parquet file is
    copied to a temporary file first. done: as for `parquet_items`. Raises MissingExtra or ConfigError without the
    library for such URLs, DataError for a folder that can't be listed or has no images.
    """
    system, path = _opened(url)
    # a query of HTTP is no pattern
    if MAGIC.search(path) and not url.startswith(("http://", "https://")):
        names = sorted(_tried(lambda: system.glob(path), url))
        if not names:
            raise DataError(f"there are no images in {url!r}. Check the pattern.")
        for name in names:
            yield from _file_items(system, name, left, 0)
        return
    known = is_tar(path) or is_parquet(path) or os.path.splitext(path)[1].lower() in EXTENSIONS  # noqa: PTH122
    if url.startswith(("http://", "https://")) or (known and not url.endswith("/")):
        yield from _file_items(system, path, left, done, name=url)
    elif _tried(lambda: system.isdir(path), url):
        yield from _folder_items(system, path, left, url)
    else:
        yield from _file_items(system, path, left, done, name=url)


def _opened(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtra("fsspec", "remote", "reading from URLs") from None
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        if url.startswith("http"):
            raise MissingExtra("aiohttp", "remote", "reading from HTTP") from None
        raise ConfigError(f"a library for these URLs is not installed: got {url!r} ({first_line(error)}).") from None
    except ValueError as error:
        raise ConfigError(f"the URL is unknown: got {url!r} ({first_line(error)}). Give one of fsspec's.") from None
    return system, path


def _folder_items(system: Any, folder: str, left: Left, url: str) -> Iterator[Item]:
    empty = True
    for parent, folders, files in system.walk(folder, detail=True, on_error="raise"):
        for name in [name for name in folders if is_system(name)]:
            del folders[name]
        for name in sorted(files):
            if is_system(name):
                continue
            if os.path.splitext(name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                empty = False
                yield _image(system, f"{parent.rstrip('/')}/{name}", files[name])
            else:
                left.append(f"{parent}/{name}")
    if empty:
        raise DataError(f"there are no images in {url!r}. Name tars and parquet files in it by a glob.")


def _file_items(system: Any, path: str, left: Left, done: int, *, name: str | None = None) -> Iterator[Item]:
    name = name or system.unstrip_protocol(path)
    if is_tar(path):
        try:
            with system.open(path, "rb") as file:
                yield from streamed_items(name, file, "", left)
        except DAMAGE as error:
            yield damaged(name, error)
    elif is_parquet(path):
        try:
            with tempfile.TemporaryDirectory(prefix="vivace-") as folder:
                copy = os.path.join(folder, "rows.parquet")  # noqa: PTH118
                with system.open(path, "rb") as file, open(copy, "wb") as target:  # noqa: PTH123
                    shutil.copyfileobj(file, target, COPY)
                yield from parquet_items(copy, done, name=name)
        except OSError as error:
            yield damaged(name, error)
    else:
        yield _image(system, path, {}, name=name)


def _image(system: Any, path: str, facts: dict[str, Any], *, name: str | None = None) -> Item:
    stamp = ":".join(str(facts[key]) for key in ("size", "ETag", "mtime", "created") if facts.get(key) is not None)
    name = name or system.unstrip_protocol(path)
    read = functools.partial(_fetched, system, path, name)
    return Item(name, Slice(read, int(facts.get("size") or 0)), stamp)


def _fetched(system: Any, path: str, name: str) -> bytes:
    """The bytes of a file. Raises OSError, also for more than an image may have."""

    def read() -> bytes:
        with system.open(path, "rb") as file:
            return _bounded(file)

    content = _tried(read, name)
    if len(content) > MAX_BYTES:
        raise OSError(f"over {MAX_BYTES:,} bytes")
    return content


def _bounded(file: IO[bytes]) -> bytes:
    parts, left = [], MAX_BYTES + 1
    while left and (part := file.read(min(left, COPY))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _tried(work: Callable[[], T], name: str) -> T:
    """What `work` gives, tried again where the network may be the cause. Raises OSError."""
    for pause in (*PAUSES, None):
        try:
            return work()
        except (FileNotFoundError, PermissionError):
            raise
        except ImportError as error:
            raise ConfigError(f"a library for these URLs is not installed: {first_line(error)}.") from None
        except Exception as error:
            # libraries of each protocol have their own
            if pause is None:
                raise OSError(f"{type(error).__name__}: {first_line(error)}") from None
            time.sleep(pause)
    raise AssertionError(name)
