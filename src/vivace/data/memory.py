"""A bound on what all decoders of a process hold at once: each says what it needs, and waits until there is room."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from vivace import systems

__all__ = ["DECODING", "FREE", "READING", "Budget", "share_memory"]

# a wait costs more than what smaller pieces can add up to
SMALL = 1 << 20
FREE: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Budget:
    """`capacity` bytes that threads share. Who needs more than that waits until nobody else holds any."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.turn: str | None = None
        """A file whose lock processes take in turn while one holds more than its share."""
        self._held = 0
        self._changed = threading.Condition()

    def hold(self, num_bytes: int) -> contextlib.AbstractContextManager[None]:
        """Wait for room, and hold it."""
        # a generator takes a microsecond, of the 60 that a small picture does
        return FREE if num_bytes < SMALL else self._hold(num_bytes)

    @contextlib.contextmanager
    def _hold(self, num_bytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + num_bytes <= self.capacity)
            self._held += num_bytes
        try:
            with self._alone() if num_bytes > self.capacity else contextlib.nullcontext():
                yield
        finally:
            with self._changed:
                self._held -= num_bytes
                self._changed.notify_all()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self.turn is None:
            yield
            return
        descriptor = systems.open_to_lock(Path(self.turn))
        try:
            systems.lock(descriptor, wait=True)
            yield
        finally:
            systems.close(descriptor)


# encoded files, and what they become; one image may take all of it
READING = Budget(256_000_000)
DECODING = Budget(768_000_000)


def share_memory(processes: int, file: str) -> None:
    """Give this process its share of what `processes` of them may hold; `file` and its folder are known to all."""
    for budget, turn in ((READING, os.path.dirname(file)), (DECODING, file)):  # noqa: PTH120
        budget.capacity //= processes
        budget.turn = turn
