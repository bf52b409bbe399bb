"""Fetches an image from a URL with bounds of time and memory: whoever answers there is not trusted."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from vivace.errors import ImageError, first_line
from vivace.sources.items import Larger, Slice

__all__ = ["HTTP", "IDLE_SECONDS", "MAX_BYTES", "SECONDS", "cause_of", "image_at", "tried"]

T = TypeVar("T")
# of one image with all attempts, and of these without a byte
SECONDS, IDLE_SECONDS = 60.0, 20.0
# most images have less than the first, and 16 of these are what may be held in all; what has more is fetched again
FIRST_BYTES, MAX_BYTES = 16_000_000, 128_000_000
# seconds before each further attempt
PAUSES = (0.5, 2.0)
COPY = 1 << 20
HTTP = ("http://", "https://")


def image_at(system: Any, path: str, name: str, num_bytes: int | None) -> Slice:
    """An image that is fetched when it is decoded, at most three times. num_bytes: None where it is unknown.

    Its `read` raises ImageError for one that can't be fetched, has over `MAX_BYTES`, or is not there in `SECONDS`.
    """
    if num_bytes is None:
        return Slice(functools.partial(_fetched, system, path, name, FIRST_BYTES), FIRST_BYTES, exact=False)
    most = min(num_bytes, MAX_BYTES)
    return Slice(functools.partial(_fetched, system, path, name, most), most, exact=False)


def _fetched(system: Any, path: str, name: str, most: int) -> bytes:
    until = time.monotonic() + SECONDS
    try:
        return tried(lambda: _in_time(_Fetch(system, path, most), until), until)
    except _TooMany:
        if most < MAX_BYTES:
            again = functools.partial(_fetched, system, path, name, MAX_BYTES)
            raise Larger(Slice(again, MAX_BYTES, exact=False)) from None
        raise ImageError(
            f"too large for an image: {name} has over {MAX_BYTES:,} bytes, which is the limit at a URL. Leave it out, "
            "or give a copy on this machine.",
            problem="bomb",
        ) from None
    except Exception as error:
        # libraries of each protocol have their own
        raise ImageError(
            f"the image can't be fetched: {name} ({cause_of(error)}). Correct the URL, or try again later.",
            problem="unreadable",
        ) from None


class _TooMany(Exception):
    """More bytes than are read."""


class _TooSlow(Exception):
    """A limit of time is exceeded."""


class _Fetch:
    """The bytes of one file, read by a thread that can be left behind: a library may wait for its server for ever."""

    def __init__(self, system: Any, path: str, most: int) -> None:
        self._system, self._path, self._most = system, path, most
        self.left = False
        """Nobody waits for it any more."""
        self.last = time.monotonic()
        """When the last byte came."""
        self.ended = threading.Event()
        self.content = b""
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.content = self._read()
        except BaseException as error:
            # its traceback would keep what was read as long as the image's error is kept
            self.error = error.with_traceback(None)
        finally:
            self.ended.set()

    def _read(self) -> bytes:
        found = io.BytesIO()
        with _opened(self._system, self._path) as file:
            unpacked = _Unpacked(file)
            if (unpacked.num_bytes or 0) > self._most:
                raise _TooMany
            while not self.left and (part := unpacked.read(min(COPY, self._most + 1 - found.tell()))):
                found.write(part)
                self.last = time.monotonic()
                if found.tell() > self._most:
                    raise _TooMany
        # the same memory, not another copy
        return found.getvalue()


def _opened(system: Any, path: str) -> Any:
    # not of what wraps it, such as a cache
    if not path.startswith(HTTP) or type(system).__name__ != "HTTPFileSystem":
        return system.open(path, "rb")
    # one request, of the whole, as it is: by default there are three for a small file
    return system.open(path, "rb", block_size=0, size=1, headers={"Accept-Encoding": "identity"})


class _Unpacked:
    """What a response of HTTP means: a server may compress it unasked. Of other files what they hold."""

    def __init__(self, file: Any) -> None:
        self._file = file
        headers = getattr(getattr(file, "r", None), "headers", {})
        kind = str(headers.get("Content-Encoding") or "identity").strip().lower()
        if kind not in ("identity", "gzip", "x-gzip", "deflate"):
            raise OSError(f"the server compresses it by {kind[:20]!r}, which is not read")
        size = getattr(file, "size", None) or headers.get("Content-Length")
        self.num_bytes = int(str(size)) if kind == "identity" and str(size).isdecimal() else None
        """What is promised; None: unknown."""
        # whether zlib's header or gzip's comes is found out
        self._inflate = None if kind == "identity" else zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._rest = b""

    def read(self, count: int) -> bytes:
        """At most `count` bytes; b"" at the end."""
        if self._inflate is None:
            part: bytes = self._file.read(count)
            return part
        while True:
            packed = self._rest or self._file.read(COPY)
            found = self._inflate.decompress(packed, count) if packed else self._inflate.flush()
            self._rest = self._inflate.unconsumed_tail
            if found or not packed or self._inflate.eof:
                return found


def _in_time(fetch: _Fetch, until: float) -> bytes:
    """What it gives. Raises its error, or _TooSlow."""
    threading.Thread(target=fetch.run, daemon=True).start()
    try:
        while not fetch.ended.wait(max(0.0, min(until, fetch.last + IDLE_SECONDS) - time.monotonic())):
            now = time.monotonic()
            if now >= until:
                raise _TooSlow(f"not there after {SECONDS:.0f} s")
            if now >= fetch.last + IDLE_SECONDS:
                raise _TooSlow(f"no byte came for {IDLE_SECONDS:.0f} s")
    finally:
        fetch.left = True
    if fetch.error is not None:
        raise fetch.error
    return fetch.content


def tried(work: Callable[[], T], until: float | None = None) -> T:
    """What `work` gives, tried again where the network may be the cause, until this time. Raises what it raises."""
    for pause in (*PAUSES, None):
        try:
            return work()
        except (FileNotFoundError, PermissionError, ImportError, _TooMany, _TooSlow):
            raise
        except Exception as error:
            status = getattr(error, "status", None)
            final = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            if pause is None or final or (until is not None and time.monotonic() + pause >= until):
                raise
            time.sleep(pause)
    raise AssertionError


def cause_of(error: BaseException) -> str:
    """In short what went wrong: libraries say it each in their way, or give the URL again."""
    if isinstance(error, FileNotFoundError):
        return "nothing is there: not found"
    if isinstance(error, _TooSlow):
        return str(error)
    if isinstance(error, PermissionError):
        return "it is not allowed"
    if isinstance(status := getattr(error, "status", None), int):
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    told = ""
    with contextlib.suppress(Exception):
        told = first_line(error)
    return f"{type(error).__name__}: {told}" if told and told != type(error).__name__ else type(error).__name__
