"""The log: one JSON object a line on stderr, at most so many a second. No query, header or body is ever in it.

A thread of its own writes: whoever reads stderr may stop to read, and the server must go on without that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["Log", "libraries_logged"]

# more are counted: refusing is cheaper than writing that one refused
MAX_LINES_PER_SECOND = 200
# lines that nobody has taken yet; then they are counted too
MAX_WAITING = 1000
FLUSH_SECONDS = 1.0
# events that clients cause; what happens to the server itself is always written
BOUNDED = ("request", "library")
# loggers → the least level of what is written of them: what a client sends is said by its refusal
LIBRARIES = {"": logging.WARNING, "uvicorn.error": logging.ERROR, "asyncio": logging.ERROR}
SILENT = ("python_multipart", "multipart")


class Log:
    """Writes events. what: "requests" (all of them), "problems" (those that were refused or failed), or "nothing"
    beyond what happens to the server itself."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self.every, self.problems = what == "requests", what != "nothing"
        self._stream = stream
        self._lock = threading.Lock()
        self._second, self._lines, self._dropped = 0, 0, 0
        self._waiting: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def event(self, event: str, *, level: str = "info", **facts: Any) -> None:
        """Write one line: time (UTC), level, event, and the facts."""
        now = time.time()
        with self._lock:
            full = self._waiting.qsize() >= MAX_WAITING
            if int(now) != self._second:
                if self._dropped and not full:
                    self._put(now, "warning", "lines_dropped", {"count": self._dropped})
                    self._dropped = 0
                self._second, self._lines = int(now), 0
            if full or (self._lines >= MAX_LINES_PER_SECOND and event in BOUNDED):
                self._dropped += 1
                return
            self._lines += 1
            self._put(now, level, event, facts)

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until all lines are written, at most so long; whether they are."""
        written = threading.Event()
        self._waiting.put(written)
        with self._lock:
            self._start()
        return written.wait(seconds)

    def _put(self, now: float, level: str, event: str, facts: dict[str, Any]) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        # ASCII alone: what a client named can't forge a line or move a terminal's cursor
        line = json.dumps({"time": at, "level": level, "event": event, **facts}, ensure_ascii=True, default=str)
        self._waiting.put(line)
        self._start()

    def _start(self) -> None:
        if self._thread is None:
            # a daemon: a pipe that nobody reads must not hold up the end of the process either
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            line = self._waiting.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            # a log that can't be written must not end the server
            with contextlib.suppress(OSError, ValueError, AttributeError):
                _write(line, self._stream or sys.stderr)


def _write(line: str, stream: TextIO) -> None:
    try:
        number = stream.fileno()
    except (OSError, ValueError, AttributeError):
        print(line, file=stream, flush=True)
        return
    # past Python's buffer: a thread that holds its lock when the process ends makes Python abort
    left = line.encode() + b"\n"
    while left:
        left = left[os.write(number, left) :]


@contextlib.contextmanager
def libraries_logged(log: Log) -> Iterator[None]:
    """Within the block, what libraries report as problems becomes lines of the log, without their tracebacks."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            told = {"message": record.getMessage()[:300], "logger": record.name}
            log.event("library", level="error", **told, error=repr(error)[:300])

    before: list[tuple[logging.Logger, logging.Handler, int, bool]] = []
    for name, level in LIBRARIES.items():
        logger, handler = logging.getLogger(name), Handler(level)
        before.append((logger, handler, logger.level, logger.propagate))
        logger.addHandler(handler)
        # whoever quietened all libraries before would quieten this log too
        if logger.getEffectiveLevel() > level:
            logger.setLevel(level)
        logger.propagate = not name
    for name in SILENT:
        logger, none = logging.getLogger(name), logging.NullHandler()
        before.append((logger, none, logger.level, logger.propagate))
        logger.addHandler(none)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, added, level, propagates in before:
            logger.removeHandler(added)
            logger.setLevel(level)
            logger.propagate = propagates
