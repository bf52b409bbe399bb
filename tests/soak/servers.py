"""A server under stress: python tests/soak/servers.py --terms 100 --overload 300 (or `make soak`).

--terms: SIGTERM at random moments under load, each time to a new server. A request is lost if it was sent on a
connection that the server had taken, within a tenth of a second of that, and no answer came. The process ends with 0.
--overload: seconds of ten times as many requests as the server can answer, beside clients that send a byte at a time.
Whoever is refused is told 503 with Retry-After, what is answered is right, memory stays bounded, and afterwards the
server answers as before. Exit status 1 if that failed anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from served import png, process

from factories import make_bundle

CLIENTS = 6
# what takes longer, on a busy machine, may be sent to a server that has ended
QUICK_SECONDS = 0.1
TIMES, SLOW_CLIENTS, CONNECTIONS = 10, 32, 400
# of memory, beyond the limit on bodies
MAX_GROWTH = 1 << 30


def graph_of(folder: Path, *, widths: list[int], size: int) -> Path:
    """An untrained bundle for ONNX Runtime."""
    from vivace.exporting.export import export

    plain = make_bundle(folder / "plain", widths=widths, depth=1, size=size).folder
    export(plain, "onnx", folder / "graph")
    return folder / "graph"


def term(graph: Path, rng: random.Random) -> Counter[object]:
    """What became of the requests around one SIGTERM: statuses, "lost", and the process's own "ended with"."""
    counts: Counter[object] = Counter()
    lock, image = threading.Lock(), png(0)

    def note(what: object) -> None:
        with lock:
            counts[what] += 1

    with process({"graph": graph}, drain_seconds=rng.choice((0.0, 0.1, 0.3))) as (running, url):
        place, ended = urlsplit(url), threading.Event()

        def ask() -> None:
            while not ended.is_set():
                connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
                try:
                    connection.connect()
                except OSError:
                    # it does not listen any more
                    return
                with contextlib.closing(connection):
                    keeps = True
                    while keeps and not ended.is_set():
                        began, quick = time.monotonic(), False
                        try:
                            connection.request("POST", "/predict", image)
                            quick = time.monotonic() - began < QUICK_SECONDS
                            answer = connection.getresponse()
                            json.loads(answer.read())
                            note(answer.status)
                            keeps = answer.getheader("connection") != "close"
                        except (OSError, http.client.HTTPException, ValueError):
                            note("lost" if quick else "too late")
                            keeps = False

        threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.05, 0.4))
        running.send_signal(signal.SIGTERM)
        note(f"ended with {running.wait(60)}")
        ended.set()
        for thread in threads:
            thread.join()
    return counts


def terms(count: int, seed: int, folder: Path) -> bool:
    """Whether no request was lost in so many SIGTERMs."""
    graph, rng = graph_of(folder, widths=[8], size=32), random.Random(seed)
    all_counts: Counter[object] = Counter()
    began = time.monotonic()
    for number in range(count):
        counts = term(graph, rng)
        all_counts += counts
        if counts["lost"] or not counts["ended with 0"]:
            print(f"SIGTERM {number}: {dict(counts)}", flush=True)
        if (number + 1) % 20 == 0:
            print(f"{number + 1} SIGTERMs, {dict(all_counts)}", file=sys.stderr, flush=True)
    told = ", ".join(f"{number:,} {what}" for what, number in sorted(all_counts.items(), key=lambda one: -one[1]))
    print(f"{count} SIGTERMs in {time.monotonic() - began:.0f} s: {told}")
    return (
        not all_counts["lost"]
        and all_counts["ended with 0"] == count
        and set(all_counts) <= {200, 503, "too late", "ended with 0"}
    )


