"""A bound on what all decoders of a process hold at once: each says what it needs, and waits until there is room."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

__all__ = ["DECODING", "FREE", "READING", "Budget", "share_memory"]

# a wait costs more than what smaller pieces can add up to
SMALL = 1 << 20
FREE: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Budget:
    """`capacity` bytes that threads share. Who needs more than that waits until nobody else holds any."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.turn: contextlib.AbstractContextManager[None] = FREE
        """Is entered while more than the capacity is held: processes that share memory take turns in it."""
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
            with self.turn if num_bytes > self.capacity else FREE:
                yield
        finally:
            with self._changed:
                self._held -= num_bytes
                self._changed.notify_all()


# encoded files, and what they become; one image may take all of it
READING = Budget(256_000_000)
DECODING = Budget(768_000_000)


def share_memory(processes: int, turns: Iterable[contextlib.AbstractContextManager[None]]) -> None:
    """Give this process its share of what `processes` of them may hold; turns: of READING and DECODING, to be entered
    again and again by any thread."""
    for budget, turn in zip((READING, DECODING), turns, strict=True):
        budget.capacity //= processes
        budget.turn = turn
