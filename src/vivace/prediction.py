"""vivace.predict: a bundle and images → predictions, with the very pixels that training saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from vivace.bundle import Bundle
from vivace.cachedir import default_cache_dir
from vivace.errors import DataError, ImageError
from vivace.inputs import loaded
from vivace.kernels.resize import use_fast_resize
from vivace.predictor import Prediction, Predictor, check_whole, predictor_for
from vivace.sources.paths import expand_paths, folders_of, without_repeats

__all__ = [
    "Failure",
    "Prediction",
    "Predictions",
    "Predictor",
    "decoded",
    "expand_paths",
    "folders_of",
    "predict",
    "predict_files",
    "predictor_for",
    "without_repeats",
]

# below this number of images building a kernel to resize them may cost more than it saves
MANY_IMAGES = 2000


@dataclass(frozen=True)
class Failure:
    """An image that could not be classified."""

    path: str
    problem: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """All results, in the order of the paths; as a sequence, its rows: what could be classified."""

    rows: tuple[Prediction, ...]
    failures: tuple[Failure, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    """Whether an image has a set of labels."""
    passed_over: tuple[str, ...] = ()
    """Files below the folders that were no images, by extension and content; folders of the system end in a slash."""
    seconds: float
    """Decoding and classifying, without loading the bundle."""
    images_per_second: float

    def __len__(self) -> int:
        """Number of images that were classified."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Prediction]:
        """The predictions, in the order of the paths."""
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        """A prediction by its position, or several."""
        return self.rows[index]

    def __bool__(self) -> bool:
        """True, even if nothing could be classified: `failures` says why."""
        return True


def predict(
    bundle: Bundle | Predictor | str | Path,
    paths: str | Path | Iterable[str | Path],
    *,
    topk: int = 5,
    batch_size: int = 64,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    coverage: float | None = None,
    abstain: float | None = None,
    heat_maps: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Classify images: files, folders (all images below them), globs, or "-" for a list of paths on stdin.

    topk: classes per image, at most all. batch_size: images per forward pass. threads: processors to use; None:
    all. coverage, abstain: as for `Predictor`. A predictor keeps its own. heat_maps: a folder for a picture of each
    image beside the places that speak for its class, made as by `vivace.heat_maps`.
    Bad images are reported in `failures` and do not stop the others. Raises DataError when nothing is found, and what
    `Predictor` raises.
    """
    check_whole("topk", topk)
    if isinstance(paths, bytes) or not isinstance(paths, str | Path | Iterable):
        raise DataError(f"paths are no names of files: got {type(paths).__name__}. Give a path, or a list of them.")
    predictor = predictor_for(bundle, device, batch_size, precision, threads, coverage=coverage, abstain=abstain)
    passed_over: list[str] = []
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files = expand_paths(given, passed_over=passed_over)
    return predict_files(
        predictor,
        files,
        topk=topk,
        passed_over=passed_over,
        heat_maps=heat_maps,
        folders=folders_of(given),
        progress=progress,
    )


def predict_files(
    predictor: Predictor,
    files: Sequence[str],
    *,
    topk: int = 5,
    passed_over: Iterable[str] = (),
    heat_maps: str | Path | None = None,
    folders: Sequence[Path] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """`predict` for files that `expand_paths` found, whatever their names.

    passed_over: what it added there. folders: those that files were looked for in, which must not contain `heat_maps`.
    """
    check_whole("topk", topk)
    draw = None
    if heat_maps is not None:
        # it needs torch, which a graph's runtime does without
        from vivace.heatmaps.drawn import Drawing

        draw = Drawing(heat_maps, predictor, files, folders)
    classes = predictor.classes
    if len(files) >= MANY_IMAGES:
        use_fast_resize(default_cache_dir() / "kernels")
    rows: list[Prediction] = []
    failures: list[Failure] = []
    started = time.perf_counter()
    for chunk, results in decoded(files, predictor):
        good = [(path, result) for path, result in zip(chunk, results, strict=True) if isinstance(result, np.ndarray)]
        failures += [
            Failure(path, result.problem, str(result))
            for path, result in zip(chunk, results, strict=True)
            if isinstance(result, ImageError)
        ]
        if good:
            images_NHWC = np.stack([pixels for _, pixels in good])
            found = predictor.predictions_of([path for path, _ in good], images_NHWC, topk)
            rows += found if draw is None else draw.with_pictures(found, images_NHWC)
        progress(len(rows) + len(failures), len(files))
    seconds = time.perf_counter() - started
    return Predictions(
        rows=tuple(rows),
        failures=tuple(failures),
        classes=classes,
        multi_label=predictor.bundle.info.multi_label,
        passed_over=tuple(passed_over),
        seconds=seconds,
        images_per_second=len(rows) / max(seconds, 1e-9),
    )


def decoded(files: Sequence[str], predictor: Predictor) -> Iterator[tuple[list[str], list[np.ndarray | ImageError]]]:
    """Chunks of files with their pixels or errors; threads decode the next chunk while the network has this one."""
    load = predictor.bundle.preprocess.load

    def pixels(path: str) -> np.ndarray | ImageError:
        try:
            return load(path)
        except ImageError as error:
            return error
        except ValueError as error:
            # no file can have such a name: a zero byte, or a character that has no bytes
            return ImageError(f"the name is no file's: {path!r} ({error}). Correct it.", problem="unreadable")

    if len(files) == 1:
        yield [files[0]], [pixels(files[0])]
        return
    yield from loaded(files, pixels, batch_size=predictor.batch_size, workers=predictor.workers)
