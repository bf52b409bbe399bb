"""What serving costs beside decoding and the network: CPU a request, throughput, latency at load, the first answer.

    python benchmarks/serve.py BUNDLE IMAGES [--rounds 5] [--seconds 8] [--connections 32] [--label LABEL]

BUNDLE: a folder that needs no torch; IMAGES: a folder of image files, whose bytes are sent. Three sides are measured in
alternation, in processes of their own: a predictor in a process (`predictor(list of files)`), the server under a closed
loop of connections, and the server at 70 % of what it answered then, requests at even intervals whatever it does.
The CPU of a side is what the system charged its process; the load generator is another process, and its CPU is told
beside, because it takes from the same processors. No network is in between: client and server are on one machine.
Writes benchmarks/results/serve/DATE-LABEL-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

MAX_IMAGES = 256
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TICKS = os.sysconf("SC_CLK_TCK")
LOAD = 0.7


def images_of(folder: Path) -> list[bytes]:
    """The files below a folder, every n-th of them, at most MAX_IMAGES."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [path.read_bytes() for path in found[:: max(1, len(found) // MAX_IMAGES)][:MAX_IMAGES]]


def cpu_seconds(pid: int) -> float:
    """What the system has charged a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Connection(asyncio.Protocol):
    """One connection that is kept; `answered` is done when an answer is there."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self._data, self.answered = transport, b"", None

    def ask(self, request: bytes) -> asyncio.Future[int]:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answered

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) >= length:
            self._data = b""
            self.answered.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        # counted as the status 0: no answer
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(0)


async def closed_loop(port: int, requests: list[bytes], connections: int, seconds: float) -> dict[str, Any]:
    """Each connection asks again as soon as it is answered."""
    loop, latencies, until = asyncio.get_running_loop(), [], time.perf_counter() + seconds
    statuses: dict[int, int] = {}

    async def ask(first: int) -> None:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        number = first
        while (began := time.perf_counter()) < until:
            status = await connection.ask(requests[number % len(requests)])
            latencies.append(time.perf_counter() - began)
            statuses[status] = statuses.get(status, 0) + 1
            number += connections
            if connection.transport.is_closing():
                _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        connection.transport.close()

    await asyncio.gather(*(ask(number) for number in range(connections)))
    return {"latencies": latencies, "statuses": statuses}


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Requests at even intervals; one that finds all connections busy opens another, and none is left out."""
    loop, latencies, idle = asyncio.get_running_loop(), [], []
    statuses: dict[int, int] = {}
    began = time.perf_counter()

    async def ask(number: int, due: float) -> None:
        while idle and idle[-1].transport.is_closing():
            idle.pop()
        connection = idle.pop() if idle else (await loop.create_connection(Connection, "127.0.0.1", port))[1]
        status = await connection.ask(requests[number % len(requests)])
        # from when it was due: what waits for the generator itself counts too
        latencies.append(time.perf_counter() - due)
        statuses[status] = statuses.get(status, 0) + 1
        if not connection.transport.is_closing():
            idle.append(connection)

    tasks = []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(number, due)))
    await asyncio.gather(*tasks)
    return {"latencies": latencies, "statuses": statuses}


def request_of(image: bytes, body: str = "bytes", path: str = "/predict") -> bytes:
    """The request for one image, its body the file's bytes or a "form" that has it as `images`."""
    kind = "image/jpeg"
    if body == "form":
        mark = "the-end-of-this-part"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\nContent-Type: {kind}'
        image = f"{head}\r\n\r\n".encode() + image + f"\r\n--{mark}--\r\n".encode()
        kind = f"multipart/form-data; boundary={mark}"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(image)}"
    return f"{head}\r\n\r\n".encode() + image


