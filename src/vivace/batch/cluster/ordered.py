"""Batches in their order from processes that may die: each is numbered, and given on once, whoever computed it.

A worker's answer counts when the batch of its number is still awaited. What a dead worker had is computed again by
another, and an answer that comes late has no number that anybody awaits. So no batch is lost and none comes twice.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from vivace.batch.cluster.worker import Answer, Facts
from vivace.batch.pipeline import HELD_BYTES, Batch, batches_of
from vivace.data.decoding.decode import read_bytes
from vivace.errors import ConfigError, ImageError, VivaceError
from vivace.notices import warn
from vivace.sources.items import Item, content_of
from vivace.sources.kinds import READERS

__all__ = ["Died", "Ordered", "Processes"]

# batches that a worker has at a time: it decodes one while the network has the other
AT_ONCE = 2
# batches for each worker that may be out, or done and awaiting one before them
AHEAD = 4
# deaths of workers that were computing a batch, after which it is not tried again
MAX_DEATHS = 5
# workers in a row that died before they were ready
MAX_FAILED_STARTS = 3
WAIT_SECONDS = 1.0
# without a worker that is ready: a cluster may take long to add a machine
START_SECONDS = 600.0


class Died(Exception):
    """A process ended, or its machine can't be reached; the text says why, as far as is known."""


class Processes(Protocol):
    """What starts workers and asks them. A ticket stands for an answer that is to come."""

    def start(self) -> tuple[Any, Any]:
        """(a new worker, the ticket of its `Worker.open`)."""

    def classify(self, worker: Any, items: list[Item], *, small: bool) -> Any:
        """The ticket of `Worker.classify`."""

    def wait(self, tickets: list[Any], seconds: float) -> list[Any]:
        """Those of them that are done, at least one unless so many seconds pass before."""

    def answer(self, ticket: Any) -> Answer:
        """Of a ticket that is done. Raises Died."""

    def stop(self, worker: Any) -> None:
        """End a worker, which may be dead already."""


@dataclass
class _Work:
    """A batch that is awaited."""

    items: list[Item]
    small: bool
    held_bytes: int
    with_bytes: bool = False
    """Whether images are sent, not their names."""
    deaths: int = 0
    done: Batch | None = None


@dataclass
class _Slot:
    """A worker, and the numbers of what it has."""

    worker: Any
    opening: Any
    """The ticket of its start; None: it is ready."""
    has: dict[Any, int] = field(default_factory=dict)
    """Ticket → number of a batch."""

    def takes(self, work: _Work, works: dict[int, _Work]) -> bool:
        """Whether it can be given a batch now; one that a worker died with is computed by itself."""
        if self.opening is not None or len(self.has) >= AT_ONCE:
            return False
        return not self.has or not (work.deaths or any(works[number].deaths for number in self.has.values()))


