"""Decoding in parallel: child processes that read files and write pixels straight into a memory map.

They are plain Python children with a pipe rather than multiprocessing: no fork of a process that may hold torch's
threads, no second run of a user's script that lacks a `__main__` guard, and no torch in the children. A child that
loses its parent (its stdin ends) leaves at once, in the middle of an image too. Small data sets are decoded by threads:
Pillow lets go of the interpreter's lock while it decodes and resizes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
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

from vivace import systems
from vivace.data.decoding.decode import Picture, PillowGuard, mismatch, shown
from vivace.data.decoding.memory import share_memory
from vivace.data.decoding.square import PAD
from vivace.data.preprocess import Preprocess
from vivace.errors import DataError, ImageError, KernelError
from vivace.hardware import num_cpus
from vivace.kernels.resize import use_fast_resize
from vivace.trust import say_once, trusted_folder

__all__ = ["Decoded", "decode_files", "digest_of", "is_one_colour"]

# below this number of files starting processes costs more than it saves
MIN_FILES_FOR_PROCESSES = 2000
# a block's answer through the pipe costs some 0.1 ms; large blocks make progress jumpy and the ends uneven
MAX_BLOCK = 100
# blocks that wait at a child, so that it is busy while the parent holds its interpreter's lock to import torch
AHEAD = 2
EMPTY_DIGEST = "0" * 32
# the parent's import path at the end of the child's: a vivace that is found there alone is found again
CHILD = (
    "import json, sys; sys.path.extend(p for p in json.loads(sys.stdin.readline()) if p not in sys.path); "
    "from vivace.data.workers import serve; serve()"
)

Block = tuple[int, list[str]]
# start, digests, digests of pixels, [[position, problem, message], …], [[position, note], …]
Answer = tuple[int, list[str], list[str], list[list[Any]], list[list[Any]]]


@dataclass
class Decoded:
    """What decoding a split gave beside the pixels."""

    digests: list[str]
    """blake2b-128 of each file's bytes, hexadecimal."""
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Position → (problem, message) of the images that could not be used; their pixels stay 0."""
    pixel_digests: list[str] = field(default_factory=list)
    """blake2b-128 of the stored pixels, hexadecimal; of the file, where an image has one colour only."""
    notes: dict[int, list[str]] = field(default_factory=dict)
    """Position → what the audit is to tell of an image that is used, such as one_colour or extension_mismatch."""


def decode_files(
    paths: Sequence[str],
    preprocess: Preprocess,
    pixels: Path,
    *,
    num_workers: int | None = None,
    kernels: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Decoded:
    """Decode `paths` into the existing .npy file `pixels`, uint8 [N, store_size, store_size, C].

    kernels: folder for one of our own that resizes photos, built where there are many files. progress is told how many
    more are done. Raises DataError if a worker dies or memory does not suffice.
    """
    workers = num_workers or num_cpus()
    result = Decoded([EMPTY_DIGEST] * len(paths), pixel_digests=[EMPTY_DIGEST] * len(paths))
    size = min(MAX_BLOCK, max(16, len(paths) // (50 * workers)))
    blocks = [(start, list(paths[start : start + size])) for start in range(0, len(paths), size)]

    def collect(answer: Answer) -> None:
        start, digests, pixel_digests, problems, notes = answer
        result.digests[start : start + len(digests)] = digests
        result.pixel_digests[start : start + len(digests)] = pixel_digests
        for index, note in notes:
            result.notes.setdefault(index, []).append(note)
        result.problems.update({index: (problem, message) for index, problem, message in problems})
        progress(len(digests))

    children = []
    if workers > 1 and len(paths) >= MIN_FILES_FOR_PROCESSES and sys.executable:
        children = _start_children(min(workers, len(blocks)), preprocess, pixels, kernels)
    if children:
        _run_processes(children, blocks, collect)
    else:
        _run_threads(max(workers, 2), blocks, preprocess, pixels, collect)
    return result


def _run_threads(
    workers: int, blocks: list[Block], preprocess: Preprocess, pixels: Path, collect: Callable[[Answer], None]
) -> None:
    images = np.load(pixels, mmap_mode="r+")
    pool = ThreadPoolExecutor(workers)
    try:
        for answer in pool.map(lambda block: _decode_block(block, preprocess, images), blocks):
            collect(answer)
    finally:
        # on Ctrl-C too: what has not begun is not begun
        pool.shutdown(cancel_futures=True)


def _decode_block(block: Block, preprocess: Preprocess, images: np.ndarray) -> Answer:
    start, paths = block
    digests, pixel_digests = [EMPTY_DIGEST] * len(paths), [EMPTY_DIGEST] * len(paths)
    problems: list[list[Any]] = []
    notes: list[list[Any]] = []
    with PillowGuard():
        for index, path in enumerate(paths):
            try:
                with preprocess.decoding(path) as (data, picture):
                    digests[index] = hashlib.blake2b(data, digest_size=16).hexdigest()
                    stored = preprocess.store(picture, name=path)
                images[start + index] = stored
                found = [*notes_on(picture, path), *(["one_colour"] if is_one_colour(stored, preprocess.fit) else [])]
                notes += [[start + index, note] for note in found]
                pixel_digests[index] = digests[index] if "one_colour" in found else digest_of(stored)
            except ImageError as error:
                problems.append([start + index, error.problem, str(error)])
            except MemoryError:
                # no fault of the image: quarantined, it would be missed for ever
                raise DataError(
                    f"memory does not suffice to decode {shown(path)}. Free some, or give fewer workers."
                ) from None
    return start, digests, pixel_digests, problems, notes


def notes_on(picture: Picture, path: str) -> list[str]:
    """What the audit is to tell of a decoded file."""
    found = list(picture.notes)
    if mismatch(path, picture.kind):
        found.append(f"extension_mismatch {picture.kind}")
    if picture.white is not None:
        found.append(f"white {picture.white}")
    return found


def is_one_colour(stored_HWC: np.ndarray, fit: str = "crop") -> bool:
    """Whether all pixels are the same but for 2 of 255, in each channel; margins of a padded image do not count."""
    if fit == "pad":
        inside = (stored_HWC != PAD).any(-1)
        stored_HWC = stored_HWC[inside.any(1)][:, inside.any(0)]
        if not stored_HWC.size:
            return True
    # most images are told by two of their pixels
    for first, last in zip(stored_HWC[0, 0].tolist(), stored_HWC[-1, -1].tolist(), strict=True):
        if abs(first - last) > 2:
            return False
    flat = stored_HWC.reshape(-1, stored_HWC.shape[-1])
    some = flat[:: max(1, len(flat) // 16)]
    return all((pixels.max(0) - pixels.min(0)).max() <= 2 for pixels in (some, flat))


def digest_of(array: np.ndarray) -> str:
    """blake2b-128, hexadecimal."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def _start_children(
    count: int, preprocess: Preprocess, pixels: Path, kernels: Path | None = None
) -> list[subprocess.Popen[str]]:
    """Children that wait for blocks; none where the system lets no more processes start."""
    job = json.dumps([str(folder) for folder in sys.path]) + "\n"
    facts = {
        "preprocess": preprocess.to_dict(),
        "pixels": os.fspath(pixels),
        "kernels": _for_all(kernels),
        "processes": count,
    }
    job += json.dumps(facts) + "\n"
    children: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            children.append(
                subprocess.Popen(
                    # -P: a user's numpy.py in the current folder is not meant
                    [sys.executable, "-P", "-c", CHILD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    # Ctrl-C in a terminal reaches a whole group: the parent ends its children itself
                    process_group=0,
                    creationflags=systems.NEW_GROUP,
                )
            )
        for child in children:
            assert child.stdin is not None
            child.stdin.write(job)
    except BaseException as error:
        _stop(children)
        if isinstance(error, OSError):
            return []
        raise
    return children


def _for_all(kernels: Path | None) -> str | None:
    """The folder that all children take, each of which would otherwise build in a private one of its own."""
    try:
        return None if kernels is None else os.fspath(trusted_folder(kernels))
    except (OSError, KernelError) as error:
        say_once(f"the kernel that resizes photos is not used, Pillow does its work: {error}")
        return None


def _stop(children: Sequence[subprocess.Popen[str]]) -> None:
    for child in children:
        child.kill()
        child.wait()


def _run_processes(
    children: list[subprocess.Popen[str]], blocks: list[Block], collect: Callable[[Answer], None]
) -> None:
    todo: Queue[Block] = Queue()
    for block in blocks:
        todo.put(block)
    done: Queue[Answer | DataError] = Queue()
    servers = [threading.Thread(target=_supply, args=(child, todo, done), daemon=True) for child in children]
    try:
        for server in servers:
            server.start()
        for _ in blocks:
            answer = done.get()
            if isinstance(answer, DataError):
                raise answer
            collect(answer)
    finally:
        _stop(children)
        for server in servers:
            if server.ident is not None:
                server.join()
        for child in children:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _supply(child: subprocess.Popen[str], todo: Queue[Block], done: Queue[Answer | DataError]) -> None:
    """Hand blocks to one child until none is left."""
    assert child.stdin is not None
    assert child.stdout is not None
    waiting = 0
    try:
        while True:
            with contextlib.suppress(Empty):
                while waiting < AHEAD:
                    child.stdin.write(json.dumps(todo.get_nowait()) + "\n")
                    waiting += 1
            if not waiting:
                return
            child.stdin.flush()
            line = child.stdout.readline()
            if not line:
                raise EOFError
            answer = json.loads(line)
            done.put(DataError(answer) if isinstance(answer, str) else answer)
            waiting -= 1
    except Exception:
        # into the queue, for the thread that waits there
        done.put(DataError(f"a decoding worker died ({_end_of(child)}). Is memory short? Free some and try again."))


def _end_of(child: subprocess.Popen[str]) -> str:
    try:
        status = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it does not answer"
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


def serve() -> None:
    """The life of a child: a job, then blocks until the parent ends it."""
    # what a library prints must not come between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    preprocess = Preprocess.from_dict(job["preprocess"])
    images = np.load(job["pixels"], mmap_mode="r+")
    share_memory(job["processes"], [systems.Turn(os.path.dirname(job["pixels"])), systems.Turn(job["pixels"])])  # noqa: PTH120
    if job["kernels"]:
        use_fast_resize(Path(job["kernels"]))
    blocks: Queue[str] = Queue()

    def listen() -> None:
        for line in sys.stdin:
            blocks.put(line)
        # the parent is gone
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        start, paths = json.loads(blocks.get())
        try:
            answer: Answer | str = _decode_block((start, paths), preprocess, images)
        except DataError as error:
            answer = str(error)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
