"""Images at URLs, by fsspec: over HTTP, in S3 and other object stores, or whatever it has a library for."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from vivace.data.decoding.formats import EXTENSIONS
from vivace.data.layouts.splitnames import is_system
from vivace.errors import ConfigError, ImageError, InputError, MissingExtra, first_line
from vivace.sources.fetching import HTTP, IDLE_SECONDS, MAX_BYTES, SECONDS, cause_of, image_at, tried
from vivace.sources.items import Item
from vivace.sources.kinds import is_parquet, is_tar, plain_url
from vivace.sources.parquet_rows import parquet_items
from vivace.sources.paths import Left
from vivace.sources.shards import DAMAGE, damaged, streamed_items

__all__ = ["remote_items"]

MAGIC = re.compile(r"[*?\[]")
COPY = 1 << 20


def remote_items(
    url: str, left: Left, done: int = 0, *, reading: Callable[[str], None] = lambda name: None
) -> Iterator[Item]:
    """The images behind a URL: a file, a glob, a folder, a tar or a parquet file; named by their URLs.

    An image is fetched when it is decoded, at most three times. A tar is read once from its start, a parquet file is
    copied to a temporary file first. done: as for `parquet_items`. reading: called with the URL of each file before it
    is read. What can't be reached is an item with the error. Raises MissingExtra or ConfigError without the library for
    such URLs.
    """
    try:
        yield from _items(url, left, done, reading)
    except InputError:
        raise
    except Exception as error:
        # libraries of each protocol have their own
        told = f"it can't be reached: {url} ({cause_of(error)}). Correct the URL, or try again later."
        yield Item(url, ImageError(told, problem="unreadable"), "unreachable")


def _items(url: str, left: Left, done: int, reading: Callable[[str], None]) -> Iterator[Item]:
    system, path = _opened(plain_url(url))
    http = path.startswith(HTTP)
    # a query of HTTP is no pattern
    if MAGIC.search(path) and not http:
        for name in sorted(tried(lambda: system.glob(path))):
            full = system.unstrip_protocol(name)
            reading(full)
            yield from _file_items(system, name, left, 0, full)
        return
    known = is_tar(path) or is_parquet(path) or os.path.splitext(path)[1].lower() in EXTENSIONS  # noqa: PTH122
    if http or (known and not url.endswith("/")) or not tried(lambda: system.isdir(path)):
        yield from _file_items(system, path, left, done, url)
    else:
        for item in _folder_items(system, path, left):
            reading(item.name)
            yield item


def _opened(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtra("fsspec", "remote", "reading from URLs") from None
    try:
        found: tuple[Any, str] = url_to_fs(url, **_options(url))
    except ImportError as error:
        if url.startswith("http"):
            raise MissingExtra("aiohttp", "remote", "reading from HTTP") from None
        raise ConfigError(f"a library for these URLs is not installed: got {url!r} ({first_line(error)}).") from None
    except ValueError as error:
        raise ConfigError(f"the URL is unknown: got {url!r} ({first_line(error)}). Give one of fsspec's.") from None
    return found


def _options(url: str) -> dict[str, Any]:
    """What sessions of HTTP are made with: limits of time, as a request of a server that hangs would never end."""
    if not url.startswith(HTTP):
        return {}
    from aiohttp import ClientTimeout

    # of a tar or parquet file, which may be long, only the time without a byte is limited
    many = is_tar(url) or is_parquet(url)
    total = None if many else SECONDS
    limits = ClientTimeout(total=total, sock_connect=IDLE_SECONDS, sock_read=IDLE_SECONDS)
    return {"client_kwargs": {"timeout": limits, "auto_decompress": many}}


def _folder_items(system: Any, folder: str, left: Left) -> Iterator[Item]:
    for parent, folders, files in system.walk(folder, detail=True, on_error="raise"):
        for name in [name for name in folders if is_system(name)]:
            del folders[name]
        for name in sorted(files):
            if is_system(name):
                continue
            path = f"{parent.rstrip('/')}/{name}"
            if os.path.splitext(name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                yield _image(system, path, files[name], system.unstrip_protocol(path))
            else:
                left.append(f"{parent}/{name}")


def _file_items(system: Any, path: str, left: Left, done: int, name: str) -> Iterator[Item]:
    if is_tar(path):
        try:
            with system.open(path, "rb") as file:
                yield from streamed_items(name, file, "", left, MAX_BYTES)
        except (FileNotFoundError, PermissionError):
            raise
        except DAMAGE as error:
            yield damaged(name, cause_of(error) if isinstance(error, OSError) else error)
    elif is_parquet(path):
        try:
            with tempfile.TemporaryDirectory(prefix="vivace-") as folder:
                copy = os.path.join(folder, "rows.parquet")  # noqa: PTH118
                with system.open(path, "rb") as file, open(copy, "wb") as target:  # noqa: PTH123
                    shutil.copyfileobj(file, target, COPY)
                yield from parquet_items(copy, done, name=name)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            yield damaged(name, cause_of(error))
    else:
        yield _image(system, path, {}, name)


def _image(system: Any, path: str, facts: dict[str, Any], name: str) -> Item:
    stamp = ":".join(str(facts[key]) for key in ("size", "ETag", "mtime", "created") if facts.get(key) is not None)
    size = facts.get("size")
    return Item(name, image_at(system, path, name, size if isinstance(size, int) and size >= 0 else None), stamp)
