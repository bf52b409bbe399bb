"""`vivace serve` against LitServe, BentoML and a FastAPI endpoint around PyTorch: the same weights and photos.

    python benchmarks/serving_bundle.py data/flowers /tmp/resnet18
    python benchmarks/serve_peers.py /tmp/resnet18 data/flowers --prepare
    python benchmarks/serve_peers.py /tmp/resnet18 data/flowers --rounds 2

vivace serves the bundle that `vivace accelerate` made of the weights. A peer serves the weights as PyTorch runs them
fastest on this machine (--variant; `peers/serving_model.py` measures all), its own batches on, with a worker for each
processor. Each measurement is a fresh server: it is warmed up, then asked in a closed loop (--connections), then at
70 % of the rate that it answered there, requests at even intervals whatever it does. Sides are interleaved. Client and
server share the processors; what the client takes is in the JSON. Peers run in an environment of their own
(environments.py); what Inductor compiles is kept beside the bundle: --prepare makes both. Writes
benchmarks/results/serve/DATE-resnet18-peers-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from environments import ENVIRONMENTS, ensure_environment
from records import RESULTS, page, save, today, with_interval
from serve import LOAD, cpu_seconds, images_of, request_of, told_by
from serving_bundle import FAST, FLOAT

PEERS = Path(__file__).parent / "peers"
# side → (its program, how an image is sent)
SIDES = {
    "vivace": (None, "bytes"),
    "LitServe": ("serve_litserve.py", "bytes"),
    "BentoML": ("serve_bentoml.py", "form"),
    "FastAPI": ("serve_fastapi.py", "bytes"),
}
ENVIRONMENT, PACKAGES = "serving", ("litserve", "bentoml", "fastapi", "uvicorn", "torch", "torchvision")
START_SECONDS, WARM_SECONDS, COMPARED = 600.0, 4.0, 32
REFERENCE = """
import json, sys
from pathlib import Path
from vivace.predictor import Predictor
from serve import images_of
predictor = Predictor(sys.argv[1])
print(json.dumps([dict(found.topk) for found in predictor(images_of(Path(sys.argv[2]))[:int(sys.argv[3])])]))
"""


def tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_of(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += cpu_seconds(pid)
    return total


def memory_of(pids: list[int]) -> int:
    """Bytes of their own and their part of what they share (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0]) << 10
    return total


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answer_of(port: int, image: bytes, body: str) -> dict[str, float]:
    """Probabilities by class. Raises OSError, and ValueError for an answer that is none."""
    head, _, _ = request_of(image, body).partition(b"\r\n\r\n")
    request = request_of(image, body).replace(head, head + b"\r\nConnection: close", 1)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as asked:
        asked.sendall(request)
        answer = b"".join(iter(lambda: asked.recv(1 << 16), b""))
    head, _, text = answer.partition(b"\r\n\r\n")
    if not head[9:12] == b"200":
        raise ValueError(head[:60])
    if b"transfer-encoding: chunked" in head.lower():
        text = text.partition(b"\r\n")[2]
    found, _ = json.JSONDecoder().raw_decode(text.decode())
    found = found["predictions"][0] if "predictions" in found else found[0] if isinstance(found, list) else found
    return {row["label"]: row["probability"] for row in found["topk"]}


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[int]:
    """A server's process id. At the end all of its processes have ended."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, cwd=PEERS, stdout=file, stderr=file)
    try:
        yield process.pid
    finally:
        all_of_it = tree(process.pid)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for pid in all_of_it[::-1]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def measure(side: str, folder: Path, images: Path, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in one round, by a fresh server."""
    program, body = SIDES[side]
    port, workers = free_port(), options.workers
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as ready:
        if program is None:
            command = [sys.executable, "-m", "vivace", "serve", str(folder / FAST), "--port", str(port)]
            # bytecode is kept, as that of installed packages is
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        else:
            command = [str(python), str(PEERS / program), str(folder), str(port), options.variant, str(workers)]
            environment |= {"SERVED_READY": ready, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
            environment.pop("PYTHONPATH", None)
        began = time.perf_counter()
        with running(command, environment, folder / f"{side}.log") as pid:
            some, problem = images_of(images)[:COMPARED], "nobody listens"
            while True:
                if time.perf_counter() - began > START_SECONDS or not Path(f"/proc/{pid}").exists():
                    raise SystemExit(f"{side} did not start ({problem}): see {folder / f'{side}.log'}")
                try:
                    if program is None or sum(1 for _ in Path(ready).iterdir()) >= workers:
                        answer_of(port, some[0], body)
                        break
                except (OSError, ValueError) as error:
                    problem = str(error)
                time.sleep(0.05)
            started = time.perf_counter() - began
            if options.prepare:
                return {"side": side, "start_s": started}
            answers = [answer_of(port, image, body) for image in some]
            told_by("--generator", port, images, options.connections, 0, WARM_SECONDS, body)
            result: dict[str, Any] = {"side": side, "start_s": started, "answers": answers}
            for kind in ("closed", "open"):
                rate = LOAD * result["closed"]["rate"] if kind == "open" else 0
                pids = tree(pid)
                before = cpu_of(pids)
                found = told_by("--generator", port, images, options.connections, rate, options.seconds, body)
                found["server_cpu_seconds"] = cpu_of(pids) - before
                found["rate"] = found["requests"] / found["seconds"]
                result[kind] = found
            result["memory_bytes"] = memory_of(tree(pid))
    return result


def reference(folder: Path, images: Path) -> list[dict[str, float]]:
    """Probabilities of the network in float32, by vivace."""
    command = [sys.executable, "-c", REFERENCE, str(folder / FLOAT), str(images), str(COMPARED)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    found: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def versions_of(python: Path) -> dict[str, str]:
    program = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", program, *PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def summary_of(measured: dict[str, list[dict[str, Any]]], expected: list[dict[str, float]]) -> list[dict[str, Any]]:
    from vivace.statistics.intervals import paired_ratio

    rates = {side: [one["closed"]["rate"] for one in runs] for side, runs in measured.items()}
    tails = {side: [one["open"]["p99_ms"] for one in runs] for side, runs in measured.items()}
    rows = []
    for side, runs in measured.items():
        against = side != "vivace" and "vivace" in rates
        gaps = [
            abs(found[label] - wanted[label])
            for one in runs
            for found, wanted in zip(one["answers"], expected, strict=True)
            for label in found.keys() & wanted.keys()
        ]
        rows.append(
            {
                "side": side,
                "rate": median(rates[side]),
                "vivace_rate_over": paired_ratio(rates["vivace"], rates[side]) if against else None,
                "p50_ms": median(one["open"]["p50_ms"] for one in runs),
                "p99_ms": median(tails[side]),
                "p99_over_vivace": paired_ratio(tails[side], tails["vivace"]) if against else None,
                "cpu_ms": median(
                    1000 * one["closed"]["server_cpu_seconds"] / one["closed"]["requests"] for one in runs
                ),
                "memory_bytes": median(one["memory_bytes"] for one in runs),
                "start_s": median(one["start_s"] for one in runs),
                "refused": sum(
                    count
                    for one in runs
                    for kind in ("closed", "open")
                    for status, count in one[kind]["statuses"].items()
                    if status != "200"
                ),
                "max_difference": max(gaps),
            }
        )
    return rows


def markdown(record: dict[str, Any]) -> str:
    conditions = (
        f". resnet18 at 224 px, the same untrained weights: vivace's bundle {record['served']}; peers "
        f"{record['variant']}, {record['workers']} workers, channels last, batches of 1, 4 or 16 (FastAPI: 1). "
        f"{record['connections']} connections; {record['rounds']} rounds, interleaved, {record['seconds']:g} s each, a "
        "fresh server each; client and server on the same processors. Medians; ratios are geometric means with "
        "Student's 95 % intervals, above 1: vivace is better. "
        + ", ".join(f"{name} {version}" for name, version in record["peers"].items())
        + "."
    )
    lines = [
        "| | requests/s | vivace's as a multiple | p50, p99 at 70 % load, ms | p99 as a multiple of vivace's | CPU a "
        "request, ms | memory, MiB | start, s | not answered with 200 | largest difference from float32 |",
        "|" + " --- |" * 10,
    ]
    for row in record["summary"]:
        ratios = [
            "–" if row[key] is None else with_interval(*row[key]) for key in ("vivace_rate_over", "p99_over_vivace")
        ]
        lines.append(
            f"| {row['side']} | {row['rate']:,.1f} | {ratios[0]} | {row['p50_ms']:,.1f}, {row['p99_ms']:,.1f} | "
            f"{ratios[1]} | {row['cpu_ms']:.2f} | {row['memory_bytes'] / 2**20:,.0f} | {row['start_s']:.1f} | "
            f"{row['refused']} | {row['max_difference']:.4f} |"
        )
    return page(record, "Serving resnet18: vivace, LitServe, BentoML, FastAPI", conditions, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what serving_bundle.py made")
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--variant", default="bf16 compiled", help="of the peers")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of the peers")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=list(SIDES))
    parser.add_argument("--prepare", action="store_true", help="make the environment, start each side once, and end")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    # so that servers end with this program, whoever ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    python = ensure_environment(ENVIRONMENT, options.environments)
    folder = options.folder.absolute()
    if options.prepare:
        for side in options.sides:
            found = measure(side, folder, options.images.absolute(), python, options)
            print(f"{side} answers {found['start_s']:.1f} s after its start", flush=True)
        return 0
    expected = reference(folder, options.images.absolute())
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for index in range(options.rounds):
        for side in options.sides if index % 2 == 0 else options.sides[::-1]:
            found = measure(side, folder, options.images.absolute(), python, options)
            measured[side].append(found)
            closed, light = found["closed"], found["open"]
            print(
                f"round {index + 1}/{options.rounds}  {side:<9} {closed['rate']:7.1f}/s, at 70 %: p50 "
                f"{light['p50_ms']:.1f} ms, p99 {light['p99_ms']:.1f} ms; {closed['statuses']} {light['statuses']}",
                flush=True,
            )
    info = json.loads((folder / FAST / "bundle.json").read_text())
    record: dict[str, Any] = {
        "date": today(),
        "command": f"python benchmarks/serve_peers.py {' '.join(sys.argv[1:])}",
        "rounds": options.rounds,
        "seconds": options.seconds,
        "connections": options.connections,
        "variant": options.variant,
        "workers": options.workers,
        "served": f"{info.get('runtime')} {info.get('precision')}",
        "peers": versions_of(python),
        "summary": summary_of(measured, expected),
        "measured": measured,
    }
    from vivace.hardware import describe

    record["environment"] = describe()
    save(record, "serve", "resnet18-peers", markdown, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
