"""A server under stress: python tests/soak/servers.py --terms 100 --overload 300 (or `make soak`).

--terms: SIGTERM at random moments under load, each time to a new server. A request is lost if it was sent on a
connection that the server had taken, within a tenth of a second of that, and no answer came. The process ends with 0.
--overload: seconds of ten times as many requests as the server can answer, beside 200 clients that send a byte at a
time; what must hold then is in overload.py. Exit status 1 if anything of it failed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from overload import overload
from served import png, process

from factories import make_bundle

CLIENTS = 6
# what takes longer, on a busy machine, may be sent to a server that has ended
QUICK_SECONDS = 0.1
# slow enough that ten times its load is little for the clients
LARGE, LARGE_SIZE = [128, 256], 96


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


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terms", type=int, default=100)
    parser.add_argument("--overload", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        held = not options.terms or terms(options.terms, options.seed, Path(folder) / "small")
        if options.overload:
            graph = graph_of(Path(folder) / "large", widths=LARGE, size=LARGE_SIZE)
            held = overload(options.overload, graph, LARGE_SIZE) and held
    return int(not held)


if __name__ == "__main__":
    raise SystemExit(main())
