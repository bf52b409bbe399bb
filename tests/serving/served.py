"""An application called in this process, a server in another one, and images for both."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from factories import pixels
from vivace.serving.app import Application
from vivace.serving.settings import Settings
from vivace.serving.web.logs import Log

__all__ = ["Client", "Gate", "answering", "png", "process"]


def png(number: int = 0, size: int = 48) -> bytes:
    """A PNG of random pixels, another one for each number."""
    return as_png(pixels(number + 1, size)[number])


def as_png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


class Client:
    """An application, called without a socket."""

    def __init__(self, app: Application, log: io.StringIO) -> None:
        self.app, self._log = app, log
        self._runner = asyncio.Runner()
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1")

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._http.request(method, path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.run(self.send("GET", path, **options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.run(self.send("POST", path, **options))

    def log(self) -> list[dict[str, Any]]:
        assert self.app.log.flush(60)
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def close(self) -> None:
        self.run(self.app.stop())
        self._runner.close()


@contextlib.contextmanager
def answering(folders: dict[str, Path], **settings: Any) -> Iterator[Client]:
    """A client of an application with these settings; without a trial unless max_batch is None."""
    log = io.StringIO()
    found = Settings(**{"max_batch": 8, **settings})
    client = Client(Application(folders, found, log=Log(found.log, log)), log)
    try:
        yield client
    finally:
        client.close()


class Gate:
    """Stands before a predictor's network: notes the batches, and holds them back until it is opened."""

    def __init__(self, client: Client, name: str | None = None) -> None:
        self.predictor = client.app.bundles.get(name).predictor
        self.batches: list[np.ndarray] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self.answers = self.predictor.answers
        self.predictor.answers = self  # type: ignore[method-assign, assignment]

    def __call__(self, images_NHWC: np.ndarray) -> Any:
        self.batches.append(images_NHWC)
        self.entered.set()
        assert self.opened.wait(60)
        return self.answers(images_NHWC)


async def until(holds: Callable[[], Any]) -> None:
    """Wait until it holds; the test's own time limit ends what never does."""
    while not holds():
        await asyncio.sleep(0.002)


PROGRAM = """
import json, sys
from pathlib import Path
from vivace.serving.server import serve
from vivace.serving.settings import Settings
folders, settings = json.loads(sys.argv[1])
ready = lambda url, app: print(url, 'torch' in sys.modules, app.grpc_address, flush=True)
serve({name: Path(folder) for name, folder in folders.items()}, Settings(port=0, max_batch=8, **settings), ready=ready)
"""


@contextlib.contextmanager
def process(
    folders: dict[str, Path], *, torch: bool = False, **settings: Any
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(the process, its URL) of a server; it is ended, and its status is left to the test. torch: it needs that."""
    given = json.dumps([{name: str(folder) for name, folder in folders.items()}, settings])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::RuntimeWarning"}
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert running.stdout is not None
        assert running.stderr is not None
        line = running.stdout.readline()
        if not line:
            raise AssertionError(running.stderr.read())
        url, has_torch, grpc_address = line.split()
        assert has_torch == str(torch)
        running.grpc_address = grpc_address  # type: ignore[attr-defined]
        yield running, url
    finally:
        running.terminate()
        try:
            running.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
