"""Ten times the load that a server can answer, with slow clients beside: what is counted, and what must hold.

Every request is answered: with 200, with 429 or 503 and Retry-After, or with 408. 99 of 100 requests that were taken
are answered within the time that the queue may take (`answer_seconds`) and twice what they take without load. Memory
grows by less than 5 % from the first fifth of the time to its end. Afterwards the server answers as before and ends
with 0. Nobody reads its log meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from served import png, process

__all__ = ["overload"]

TIMES, SLOW_CLIENTS, CONNECTIONS = 10, 200, 600
# between two bytes of a slow client
SLOW_SECONDS = 0.1
# images that may wait, and how long: small, so that ten times the load fills the queue at once
QUEUE, ANSWER_SECONDS, PATIENCE = 64, 1.0, 2.0
MAX_GROWTH = 0.05
# what is sent of what was planned, at least: else it was no tenfold load
MIN_SENT = 0.9
MEASURE_SECONDS = 4.0
TIMEOUT = 60.0
ALLOWED = {200, 408, 429, 503}


@dataclass
class Found:
    """What became of requests."""

    statuses: Counter[Any] = field(default_factory=Counter)
    untold: int = 0
    """429 and 503 without Retry-After."""
    seconds: list[float] = field(default_factory=list)
    """Of those that were answered with 200."""

    def note(self, answer: bytes, seconds: float) -> None:
        """Count the bytes of an answer; b"": there was none."""
        head = answer.lower().partition(b"\r\n\r\n")[0]
        status: Any = int(head[9:12]) if head[9:12].isdigit() else "no answer"
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(seconds)
        elif status in (429, 503):
            self.untold += b"\r\nretry-after:" not in head

    @property
    def p99(self) -> float:
        """Seconds; without end if nothing was answered."""
        return sorted(self.seconds)[len(self.seconds) * 99 // 100] if self.seconds else math.inf

    @property
    def holds(self) -> bool:
        """Whether each has an answer that may be."""
        return set(self.statuses) <= ALLOWED and not self.untold


class _Answer(asyncio.Protocol):
    """A connection for one request; `ended` has all that came once the server ends it."""

    def __init__(self) -> None:
        self.data = b""
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(self.data)


class Clients:
    """Clients of one server, each request on a connection of its own."""

    def __init__(self, url: str, image: bytes) -> None:
        place = urlsplit(url)
        self._place = (str(place.hostname), int(place.port or 0))
        head = f"POST /predict HTTP/1.1\r\nHost: {place.hostname}\r\nContent-Length: {len(image)}\r\n"
        self._head, self._request = head.encode(), f"{head}Connection: close\r\n\r\n".encode() + image
        self._image = image

    async def ask(self, found: Found) -> None:
        """One request."""
        began, answer = time.perf_counter(), b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                transport, one = await asyncio.get_running_loop().create_connection(_Answer, *self._place)
                try:
                    transport.write(self._request)
                    answer = await one.ended
                finally:
                    transport.abort()
        found.note(answer, time.perf_counter() - began)

    async def closed_loop(self, connections: int, seconds: float) -> Found:
        """Each asks again once it is answered."""
        found, until = Found(), time.perf_counter() + seconds

        async def asking() -> None:
            while time.perf_counter() < until:
                await self.ask(found)

        await asyncio.gather(*(asking() for _ in range(connections)))
        return found

    async def open_loop(self, rate: float, seconds: float) -> tuple[Found, float]:
        """(what became of requests at even intervals, whatever the server does; how many of them were sent)."""
        found, tasks = Found(), set[asyncio.Task[None]]()
        began, due, sent = time.perf_counter(), 0, 0
        while (now := time.perf_counter() - began) < seconds:
            while due < now * rate:
                due += 1
                if len(tasks) < CONNECTIONS:
                    sent += 1
                    task = asyncio.create_task(self.ask(found))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        return found, sent / (rate * seconds)

    async def trickle(self, number: int, found: Found) -> None:
        """A byte at a time until it is refused, of the body (even numbers) or from the first; again and again."""
        while True:
            began, answer, one = time.perf_counter(), b"", None
            with contextlib.suppress(OSError):
                transport, one = await asyncio.get_running_loop().create_connection(_Answer, *self._place)
                data = self._head + b"\r\n" + self._image
                start = len(data) - len(self._image) if number % 2 == 0 else 1
                transport.write(data[:start])
                for place in range(start, len(data)):
                    done, _ = await asyncio.wait([one.ended], timeout=SLOW_SECONDS)
                    if done:
                        break
                    transport.write(data[place : place + 1])
                answer = one.data
                transport.abort()
            found.note(answer, time.perf_counter() - began)
            # as it was told: a client that comes back at once is a fast one
            await asyncio.sleep(1.0)


def memory_of(pid: int) -> int:
    """Bytes that a process has in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) << 10


