"""A predictor without a network for tests of streams, images to give it, and runs that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import tarfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from PIL import Image

from vivace.batch.run import predict_stream
from vivace.data.preprocess import Preprocess
from vivace.prediction import Failure
from vivace.predictor import Prediction, Predictor, prediction_of
from vivace.uncertainty.scores import Answers

__all__ = ["encoded", "fake_predictor", "in_a_fork", "listening", "make_images", "make_tar", "outcomes"]

CLASSES = ("dark", "light")


def fake_predictor(folder: Path, *, batch_size: int = 4) -> Predictor:
    """Calls an image light by its mean; what it says depends a little on the size of this and of the first batch."""
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text("{}")

    sizes: list[int] = []

    def answers(images_NHWC: np.ndarray, *, everything: bool = False) -> Answers:
        sizes.append(len(images_NHWC))
        light_N = images_NHWC.mean((1, 2, 3)) / 255 * (1 - 1e-6 * len(images_NHWC) - 1e-5 * sizes[0]) * 0.9 + 0.05
        return Answers(np.stack([1 - light_N, light_N], 1).astype(np.float32))

    def predictions_from(names: list[str], answers: Answers, topk: int) -> list[Prediction]:
        return [
            prediction_of(name, probs_K, CLASSES, topk) for name, probs_K in zip(names, answers.probs_NK, strict=True)
        ]

    preprocess = Preprocess(size=8, store_size=8)
    info = SimpleNamespace(multi_label=False)
    found = SimpleNamespace(
        bundle=SimpleNamespace(folder=folder, preprocess=preprocess, info=info),
        classes=CLASSES,
        batch_size=batch_size,
        workers=2,
        threads=2,
        decider=None,
        runtime="eager",
        precision="fp32",
        answers=answers,
        predictions_from=predictions_from,
        device_name="cpu",
        rates={"coverage": None, "abstain": None},
    )
    return cast(Predictor, found)


def encoded(value: int, kind: str = "PNG") -> bytes:
    """A small image of one grey."""
    buffer = BytesIO()
    Image.new("RGB", (12, 10), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def make_images(folder: Path, count: int = 21, *, damaged: tuple[int, ...] = (5,)) -> Path:
    """A folder of images from dark to light; those at `damaged` are no images."""
    folder.mkdir(parents=True)
    for index in range(count):
        content = b"no image" if index in damaged else encoded(index * 250 // count)
        (folder / f"{index:03d}.png").write_bytes(content)
    return folder


def make_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    """A tar of these files."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return path


def in_a_fork(work: Callable[[], object]) -> int:
    """Do it in a process of its own; 0, its exit status, or minus the number of the signal that ended it."""
    with warnings.catch_warnings():
        # it uses none of the threads that are not there in the fork
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def killed_at(owner: Any, name: str, count: int) -> None:
    """From now on the call `count`, from 1, of this function is the last thing that the process does."""
    original = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)


@contextlib.contextmanager
def listening(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server of this machine that answers by a handler, and waits at its end for no request."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.daemon_threads, served.block_on_close = True, False
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_address[1]}"
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


def outcomes(tmp_path: Path, *paths: str, **options: Any) -> list[Prediction | Failure]:
    """What a stream of these paths gives."""
    found: list[Prediction | Failure] = []
    predict_stream(fake_predictor(tmp_path / "bundle"), paths, each=found.append, **options)
    return found
