"""Decoding in parallel: child processes that read files and write pixels straight into a memory map.

They are plain `python -m vivace.data.workers` children rather than multiprocessing: no fork of a process that may hold
torch's threads, no second run of a user's script that lacks a `__main__` guard, and no torch in the children. A child
that loses its parent (its stdin ends) leaves at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np

from vivace.data.decode import decode_bytes
from vivace.data.preprocess import Preprocess
from vivace.errors import DataError, ImageError
from vivace.hardware import num_cpus

__all__ = ["Decoded", "decode_files"]

# below this number of files starting processes costs more than it saves
MIN_FILES_FOR_PROCESSES = 3000
BLOCK = 500
EMPTY_DIGEST = "0" * 32


@dataclass
class Decoded:
    """What decoding a split gave beside the pixels."""

    digests: list[str]
    """blake2b-128 of each file's bytes, hexadecimal."""
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Position → (problem, message) of the images that could not be used; their pixels stay 0."""


def decode_files(
    paths: Sequence[str],
    preprocess: Preprocess,
    pixels: Path,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Decoded:
    """Decode `paths` into the existing .npy file `pixels`, uint8 [N, store_size, store_size, C].

    progress is told how many more are done. Raises DataError if a worker dies.
    """
    workers = num_workers or num_cpus()
    result = Decoded([EMPTY_DIGEST] * len(paths))
    blocks = [(start, list(paths[start : start + BLOCK])) for start in range(0, len(paths), BLOCK)]
    if workers < 2 or len(paths) < MIN_FILES_FOR_PROCESSES:
        images = np.load(pixels, mmap_mode="r+")
        with ThreadPoolExecutor(max(workers, 2)) as pool:
            for start, digests, problems in pool.map(lambda block: _decode_block(block, preprocess, images), blocks):
                _collect(result, start, digests, problems, progress)
        images.flush()
        return result
    _run_processes(blocks, preprocess, pixels, workers, result, progress)
    return result


def _collect(
    result: Decoded,
    start: int,
    digests: list[str],
    problems: list[list[Any]],
    progress: Callable[[int], None],
) -> None:
    result.digests[start : start + len(digests)] = digests
    for index, problem, message in problems:
        result.problems[index] = (problem, message)
    progress(len(digests))


def _decode_block(
    block: tuple[int, list[str]], preprocess: Preprocess, images: np.ndarray
) -> tuple[int, list[str], list[list[Any]]]:
    start, paths = block
    digests, problems = [], []
    for index, path in enumerate(paths, start=start):
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (60,000 Path objects are a second's work)
                data = file.read()
        except OSError as error:
            digests.append(EMPTY_DIGEST)
            problems.append(
                [index, "unreadable", f"the file can't be read: {path} ({error.strerror}). Check its rights."]
            )
            continue
        digests.append(hashlib.blake2b(data, digest_size=16).hexdigest())
        try:
            image = decode_bytes(data, path, draft_size=preprocess.store_size, check_extension=True)
            images[index] = preprocess.store(image)
        except ImageError as error:
            problems.append([index, error.problem, str(error)])
    return start, digests, problems


def _run_processes(
    blocks: list[tuple[int, list[str]]],
    preprocess: Preprocess,
    pixels: Path,
    num_workers: int,
    result: Decoded,
    progress: Callable[[int], None],
) -> None:
    todo: Queue[tuple[int, list[str]]] = Queue()
    for block in blocks:
        todo.put(block)
    done: Queue[tuple[int, list[str], list[list[Any]]] | BaseException] = Queue()
    children = [_start_child(preprocess, pixels) for _ in range(min(num_workers, len(blocks)))]
    servers = [threading.Thread(target=_serve, args=(child, todo, done), daemon=True) for child in children]
    for server in servers:
        server.start()
    try:
        for _ in blocks:
            answer = done.get()
            if isinstance(answer, BaseException):
                raise DataError(
                    f"a decoding worker died ({answer}). Try again; if memory is short, use --set or fewer workers."
                )
            _collect(result, *answer, progress)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for server in servers:
            server.join()
        for child in children:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _start_child(preprocess: Preprocess, pixels: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "vivace.data.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # -m would put the current folder first on the path: a user's numpy.py there is not meant
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps({"preprocess": preprocess.to_dict(), "pixels": os.fspath(pixels)}) + "\n")
    return child


def _serve(
    child: subprocess.Popen[str],
    todo: Queue[tuple[int, list[str]]],
    done: Queue[tuple[int, list[str], list[list[Any]]] | BaseException],
) -> None:
    """Hand blocks to one child until none is left."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        while True:
            try:
                block = todo.get_nowait()
            except Empty:
                return
            child.stdin.write(json.dumps(block) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
            if not line:
                raise RuntimeError(f"exit status {child.wait(timeout=10)}")
            start, digests, problems = json.loads(line)
            done.put((start, digests, problems))
    except Exception as error:
        # into the queue, for the thread that waits there
        done.put(error)


def _child() -> None:
    import signal

    # Ctrl-C reaches the whole group: the parent ends its children itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = json.loads(sys.stdin.readline())
    preprocess = Preprocess.from_dict(job["preprocess"])
    images = np.load(job["pixels"], mmap_mode="r+")
    for line in sys.stdin:
        start, paths = json.loads(line)
        print(json.dumps(_decode_block((start, paths), preprocess, images)), flush=True)
    images.flush()


if __name__ == "__main__":
    _child()