async def _sample(pid: int, found: list[int]) -> None:
    while True:
        found.append(memory_of(pid))
        await asyncio.sleep(0.5)


async def _loaded(clients: Clients, pid: int, rate: float, seconds: float) -> tuple[Found, Found, float, list[int]]:
    slow, memory = Found(), list[int]()
    beside = [asyncio.create_task(clients.trickle(number, slow)) for number in range(SLOW_CLIENTS)]
    beside.append(asyncio.create_task(_sample(pid, memory)))
    found, sent = await clients.open_loop(rate, seconds)
    for task in beside:
        task.cancel()
    for done in await asyncio.gather(*beside, return_exceptions=True):
        if isinstance(done, Exception):
            raise done
    return found, slow, sent, memory


def _runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def overload(seconds: float, graph: Path, size: int) -> bool:
    """Whether a server of a bundle without torch holds out so long. size: of the images that are sent, px."""
    settings = {"header_seconds": PATIENCE, "idle_seconds": PATIENCE, "queue": QUEUE, "answer_seconds": ANSWER_SECONDS}
    with process({"graph": graph}, **settings) as (running, url), _runner() as runner:
        clients = Clients(url, png(0, size))
        runner.run(clients.closed_loop(1, 1.0))
        unloaded = runner.run(clients.closed_loop(1, MEASURE_SECONDS))
        capacity = len(runner.run(clients.closed_loop(16, MEASURE_SECONDS)).seconds) / MEASURE_SECONDS
        before = memory_of(running.pid)
        found, slow, sent, memory = runner.run(_loaded(clients, running.pid, TIMES * capacity, seconds))
        after = runner.run(clients.closed_loop(1, 1.0))
        running.send_signal(signal.SIGTERM)
        left = running.wait(60)
    fifth = max(1, len(memory) // 5)
    first, last = median(memory[fifth // 2 : fifth + 1]), median(memory[-fifth:])
    bound = ANSWER_SECONDS + 2 * unloaded.p99
    held = {
        "all were answered with 200, 408, or 429 or 503 and Retry-After": found.holds and slow.holds,
        "some were taken": found.statuses[200] > 0,
        f"p99 of those taken, {1000 * found.p99:,.0f} ms, is within the queue's {1000 * ANSWER_SECONDS:,.0f} ms + 2 x "
        f"the unloaded p99, {1000 * unloaded.p99:.1f} ms": found.p99 <= bound,
        f"memory grew by {last / first - 1:.2%}, less than {MAX_GROWTH:.0%}": last / first - 1 < MAX_GROWTH,
        f"{sent:.1%} of the requests were sent, {MIN_SENT:.0%} at least": sent >= MIN_SENT,
        f"afterwards: {dict(after.statuses)}, status {left}": set(after.statuses) == {200} and left == 0,
    }
    taken = len(found.seconds) / seconds
    print(
        f"{seconds:g} s at {TIMES} x {capacity:.0f} requests/s with {SLOW_CLIENTS} slow clients: "
        f"{dict(found.statuses)}; slow ones: {dict(slow.statuses)}; {taken:.0f} taken a second, so that a full "
        f"queue takes {1000 * QUEUE / max(taken, 1e-9):,.0f} ms; memory: {before >> 20} MiB before, "
        f"{round(first) >> 20} in the first fifth, {round(last) >> 20} in the last, {max(memory) >> 20} at most "
        f"({', '.join(str(memory[len(memory) * part // 10] >> 20) for part in range(10))} by tenths of the time)"
    )
    for claim, holds in held.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return all(held.values())
