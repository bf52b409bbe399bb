"""vivace.predict: a bundle and images → predictions, with the very pixels that training saw."""

from __future__ import annotations

import glob
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from vivace.bundle import Bundle
from vivace.cachedir import default_cache_dir
from vivace.data.layouts.listing import is_candidate, unreadable_folder
from vivace.data.layouts.splitnames import is_system
from vivace.errors import DataError, ImageError
from vivace.inputs import loaded
from vivace.kernels.resize import use_fast_resize
from vivace.predictor import Prediction, Predictor, check_whole, predictor_for

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


def expand_paths(
    paths: Iterable[str | Path], *, stdin: BinaryIO | None = None, passed_over: list[str] | None = None
) -> list[str]:
    """The files behind paths: a folder's images, a glob's matches, stdin's lines for "-"; in the order given.

    Lines of stdin may end in a zero byte instead (find -print0), for names that hold newlines. Below folders, files
    count that are images by extension or content; links to folders, hidden ones and those of the system are not
    followed. What is not taken is added to `passed_over`. A file that was
    named itself is taken whatever its extension, even if it is not there: it is then a failure.
    Raises DataError if there is nothing behind one of the paths, or a folder can't be read.
    """
    files: list[str] = []
    left = [] if passed_over is None else passed_over
    for given in paths:
        if not isinstance(given, str | bytes | os.PathLike):
            raise DataError(
                f"a path is not the name of a file: got {type(given).__name__}. Give text or a pathlib.Path."
            )
        # bytes that are no UTF-8 become surrogates, and bytes again when the file is opened
        path = os.fsdecode(given)
        if path == "-":
            found = _named(_listed(sys.stdin.buffer if stdin is None else stdin), left)
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
            found = _named((match for match in matches if os.path.isfile(match) or os.path.isdir(match)), left)  # noqa: PTH112, PTH113
        else:
            found = _named([path], left)
        if not found:
            raise DataError(f"there are no images in {path!r}. Give files, folders, globs, or - for a list on stdin.")
        files += found
    if not files:
        raise DataError("no images are named: got an empty list. Give files, folders, globs, or - for a list on stdin.")
    return files


def folders_of(paths: Iterable[str | Path]) -> list[Path]:
    """The folders among paths."""
    return [Path(path) for path in paths if os.path.isdir(path)]  # noqa: PTH112


def without_repeats(files: Iterable[str]) -> list[str]:
    """Each file once, at its first position: a file may be named itself and lie in a folder or glob as well."""
    first: dict[str, str] = {}
    for file in files:
        first.setdefault(os.path.abspath(file), file)  # noqa: PTH100 (a million names)
    return list(first.values())


def _listed(stdin: BinaryIO) -> list[str]:
    listing = stdin.read()
    lines = listing.split(b"\0") if b"\0" in listing else [line.removesuffix(b"\r") for line in listing.split(b"\n")]
    return [os.fsdecode(line) for line in lines if line]


def _named(paths: Iterable[str], left: list[str]) -> list[str]:
    return [file for path in paths for file in (_images_below(path, left) if os.path.isdir(path) else [path])]  # noqa: PTH112


def _images_below(folder: str, left: list[str]) -> list[str]:
    def refuse(error: OSError) -> None:
        raise unreadable_folder(error.filename, error)

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        left += [os.path.join(parent, name, "") for name in folders if is_system(name)]  # noqa: PTH118
        folders[:] = sorted(name for name in folders if not is_system(name))
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118
            if is_system(name):
                continue
            # reading a pipe would wait for ever; a link that leads nowhere is reported as a failure
            if is_candidate(path) and (os.path.isfile(path) or not os.path.exists(path)):  # noqa: PTH110, PTH113
                found.append(path)
            else:
                left.append(path)
    return found
