"""Parallel decoding: worker processes read files and write pixels directly into a memory map.

The workers are plain Python processes with pipes rather than multiprocessing: that avoids forking a process that may
have torch's threads, running a user's script again if it lacks a `__main__` guard, and importing torch in the workers.
A worker whose parent died (its stdin ends) exits at once, even in the middle of an image. Small data sets are decoded
by threads: Pillow releases the GIL while it decodes and resizes.
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
# small blocks cost a pipe round trip each; large ones make the progress jumpy and leave workers idle at the end
MAX_BLOCK = 100
# blocks queued at a worker, so that it stays busy while the parent holds the GIL to import torch
AHEAD = 2
EMPTY_DIGEST = "0" * 32
# the parent's sys.path is appended to the child's, in case vivace can only be found there
CHILD = (
    "import json, sys; sys.path.extend(p for p in json.loads(sys.stdin.readline()) if p not in sys.path); "
    "from vivace.data.workers import serve; serve()"
)

Block = tuple[int, list[str]]
# start, digests, digests of pixels, [[position, problem, message], …], [[position, note], …]
Answer = tuple[int, list[str], list[str], list[list[Any]], list[list[Any]]]


@dataclass
class Decoded:
    """The results of decoding a split, besides the pixels."""

    digests: list[str]
    """blake2b-128 of each file's bytes, hexadecimal."""
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Position → (problem, message) of the unusable images; their pixels stay 0."""
    pixel_digests: list[str] = field(default_factory=list)
    """blake2b-128 of the stored pixels, hexadecimal; for images of a single colour that of the file."""
    notes: dict[int, list[str]] = field(default_factory=dict)
    """Position → notes for the audit on a usable image, such as one_colour or extension_mismatch."""


def decode_files(
    paths: Sequence[str],
    preprocess: Preprocess,
    pixels: Path,
    *,
    num_workers: int | None = None,
    kernels: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Decoded:
    """Decode `paths` into the existing .npy file `pixels`, [N, store_size, store_size, C].

    kernels: the folder of our compiled resizing kernel, which is used for large data sets; None: Pillow resizes.
    progress: called with the number of newly decoded images. Raises DataError if a worker dies or memory runs out.
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
        # also on Ctrl-C: blocks that have not started are cancelled
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
                # not the image's fault: if it were quarantined, the cache would lack it from now on
                raise DataError(
                    f"not enough memory to decode {shown(path)}. Free some, or use fewer workers."
                ) from None
    return start, digests, pixel_digests, problems, notes


def notes_on(picture: Picture, path: str) -> list[str]:
    """Notes on a decoded file for the audit."""
    found = list(picture.notes)
    if mismatch(path, picture.kind):
        found.append(f"extension_mismatch {picture.kind}")
    if picture.white is not None:
        found.append(f"white {picture.white}")
    return found


def is_one_colour(stored_HWC: np.ndarray, fit: str = "crop") -> bool:
    """Whether each channel varies by at most 2 of 255 over the image, not counting the margins of a padded one.

    Of 16 bits and floats, whether it does not vary at all: what is little on their scale is not known.
    """
    if stored_HWC.dtype != np.uint8:
        return bool((stored_HWC == stored_HWC[:1, :1]).all())
    if fit == "pad":
        inside = (stored_HWC != PAD).any(-1)
        stored_HWC = stored_HWC[inside.any(1)][:, inside.any(0)]
        if not stored_HWC.size:
            return True
    # for most images two pixels already decide
    for first, last in zip(stored_HWC[0, 0].tolist(), stored_HWC[-1, -1].tolist(), strict=True):
        if abs(first - last) > 2:
            return False
    flat = stored_HWC.reshape(-1, stored_HWC.shape[-1])
    sample = flat[:: max(1, len(flat) // 16)]
    return all((pixels.max(0) - pixels.min(0)).max() <= 2 for pixels in (sample, flat))


def digest_of(array: np.ndarray) -> str:
    """The blake2b-128 of an array's bytes, hexadecimal."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def _start_children(
    count: int, preprocess: Preprocess, pixels: Path, kernels: Path | None = None
) -> list[subprocess.Popen[str]]:
    """Worker processes that wait for blocks; none if the system can start no more processes."""
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
                    # -P: don't import a user's numpy.py from the current folder
                    [sys.executable, "-P", "-c", CHILD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    # Ctrl-C in a terminal reaches the whole process group; the parent ends its workers itself
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
    """The kernel folder for all workers; without one each worker would build in its own private folder."""
    try:
        return None if kernels is None else os.fspath(trusted_folder(kernels))
    except (OSError, KernelError) as error:
        say_once(f"the resizing kernel is not used; Pillow resizes instead: {error}")
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
    """Feed blocks to one worker until none are left."""
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
        # the main thread waits at the queue and raises it
        done.put(DataError(f"a decoding worker died ({_end_of(child)}). If memory is short, free some, and try again."))


def _end_of(child: subprocess.Popen[str]) -> str:
    try:
        status = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it does not respond"
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


def serve() -> None:
    """The main loop of a worker: reads the job, then decodes blocks until the parent ends it."""
    # stdout is for answers only: whatever a library prints goes to stderr
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    preprocess = Preprocess.from_dict(job["preprocess"])
    images = np.load(job["pixels"], mmap_mode="r+")
    share_memory(job["processes"], [systems.FileLock(os.path.dirname(job["pixels"])), systems.FileLock(job["pixels"])])  # noqa: PTH120
    if job["kernels"]:
        use_fast_resize(Path(job["kernels"]))
    blocks: Queue[str] = Queue()

    def listen() -> None:
        for line in sys.stdin:
            blocks.put(line)
        # the parent has exited
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
