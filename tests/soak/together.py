"""Bundles that are served together, asked by five kinds of clients:

    python tests/soak/together.py cifar=RUN=IMAGES flowers=RUN=IMAGES [--each 8] [--seconds 5]

NAME=BUNDLE=IMAGES: a bundle, and a folder of the images that are sent to it. `vivace serve` serves all of them, over
HTTP and gRPC. curl (one image, then several as a form), tritonclient over both protocols, huggingface_hub's
InferenceClient and the page in a headless Chromium give the classes that a Predictor gives for the same images, one at
a time; the load generator of benchmarks/serve.py then asks all bundles at once, and each request is answered. Exit
status 1 otherwise. A client that is not installed is said, and counts as a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

__all__ = ["CLIENTS", "Asked", "together"]

GENERATOR = Path(__file__).parents[2] / "benchmarks" / "serve.py"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CONNECTIONS = 8
# images that are computed in a batch with others differ a little; where the first two are this close, either may come
CLOSE = 0.02


@dataclass(frozen=True)
class Asked:
    """A bundle, the images that are sent to it, and what a Predictor says of each: classes and probabilities."""

    name: str
    folder: Path
    images: Path
    files: tuple[Path, ...]
    expected: tuple[dict[str, float], ...]

    def agrees(self, number: int, label: str) -> bool:
        """Whether a class is what the predictor says of an image, or as likely."""
        probs = self.expected[number]
        return label in probs and probs[label] >= max(probs.values()) - CLOSE


def asked(name: str, folder: Path, images: Path, each: int) -> Asked:
    from vivace.predictor import Predictor

    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = tuple(found[:: max(1, len(found) // each)][:each])
    if not files:
        raise SystemExit(f"no images below {images}")
    predictor = Predictor(folder, batch_size=1)
    topk = len(predictor.classes)
    return Asked(name, folder, images, files, tuple(dict(predictor(path, topk=topk).topk) for path in files))


@contextlib.contextmanager
def serving(bundles: list[Asked]) -> Iterator[tuple[str, str]]:
    """(URL, HOST:PORT of gRPC) of `vivace serve` with these bundles."""
    names = [f"{one.name}={one.folder}" for one in bundles]
    command = [sys.executable, "-m", "vivace", "serve", *names, "--port", "0", "--grpc-port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            told = json.loads(line)
            yield told["url"], told["grpc"]
        finally:
            running.terminate()
            running.wait(60)


def by_curl(url: str, grpc: str, one: Asked) -> list[str]:
    """Each image alone, then all in one form, which must say the same."""
    alone = []
    for path in one.files:
        told = json.loads(_curl(f"{url}/predict?bundle={one.name}", "--data-binary", f"@{path}"))
        alone.append(told["predictions"][0]["label"])
    form = [part for path in one.files for part in ("-F", f"image=@{path}")]
    several = json.loads(_curl(f"{url}/predict?bundle={one.name}", *form))
    labels = [found["label"] for found in several["predictions"]]
    return alone if all(one.agrees(number, label) for number, label in enumerate(labels)) else labels


def _curl(*arguments: str) -> str:
    done = subprocess.run(["curl", "--silent", "--show-error", "--fail", *arguments], capture_output=True, check=True)
    return done.stdout.decode()


def by_triton(url: str, grpc: str, one: Asked, *, over_grpc: bool = False) -> list[str]:
    """All images in one request, the likeliest class of each."""
    if over_grpc:
        import tritonclient.grpc as triton
    else:
        import tritonclient.http as triton
    client = triton.InferenceServerClient(grpc if over_grpc else url.removeprefix("http://"))
    try:
        files = triton.InferInput("images", [len(one.files)], "BYTES")
        files.set_data_from_numpy(np.array([path.read_bytes() for path in one.files], dtype=np.object_))
        wanted = triton.InferRequestedOutput("probs", class_count=1)
        found = client.infer(one.name, [files], outputs=[wanted]).as_numpy("probs")
    finally:
        client.close()
    return [text.decode().split(":", 2)[2] for text in found.ravel()]


def by_grpc(url: str, grpc: str, one: Asked) -> list[str]:
    """The same over gRPC."""
    return by_triton(url, grpc, one, over_grpc=True)


def by_hugging_face(url: str, grpc: str, one: Asked) -> list[str]:
    """Each image alone."""
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=f"{url}/models/{one.name}")
    return [str(client.image_classification(str(path))[0].label) for path in one.files]


def by_page(url: str, grpc: str, one: Asked) -> list[str]:
    """Each image chosen on the page, and the class read from the bundle's card there."""
    from browsing import browsing

    names = "[...document.querySelectorAll('#cards article h3')].map(one => one.textContent)"
    labels = "[...document.querySelectorAll('#cards article .label')].map(one => one.textContent)"
    found = []
    with tempfile.TemporaryDirectory() as profile, browsing(Path(profile)) as tabs:
        for path in one.files:
            with tabs() as tab:
                tab.open(f"{url}/?lang=en")
                tab.choose("#file", path)
                tab.until(f"{names}.includes({json.dumps(one.name)}) && {labels}.length === {names}.length")
                found.append(tab.run(labels)[tab.run(names).index(one.name)])
                assert tab.said == [], tab.said
    return found


