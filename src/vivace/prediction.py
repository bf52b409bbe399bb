"""vivace.predict: a bundle and images → predictions, with the very pixels that training saw."""

from __future__ import annotations

import glob
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from vivace.bundle import Bundle, load_bundle
from vivace.data.decode import EXTENSIONS
from vivace.errors import DataError, ImageError
from vivace.hardware import keep_freed_memory, num_cpus, select_device, supported_precisions
from vivace.runtimes import load_runtime

__all__ = ["Failure", "Prediction", "Predictions", "Predictor", "expand_paths", "predict"]


class Predictor:
    """A bundle loaded once, to classify many images.

    device: auto, cpu, cuda or cuda:N. precision: fp32, bf16, fp16, or auto: the one that the bundle's metrics were
    measured with, where the device has it.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        device: str = "auto",
        batch_size: int = 64,
        precision: str = "auto",
        runtime: str = "eager",
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.batch_size = batch_size
        self.device = select_device(device)
        if precision == "auto":
            measured = self.bundle.info.precision
            precision = measured if measured in supported_precisions(self.device) else "fp32"
        self.precision = precision
        keep_freed_memory()
        self._classify = load_runtime(runtime, self.bundle, device=self.device, precision=precision)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    def probs(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Probabilities float32 [N, K] of uint8 images [N, size, size, C], as `Preprocess.load` gives them."""
        size, channels = self.bundle.preprocess.size, self.bundle.preprocess.channels
        if images_NHWC.dtype != np.uint8 or images_NHWC.shape[1:] != (size, size, channels):
            raise DataError(
                f"images must be uint8 [N, {size}, {size}, {channels}]: got {images_NHWC.dtype} "
                f"{list(images_NHWC.shape)}. Use bundle.preprocess.load."
            )
        parts = [
            self._classify(images_NHWC[start : start + self.batch_size])
            for start in range(0, len(images_NHWC), self.batch_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)


@dataclass(frozen=True)
class Prediction:
    """One image's result."""

    path: str
    label: str
    probability: float
    topk: tuple[tuple[str, float], ...]
    """(class, probability), the likeliest first."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be classified."""

    path: str
    problem: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """All results, in the order of the paths."""

    rows: tuple[Prediction, ...]
    failures: tuple[Failure, ...]
    classes: tuple[str, ...]
    seconds: float
    """Decoding and classifying, without loading the bundle."""
    images_per_second: float


def predict(
    bundle: Bundle | Predictor | str | Path,
    paths: str | Path | Iterable[str | Path],
    *,
    topk: int = 5,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Classify images: files, folders (all images below them), globs, or "-" for a list of paths on stdin.

    Bad images are reported in `failures` and do not stop the others. Raises DataError when nothing is found, and what
    loading the bundle raises.
    """
    predictor = (
        bundle
        if isinstance(bundle, Predictor)
        else Predictor(bundle, device=device, batch_size=batch_size, precision=precision)
    )
    files = expand_paths([paths] if isinstance(paths, str | Path) else paths)
    classes = predictor.classes
    topk = min(topk, len(classes))
    rows: list[Prediction] = []
    failures: list[Failure] = []
    started = time.perf_counter()
    for chunk, results in _decoded(files, predictor):
        good = [(path, result) for path, result in zip(chunk, results, strict=True) if isinstance(result, np.ndarray)]
        failures += [
            Failure(path, result.problem, str(result))
            for path, result in zip(chunk, results, strict=True)
            if isinstance(result, ImageError)
        ]
        if good:
            probs = predictor.probs(np.stack([pixels for _, pixels in good]))
            rows += [_row(path, row, classes, topk) for (path, _), row in zip(good, probs, strict=True)]
        progress(len(rows) + len(failures), len(files))
    seconds = time.perf_counter() - started
    return Predictions(
        rows=tuple(rows),
        failures=tuple(failures),
        classes=classes,
        seconds=seconds,
        images_per_second=len(rows) / max(seconds, 1e-9),
    )


def _row(path: str, probs_K: np.ndarray, classes: Sequence[str], topk: int) -> Prediction:
    # a stable sort: equal probabilities in the order of the classes
    best = np.argsort(-probs_K, kind="stable")[:topk]
    ranked = tuple((classes[index], float(probs_K[index])) for index in best)
    return Prediction(path, ranked[0][0], ranked[0][1], ranked)


def _decoded(files: Sequence[str], predictor: Predictor) -> Iterator[tuple[list[str], list[np.ndarray | ImageError]]]:
    """Chunks of files with their pixels or errors; threads decode the next chunk while the network has this one."""
    load = predictor.bundle.preprocess.load

    def pixels(path: str) -> np.ndarray | ImageError:
        try:
            return load(path)
        except ImageError as error:
            return error

    chunks = iter([list(files[i : i + predictor.batch_size]) for i in range(0, len(files), predictor.batch_size)])
    with ThreadPoolExecutor(max(2, num_cpus())) as pool:
        # two chunks ahead: enough to keep the network busy, and memory bounded however many files there are
        pending = [(chunk, [pool.submit(pixels, path) for path in chunk]) for chunk in islice(chunks, 2)]
        while pending:
            chunk, futures = pending.pop(0)
            results = [future.result() for future in futures]
            following = next(chunks, None)
            if following is not None:
                pending.append((following, [pool.submit(pixels, path) for path in following]))
            yield chunk, results


def expand_paths(paths: Iterable[str | Path], *, stdin: TextIO | None = None) -> list[str]:
    """The files behind paths: a folder's images, a glob's matches, stdin's lines for "-". Raises DataError if none.

    A file that was named itself is taken whatever its extension, even if it is not there: it is then a failure.
    """
    files: list[str] = []
    for given in paths:
        path = os.fspath(given)
        if path == "-":
            files += [line.rstrip("\n") for line in (stdin or sys.stdin) if line.strip()]
        elif os.path.isdir(path):  # noqa: PTH112
            files += _images_below(path)
        elif glob.has_magic(path) and not os.path.exists(path):  # noqa: PTH110
            files += sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))  # noqa: PTH113, PTH207
        else:
            files.append(path)
    if not files:
        raise DataError(
            f"there are no images in {', '.join(map(str, paths))}. Give files, folders, globs, or - for stdin."
        )
    return files


def _images_below(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):  # noqa: PTH122
                found.append(os.path.join(parent, name))  # noqa: PTH118
    return found