async def one_request(host: str, port: int, image: bytes) -> tuple[int, float, bool]:
    """(status, seconds, whether Retry-After is there) of a request on a connection of its own."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(image)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + image)
        await writer.drain()
        answer = await reader.read()
        status = int(answer[9:12])
        told = answer.lower().partition(b"\r\n\r\n")[0]
        return status, time.perf_counter() - began, b"\r\nretry-after:" in told
    finally:
        writer.close()


async def closed(host: str, port: int, image: bytes, *, connections: int, seconds: float) -> float:
    """Answers a second, each connection asking again once it is answered."""
    until, count = time.perf_counter() + seconds, 0

    async def ask() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await one_request(host, port, image)
            count += 1

    await asyncio.gather(*(ask() for _ in range(connections)))
    return count / seconds


async def overloaded(
    host: str, port: int, image: bytes, rate: float, seconds: float
) -> tuple[Counter[Any], list[float]]:
    """(what became of requests at even intervals, whatever the server does; seconds of those that were answered)."""
    counts: Counter[Any] = Counter()
    latencies: list[float] = []
    open_tasks: set[asyncio.Task[None]] = set()

    async def ask() -> None:
        try:
            status, took, told = await one_request(host, port, image)
        except (OSError, ValueError):
            counts["no answer"] += 1
            return
        counts[status] += 1
        if status == 200:
            latencies.append(took)
        elif status == 503 and not told:
            counts["503 without Retry-After"] += 1

    began, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        while sent < now * rate:
            sent += 1
            if len(open_tasks) >= CONNECTIONS:
                counts["not sent: the generator's own bound"] += 1
                continue
            task = asyncio.create_task(ask())
            open_tasks.add(task)
            task.add_done_callback(open_tasks.discard)
        await asyncio.sleep(0.002)
    await asyncio.gather(*open_tasks)
    return counts, latencies


def trickle(host: str, port: int, image: bytes, ended: threading.Event, counts: Counter[str]) -> None:
    """Sends a byte every tenth of a second, until it is refused; again and again."""
    while not ended.is_set():
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=60) as found:
            found.sendall(f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(image)}\r\n\r\n".encode())
            found.settimeout(0.1)
            for byte in image:
                try:
                    found.sendall(bytes([byte]))
                    told = found.recv(200)
                except TimeoutError:
                    if ended.is_set():
                        return
                    continue
                counts[told[9:12].decode("latin-1") or "closed"] += 1
                break


def overload(seconds: float, folder: Path) -> bool:
    """Whether a server holds out under ten times its load."""
    graph, image = graph_of(folder / "large", widths=[64, 128], size=96), png(0, 96)
    with process({"graph": graph}, header_seconds=2.0, idle_seconds=2.0, queue=64) as (running, url):
        place = urlsplit(url)
        host, port = str(place.hostname), int(place.port or 0)

        def memory() -> int:
            """Bytes that the process has in memory; 0 where the system does not tell."""
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{running.pid}/status").read_text()
                return int(text.partition("VmRSS:")[2].split()[0]) << 10
            return 0

        capacity = asyncio.run(closed(host, port, image, connections=16, seconds=5))
        before, ended, slow = memory(), threading.Event(), Counter[str]()
        threads = [
            threading.Thread(target=trickle, args=(host, port, image, ended, slow), daemon=True)
            for _ in range(SLOW_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        counts, latencies = asyncio.run(overloaded(host, port, image, TIMES * capacity, seconds))
        grown = memory() - before
        ended.set()
        for thread in threads:
            thread.join()
        status, took, _ = asyncio.run(one_request(host, port, image))
        running.send_signal(signal.SIGTERM)
        left = running.wait(60)
    answered = sorted(latencies)
    shown = f"median {1000 * answered[len(answered) // 2]:.0f} ms, p99 {1000 * quantiles(answered, n=100)[98]:.0f} ms"
    print(
        f"{seconds:g} s at {TIMES} x {capacity:.0f} requests/s with {SLOW_CLIENTS} slow clients: {dict(counts)}; "
        f"answered {len(answered) / seconds:.0f}/s, {shown}; slow ones: {dict(slow)}; memory grew by {grown >> 20} "
        f"MiB; afterwards {status} in {1000 * took:.0f} ms; ended with {left}"
    )
    known = {200, 503, "not sent: the generator's own bound"}
    return set(counts) <= known and counts[200] > 0 and grown < MAX_GROWTH and (status, left) == (200, 0)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terms", type=int, default=100)
    parser.add_argument("--overload", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        held = not options.terms or terms(options.terms, options.seed, Path(folder) / "small")
        held = (not options.overload or overload(options.overload, Path(folder))) and held
    return int(not held)


if __name__ == "__main__":
    raise SystemExit(main())