CLIENTS: Mapping[str, Callable[[str, str, Asked], list[str]]] = {
    "curl": by_curl,
    "tritonclient over HTTP": by_triton,
    "tritonclient over gRPC": by_grpc,
    "InferenceClient": by_hugging_face,
    "the page in Chromium": by_page,
}


def loaded(url: str, bundles: list[Asked], seconds: float) -> dict[str, dict[str, Any]]:
    """What the load generator finds of each bundle, all at once."""
    port = url.rpartition(":")[2]

    def ask(one: Asked) -> dict[str, Any]:
        path = f"/predict?bundle={one.name}"
        arguments = ["--generator", port, str(one.images), str(CONNECTIONS), "0", str(seconds), "bytes", path]
        done = subprocess.run(
            [sys.executable, str(GENERATOR), *arguments], capture_output=True, text=True, check=True, timeout=600
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    with ThreadPoolExecutor(len(bundles)) as pool:
        return {one.name: found for one, found in zip(bundles, pool.map(ask, bundles), strict=True)}


def together(bundles: list[Asked], seconds: float, clients: Mapping[str, Any] = CLIENTS) -> list[str]:
    """What went wrong: a line for each; each step is printed. clients: those that ask."""
    faults = []
    with serving(bundles) as (url, grpc):
        for client, ask in clients.items():
            for one in bundles:
                began = time.perf_counter()
                try:
                    labels = ask(url, grpc, one)
                except Exception as error:
                    faults.append(f"{client}, {one.name}: {type(error).__name__}: {error}")
                    print(faults[-1], flush=True)
                    continue
                same = sum(one.agrees(number, label) for number, label in enumerate(labels))
                if same < len(one.files) or len(labels) != len(one.files):
                    faults.append(f"{client}, {one.name}: {len(labels)} answers, {same} of {len(one.files)} the same")
                took = time.perf_counter() - began
                print(f"{client}, {one.name}: {same} of {len(one.files)} as by a Predictor, {took:.1f} s", flush=True)
        for name, found in loaded(url, bundles, seconds).items():
            statuses = found["statuses"]
            print(
                f"load generator, {name}: {found['requests']} requests of {CONNECTIONS} connections in "
                f"{found['seconds']:.1f} s, {statuses}, p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms",
                flush=True,
            )
            if set(statuses) != {"200"}:
                faults.append(f"load generator, {name}: {statuses}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE=IMAGES")
    parser.add_argument("--each", type=int, default=8, help="images that each client sends to each bundle")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the load")
    options = parser.parse_args()
    found = []
    for given in options.bundles:
        name, folder, images = given.split("=", 2)
        found.append(asked(name, Path(folder), Path(images), options.each))
    faults = together(found, options.seconds)
    for fault in faults:
        print(f"FAILED: {fault}")
    print(f"{len(found)} bundles, {len(CLIENTS)} kinds of clients and the load: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