class Ordered:
    """Workers of a cluster, and what is out. Call `begin`, then `batches`, then `close`, whatever happened."""

    def __init__(self, processes: Processes, count: int, batch_size: int) -> None:
        """count: how many workers."""
        self._processes, self._count, self._batch_size = processes, count, batch_size
        self._slots: list[_Slot] = []
        self._failed_starts = 0
        self._sends_bytes = False
        self._ready_at = time.monotonic()
        self.facts: Facts | None = None
        """Of the first worker that was ready; those of others are the same."""
        self.num_restarts = 0
        """Workers that took the place of one that died."""
        self.pids: set[int] = set()
        """Of the workers that were ready, each on its machine."""

    def begin(self) -> Facts:
        """Start the workers; what they compute with, once the first is ready. Raises what `batches` raises."""
        self._slots = [self._started() for _ in range(self._count)]
        self._works: dict[int, _Work] = {}
        self._todo: deque[int] = deque()
        while self.facts is None:
            self._await()
        return self.facts

    def batches(self, items: Iterable[Item], *, resumed: bool = False) -> Iterator[Batch]:
        """What comes of items, batch by batch, in their order. resumed: other batches came before.

        Raises what `items` raises, after the images before that; the errors of workers that are not those of an image;
        VivaceError where workers die again and again, or none can be started.
        """
        source = batches_of(iter(items), self._batch_size)
        error: Exception | None = None
        ends = False
        held, upcoming, awaited = 0, 0, 0
        while True:
            while not ends and len(self._works) < AHEAD * self._count and (not self._works or held < HELD_BYTES):
                try:
                    batch = next(source, None)
                except Exception as raised:
                    # what was found before it is worth its rows
                    error, batch = raised, None
                if batch is None:
                    ends = True
                    break
                small = upcoming == 0 and not resumed and len(batch) < self._batch_size
                self._works[upcoming] = work = _Work(batch, small, sum(item.held_bytes for item in batch))
                held += work.held_bytes
                self._todo.append(upcoming)
                upcoming += 1
            if not self._works:
                break
            self._give_out()
            if (work := self._works[awaited]).done is None:
                self._await()
                continue
            del self._works[awaited]
            held -= work.held_bytes
            awaited += 1
            yield dataclasses.replace(work.done, items=work.items)
        if error is not None:
            raise error

    def close(self) -> None:
        """End the workers."""
        for slot in self._slots:
            self._processes.stop(slot.worker)
        self._slots = []

    def _started(self) -> _Slot:
        return _Slot(*self._processes.start())

    def _give_out(self) -> None:
        """Give what is to be computed to the workers that have least."""
        while self._todo:
            number = self._todo[0]
            work = self._works[number]
            free = [slot for slot in self._slots if slot.takes(work, self._works)]
            if not free:
                return
            self._todo.popleft()
            slot = min(free, key=lambda slot: len(slot.has))
            # no name is unfolded twice: what was read for a worker that died is read again
            sent = _with_bytes(work.items) if work.with_bytes or self._sends_bytes else _absolute(work.items)
            work.with_bytes |= self._sends_bytes
            slot.has[self._processes.classify(slot.worker, sent, small=work.small)] = number

    def _await(self) -> None:
        """Wait until something is done, and take it."""
        tickets = [ticket for slot in self._slots for ticket in ((slot.opening,) if slot.opening else slot.has)]
        if any(slot.opening is None for slot in self._slots):
            self._ready_at = time.monotonic()
        elif time.monotonic() - self._ready_at > START_SECONDS:
            raise VivaceError(
                f"no worker was ready within {START_SECONDS:.0f} s: the cluster has no room, or can't start one. "
                "Look at `ray status`, or give fewer `threads`."
            )
        for ticket in self._processes.wait(tickets, WAIT_SECONDS):
            slot = next((slot for slot in self._slots if ticket in slot.has or ticket is slot.opening), None)
            # the worker may have died with another ticket of this round
            if slot is not None:
                self._take(slot, ticket)

    def _take(self, slot: _Slot, ticket: Any) -> None:
        try:
            answer = self._processes.answer(ticket).checked()
        except Died as reason:
            self._replace(slot, reason)
            return
        if ticket is slot.opening:
            assert answer.facts is not None
            self._check_same(answer.facts)
            slot.opening, self._failed_starts = None, 0
            self.pids.add(answer.facts.pid)
            return
        number = slot.has.pop(ticket)
        work = self._works[number]
        if answer.not_here:
            if work.with_bytes:
                raise VivaceError(f"a worker has no use for the bytes of {work.items[0].name}: report it.")
            if not self._sends_bytes:
                warn("workers do not see the files of the images as they are here: their bytes are sent instead")
            self._sends_bytes = work.with_bytes = True
            self._todo.appendleft(number)
            return
        work.done = answer.batch

    def _check_same(self, facts: Facts) -> None:
        if self.facts is None:
            self.facts = facts
        elif facts.same != self.facts.same:
            raise ConfigError(
                f"workers differ: {self.facts.machine} computes by {', '.join(self.facts.same)}, {facts.machine} by "
                f"{', '.join(facts.same)}. Name a `device` and a `precision` that all of them have."
            )

    def _replace(self, slot: _Slot, reason: Died) -> None:
        """A worker died: what it had is for others, and a new one takes its place."""
        if slot.opening is not None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS * self._count:
                raise VivaceError(f"workers die before they are ready: {reason}. Look at Ray's logs.")
        lost = sorted(slot.has.values())
        self._processes.stop(slot.worker)
        self.num_restarts += 1
        for number in lost:
            work = self._works[number]
            work.deaths += 1
            if work.deaths >= MAX_DEATHS:
                first, last = work.items[0].name, work.items[-1].name
                raise VivaceError(
                    f"workers die of these images, {work.deaths} times so far: {first} to {last} ({reason}). Leave out "
                    "the one that is at fault, or give a smaller `batch_size` if memory is short."
                )
        self._todo.extendleft(reversed(lost))
        self._slots[self._slots.index(slot)] = self._started()


def _absolute(items: list[Item]) -> list[Item]:
    """Items for another process, whose current folder may be another."""
    return [
        item if item.path is None else dataclasses.replace(item, content=os.path.abspath(item.path))  # noqa: PTH100
        for item in items
    ]


def _with_bytes(items: list[Item]) -> list[Item]:
    """Items with the bytes of their images, or why there are none."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(_read, items))


def _read(item: Item) -> Item:
    try:
        found = content_of(item)
        content: Any = read_bytes(found) if isinstance(found, str) else found
    except ImageError as error:
        content = error
    except ValueError as error:
        content = ImageError(f"the name is no file's: {item.name!r} ({error}). Correct it.", problem="unreadable")
    return dataclasses.replace(item, content=content)
