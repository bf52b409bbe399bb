"""The log: one JSON object a line on stderr, at most so many a second. No query, header or body is ever in it."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from typing import Any, TextIO

__all__ = ["Log"]

# more are counted: refusing is cheaper than writing that one refused
MAX_LINES_PER_SECOND = 200


class Log:
    """Writes events. what: "requests" (all of them), "problems" (those that were refused or failed), or "nothing"
    beyond what happens to the server itself."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self.every, self.problems = what == "requests", what != "nothing"
        self._stream = stream
        self._lock = threading.Lock()
        self._second, self._lines, self._dropped = 0, 0, 0

    def event(self, event: str, *, level: str = "info", **facts: Any) -> None:
        """Write one line: time (UTC), level, event, and the facts."""
        now = time.time()
        with self._lock:
            if int(now) != self._second:
                if self._dropped:
                    self._write(now, "warning", "lines_dropped", {"count": self._dropped})
                self._second, self._lines, self._dropped = int(now), 0, 0
            if self._lines >= MAX_LINES_PER_SECOND and event == "request":
                self._dropped += 1
                return
            self._lines += 1
            self._write(now, level, event, facts)

    def _write(self, now: float, level: str, event: str, facts: dict[str, Any]) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        # ASCII alone: what a client named can't forge a line or move a terminal's cursor
        line = json.dumps({"time": at, "level": level, "event": event, **facts}, ensure_ascii=True, default=str)
        # a log that can't be written must not end the server
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(line, file=self._stream or sys.stderr, flush=True)
