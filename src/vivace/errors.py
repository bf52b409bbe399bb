"""All errors that vivace raises on purpose.

    VivaceError                    exit status 1
    ├── InputError                 exit status 2: input refused before work begins
    │   ├── ConfigError            a recipe, an option or a YAML file
    │   ├── DataError              a folder, manifest, archive or data set name
    │   │   ├── ImageError         one image file; `problem` is a short name of the fault
    │   │   ├── ArchiveError       a zip or tar that is unsafe or damaged
    │   │   ├── DownloadError      no network, or a wrong checksum
    │   │   └── CacheMismatch      the cache and the files disagree
    │   ├── ModelError             an unknown network, or weights that do not fit it
    │   ├── CheckpointError        a checkpoint that is damaged, missing or of another run
    │   ├── BundleError            a bundle that is damaged, newer or unsafe
    │   ├── RunFolderError         a run folder that is locked or can't be written
    │   ├── OutputPathError        an output that can't be written, or would replace what vivace did not write
    │   ├── KernelError            our C kernels can't be built here
    │   └── MissingExtra           an optional library that is not installed
    ├── CacheDamaged               the cache of images was damaged while it was read
    ├── ExportError                a network that can't be exported to another runtime
    ├── ParityError                another variant of a model predicts differently from the model
    ├── OutOfTime                  work that was abandoned because its time budget was exhausted
    ├── OutputError                stdout that can't be written
    ├── TrainingError              training could not continue
    │   ├── NonFiniteError         NaN or Inf that persisted
    │   └── OutOfMemoryError       even a micro-batch of one image does not fit
    └── Interrupted                SIGINT or SIGTERM; exit status 130 or 143

A message is one line: the cause, the value received, and how to fix it. Parameters are in backquotes, alone or with a
value: `max_drop`, `resume=True`; the command line shows them as its options (`cli/wording.py`).
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = [
    "ArchiveError",
    "BundleError",
    "CacheDamaged",
    "CacheMismatch",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "ExportError",
    "ImageError",
    "InputError",
    "Interrupted",
    "KernelError",
    "MissingExtra",
    "ModelError",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutOfTime",
    "OutputError",
    "OutputPathError",
    "ParityError",
    "RunFolderError",
    "TrainingError",
    "VivaceError",
    "did_you_mean",
    "first_line",
    "nearest",
    "nearest_path",
    "one_line",
    "printable",
    "shown",
    "text_of",
]


MAX_MESSAGE = 500
# what OpenVINO says before what went wrong
PLACE = re.compile(r"Exception from \S+:\d+:")
# characters kept at the end of a shortened message, which says how to fix the error
KEPT_AT_END = 150
# longer names are no typos, and comparing them takes long
MAX_NAME = 100
MAX_SCORE_GAP = 0.2
# a folder of a data set may have a million files
MAX_BESIDE = 2_000


class VivaceError(Exception):
    """Base of all errors raised on purpose. Its text is one line, safe for any terminal."""

    exit_status = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(VivaceError):
    """Input from the user was refused before work began."""

    exit_status = 2


class ConfigError(InputError):
    """A recipe, an option or a YAML file is wrong."""


class DataError(InputError):
    """A folder, manifest, archive or data set name is wrong."""


class ImageError(DataError):
    """One image can't be used; `problem` is a short name of the fault such as "truncated"."""

    def __init__(self, message: str, *, problem: str) -> None:
        super().__init__(message)
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle gives no keywords by itself
        return functools.partial(type(self), problem=self.problem), self.args


class ArchiveError(DataError):
    """A zip or tar is unsafe to unpack, or damaged."""


class DownloadError(DataError):
    """A data set could not be fetched, or its checksum is wrong."""


class CacheMismatch(DataError):
    """The cache and the files that it was made from disagree."""


class ModelError(InputError):
    """An unknown network, or weights that do not fit it."""


class CheckpointError(InputError):
    """A checkpoint is damaged or missing, or belongs to another run."""


class BundleError(InputError):
    """A bundle is damaged, newer than this version or unsafe."""


class RunFolderError(InputError):
    """A run folder is locked by another run or can't be written."""


class OutputPathError(InputError):
    """An output can't be written there, or would replace something that vivace did not write."""


