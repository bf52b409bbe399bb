"""stdin, stdout and stderr as they may be: closed, full, or a terminal that obeys what a file's name says."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from vivace.errors import OutputError

__all__ = ["guarded_streams", "open_missing_streams"]

# control characters but tab and newline, and those that turn the direction of what follows
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def open_missing_streams() -> None:
    """Put the null device in place of standard streams that were closed before this process began.

    Otherwise the next file that is opened gets the number of one, and what a library prints is written into it.
    Nobody gets what is written to a closed sys.stdout: a flush raises OSError then.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # the system gives the lowest free number, and those below are in use
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = _Closed()
    for name, mode in (("stdin", "r"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Within, both show what a terminal would obey escaped, and a stderr that can't be written is no failure.

    Code that draws on a terminal, and escapes names itself, writes to `sys.stderr.unescaped`.
    A stdout that can't be written raises OutputError; BrokenPipeError stays what it is: its reader has had enough.
    """
    with contextlib.redirect_stdout(_Escaping(sys.stdout)), contextlib.redirect_stderr(_Forgiving(sys.stderr)):
        yield


class _Closed(io.TextIOBase):
    """A stdout that was closed: as a full disk, it takes text until it is flushed."""

    _is_written = False

    def write(self, text: str) -> int:
        self._is_written |= bool(text)
        return len(text)

    def flush(self) -> None:
        if self._is_written:
            raise OSError(errno.EBADF, "it is closed")


class _Stream:
    """What is not said here is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Escaping(_Stream):
    def write(self, text: str) -> int:
        with _told():
            self._stream.write(_escaped(text))
        return len(text)

    def flush(self) -> None:
        with _told():
            self._stream.flush()


class _Unescaped(_Stream):
    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _Forgiving(_Unescaped):
    @property
    def unescaped(self) -> _Unescaped:
        return _Unescaped(self._stream)

    def write(self, text: str) -> int:
        # bars of libraries begin with a return to the start of their line
        super().write("\r" + _escaped(text[1:]) if text.startswith("\r") else _escaped(text))
        return len(text)


def _escaped(text: str) -> str:
    return OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"the result can't be written to stdout: {reason}. The work itself is done: free some space, or send "
            "stdout elsewhere."
        ) from None
