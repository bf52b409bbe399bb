"""Bounds the memory that all decoders of a process hold at once: each requests its bytes and waits for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

__all__ = ["DECODING", "FREE", "READING", "Budget", "share_memory"]

# smaller requests are not counted: their sum is small, and counting them costs time
SMALL = 1 << 20
FREE: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Budget:
    """`capacity` bytes shared by threads. A request for more than the capacity waits until no other bytes are held."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.turn: contextlib.AbstractContextManager[None] = FREE
        """Entered while more than the capacity is held; processes that share memory do so one at a time."""
        self._held = 0
        self._changed = threading.Condition()

    def hold(self, num_bytes: int) -> contextlib.AbstractContextManager[None]:
        """A context that waits until `num_bytes` are free and holds them."""
        # a generator's overhead matters for small pictures
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

    @contextlib.contextmanager
    def hold_at_most(self, num_bytes: int) -> Iterator[Callable[[int], None]]:
        """The same for what may turn out to be smaller: yields what gives back all but so many bytes, once."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + num_bytes <= self.capacity)
            self._held += num_bytes
        held = num_bytes

        def keep(needed: int) -> None:
            nonlocal held
            with self._changed:
                self._held -= max(0, held - needed)
                held = min(held, needed)
                self._changed.notify_all()

        try:
            yield keep
        finally:
            keep(0)


# for encoded files, and for decoded pictures; a single image may take all of it
READING = Budget(256_000_000)
DECODING = Budget(768_000_000)


def share_memory(processes: int, turns: Iterable[contextlib.AbstractContextManager[None]]) -> None:
    """Divide the budgets by the number of processes.

    turns: reusable contexts for READING and DECODING that are exclusive among the processes; any thread may enter them.
    """
    for budget, turn in zip((READING, DECODING), turns, strict=True):
        budget.capacity //= processes
        budget.turn = turn