class KernelError(InputError):
    """Our C kernels can't be built on this machine."""


class MissingExtra(InputError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {library}, which is not installed. Install it: pip install 'vivace[{extra}]'"
        )


class CacheDamaged(VivaceError):
    """The cache of decoded images was truncated or became unreadable while it was in use."""


class ExportError(VivaceError):
    """A network can't be exported to another runtime, for example because that lacks an operator."""


class ParityError(VivaceError):
    """Another variant of a model predicts differently from the PyTorch model."""


class OutOfTime(VivaceError):
    """Work was abandoned because its time budget was exhausted."""


class OutputError(VivaceError):
    """The result can't be written to stdout."""


class TrainingError(VivaceError):
    """Training could not continue."""


class NonFiniteError(TrainingError):
    """The loss or a gradient stayed NaN or Inf after bounded retries."""


class OutOfMemoryError(TrainingError):
    """Even the smallest micro-batch does not fit in memory."""


class CallbackError(TrainingError):
    """A callback raised an exception, which is the cause of this one; the state was saved first."""


class Interrupted(VivaceError):
    """A signal asked the run to stop; the state was saved first."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """A hint such as " Did you mean 'cosine'?", with up to `limit` similar names; "" if nothing known is similar."""
    return did_you_mean(_similar(str(name), known, limit))


def nearest_path(path: Path, fits: Callable[[Path], bool], *, known: Iterable[str] = (), limit: int = 2) -> str:
    """A hint with paths beside `path` of a similar name that `fits`, then with similar names of `known`; or ""."""
    try:
        beside = [other.name for other in itertools.islice(path.parent.iterdir(), MAX_BESIDE) if fits(other)]
    except (OSError, ValueError):
        beside = []
    found = [str(path.parent / name) for name in _similar(path.name, beside, limit)]
    return did_you_mean([*found, *_similar(str(path), known, limit)])


def did_you_mean(names: Iterable[str]) -> str:
    """Such as " Did you mean 'cosine'?"; "" for no names."""
    said = " or ".join(map(repr, dict.fromkeys(names)))
    return f" Did you mean {said}?" if said else ""


def _similar(name: str, known: Iterable[str], limit: int) -> list[str]:
    """Up to `limit` of `known` that are spelt like `name`, the nearest first."""
    if len(name) > MAX_NAME:
        return []
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=limit, cutoff=0.5)
    if not matches:
        return []
    scores = [difflib.SequenceMatcher(None, match, name.lower()).ratio() for match in matches]
    # beside a very near one, those that share half of their letters are no help
    near = [match for match, score in zip(matches, scores, strict=True) if score > max(scores) - MAX_SCORE_GAP]
    return [lowered[match] for match in near]


def first_line(error: BaseException | str) -> str:
    """The first line of an error's message that says what went wrong; the type if there is no message.

    Libraries raise messages as long as a page, and OpenVINO begins them with the place in its own source.
    """
    lines = [line for line in text_of(error).splitlines() if line.strip()]
    return next((line for line in lines if not PLACE.fullmatch(line.strip())), (lines or [type(error).__name__])[0])


def text_of(error: BaseException | str) -> str:
    """An error's message; "" where the error fails to tell it, since such a failure must not replace the error."""
    try:
        return str(error)
    except Exception:
        return ""


def shown(value: object, *, limit: int = 80) -> str:
    """The start of `repr(value)`; the type where that fails."""
    try:
        return repr(value)[:limit]
    except Exception:
        return f"a {type(value).__name__}"


def one_line(text: str, *, limit: int = MAX_MESSAGE) -> str:
    """`text` on one line of at most `limit` characters, shortened in the middle, with control characters escaped.

    Names of files and classes in it may hold newlines and control characters, and be of any length.
    """
    # cut first, so that only what is shown is escaped
    ends = text if len(text) <= 4 * limit else f"{text[: 2 * limit]} … {text[-2 * limit :]}"
    shown = printable(" ".join(ends.split()))
    if len(shown) <= limit:
        return shown
    return f"{shown[: limit - KEPT_AT_END - 3]} … {shown[-KEPT_AT_END:]}"


def printable(text: str) -> str:
    """`text` with all non-printable characters escaped: newlines, ESC, marks that change the text direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