def generator(arguments: list[str]) -> None:
    """The process that asks: port, folder, connections, rate (0: a closed loop), seconds, body, path; prints what it
    finds."""
    import uvloop

    port, folder, connections, rate, seconds = (*arguments[:2], *map(float, arguments[2:5]))
    requests = [request_of(image, *arguments[5:]) for image in images_of(Path(folder))]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        before, cpu = time.perf_counter(), time.process_time()
        work = open_loop(int(port), requests, rate, seconds)
        if rate == 0:
            work.close()
            work = closed_loop(int(port), requests, int(connections), seconds)
        found = runner.run(work)
    wall = time.perf_counter() - before
    times = sorted(found.pop("latencies"))
    found |= {"requests": len(times), "seconds": wall, "cpu_seconds": time.process_time() - cpu}
    found |= {f"p{p}_ms": 1000 * times[min(len(times) - 1, len(times) * p // 100)] for p in (50, 99)}
    print(json.dumps(found))


def in_process(arguments: list[str]) -> None:
    """A predictor on the same files: wall and CPU seconds an image, the fastest of batches of 64 calls apart."""
    from vivace.predictor import Predictor

    folder, place, batch_size, seconds = arguments[0], arguments[1], int(arguments[2]), float(arguments[3])
    predictor, images = Predictor(folder, batch_size=batch_size), images_of(Path(place))
    predictor(images)
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        predictor(images)
        count += len(images)
    print(
        json.dumps({"images": count, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu})
    )


def told_by(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(process id, port, what it serves) of a server."""
    command = [sys.executable, "-m", "vivace", "serve", str(bundle), "--port", "0", "--json", *options]
    # bytecode is kept, as that of an installed package is: to compile vivace anew takes 0.1 s of a start
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment.setdefault("PYTHONPYCACHEPREFIX", str(Path(tempfile.gettempdir()) / "vivace-serve-bytecode"))
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert running.stdout is not None
        told = json.loads(running.stdout.readline())
        yield running.pid, int(told["url"].rpartition(":")[2]), told["bundles"][0]
    finally:
        running.terminate()
        running.wait(60)


def first_answer(bundle: Path, image: bytes, *options: str) -> float:
    """Seconds from the start of the process to the answer to one image."""
    began = time.perf_counter()
    with serving(bundle, *options) as (_, port, _):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", image)
        urllib.request.urlopen(request).read()
        return time.perf_counter() - began


def measure(bundle: Path, folder: Path, rounds: int, seconds: float, connections: int) -> dict[str, Any]:
    image = images_of(folder)[0]
    result: dict[str, Any] = {"bundle": bundle.name, "rounds": rounds, "seconds": seconds, "connections": connections}
    result["cpus"] = len(os.sched_getaffinity(0))
    first_answer(bundle, image)
    result["first_answer_s"] = [first_answer(bundle, image, "--max-batch", "8") for _ in range(rounds)]
    result["first_answer_default_s"] = [first_answer(bundle, image) for _ in range(rounds)]
    result |= {"in_process": [], "closed": [], "open": []}
    with serving(bundle) as (pid, port, _):
        # the trial ends under load, and batches of each size are compiled at their first use
        told_by("--generator", port, folder, connections, 0, 5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/bundles") as answer:
            (served,) = json.load(answer)["bundles"]
        result["served"] = {key: served[key] for key in ("runtime", "precision", "size", "max_batch", "max_wait_ms")}
        for _ in range(rounds):
            result["in_process"].append(told_by("--in-process", bundle, folder, max(8, served["max_batch"]), seconds))
            for kind in ("closed", "open"):
                rate = LOAD * result["closed"][-1]["rate"] if kind == "open" else 0
                before = cpu_seconds(pid)
                found = told_by("--generator", port, folder, connections, rate, seconds)
                found["server_cpu_seconds"] = cpu_seconds(pid) - before
                found["rate"] = found["requests"] / found["seconds"]
                result[kind].append(found)
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown: the median of the rounds, and from the least to the most."""

    def row(name: str, values: list[float], digits: int = 1) -> str:
        low, high = min(values), max(values)
        return f"| {name} | {median(values):,.{digits}f} | {low:,.{digits}f} to {high:,.{digits}f} | {len(values)} |"

    alone, closed, light = result["in_process"], result["closed"], result["open"]
    own = [one["cpu_seconds"] / one["images"] for one in alone]
    cost = [one["server_cpu_seconds"] / one["requests"] for one in closed]
    rates = [one["images"] / one["seconds"] for one in alone]
    left = [result["cpus"] - one["cpu_seconds"] / one["seconds"] for one in closed]
    rows = [
        "| | median | range | n |",
        "| --- | --- | --- | --- |",
        row("in a process, images/s", rates),
        row("served, images/s", [one["rate"] for one in closed]),
        row("served / in a process, %", [100 * one["rate"] / rate for one, rate in zip(closed, rates, strict=True)]),
        row(
            "the same for the processors that the generator leaves, %",
            [
                100 * one["rate"] / rate * result["cpus"] / cpus
                for one, rate, cpus in zip(closed, rates, left, strict=True)
            ],
        ),
        row(
            "CPU of the server a request beyond that of a process, µs",
            [1e6 * (a - b) for a, b in zip(cost, own, strict=True)],
        ),
        row("CPU of the generator a request, µs", [1e6 * one["cpu_seconds"] / one["requests"] for one in closed]),
        row("at 70 % load: p50, ms", [one["p50_ms"] for one in light], 2),
        row("at 70 % load: p99, ms", [one["p99_ms"] for one in light], 2),
        row("at 70 % load: p99 / p50", [one["p99_ms"] / one["p50_ms"] for one in light], 2),
        row("start to first answer, --max-batch 8, s", result["first_answer_s"], 2),
        row("start to first answer, without options, s", result["first_answer_default_s"], 2),
    ]
    statuses = {status for one in (*closed, *light) for status in one["statuses"]}
    return "\n".join([*rows, "", f"Statuses: {', '.join(sorted(statuses))}. Served: {json.dumps(result['served'])}."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--label", default="alone", help="what the file name says beside date and hardware")
    parser.add_argument("--out", type=Path, help="a folder. Default: benchmarks/results")
    options = parser.parse_args()
    keep(
        measure(options.bundle, options.images, options.rounds, options.seconds, options.connections),
        options.label,
        options.out,
    )
    return 0


def keep(result: dict[str, Any], label: str, out: Path | None) -> None:
    # the processes that ask and compute need none of this
    from records import RESULTS, save_found

    served = result["served"]
    conditions = (
        f"; {served['runtime']} {served['precision']}, {served['size']} px; {result['rounds']} rounds, interleaved, "
        f"{result['seconds']:g} s each, {result['connections']} connections; client and server on the same processors."
    )
    save_found(
        result,
        "serve",
        label,
        out or RESULTS,
        title="A server against its own network",
        conditions=conditions,
        table=table(result).splitlines(),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--generator"]:
        generator(sys.argv[2:])
    elif sys.argv[1:2] == ["--in-process"]:
        in_process(sys.argv[2:])
    else:
        sys.exit(main())
