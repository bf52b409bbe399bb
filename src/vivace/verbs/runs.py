"""vivace.runs: the training runs in a folder, with what each gave (no torch here). Nothing is locked or changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vivace.errors import BundleError, ConfigError, RunFolderError, first_line
from vivace.files import read_regular
from vivace.manifest import check_files, holds_bundle, read_manifest
from vivace.owned import own_file
from vivace.plain import parse_json, parse_yaml

__all__ = ["Run", "Runs", "read_run", "runs"]

# facts, a recipe and a result are some kilobytes
MAX_BYTES = 2**20
# of a name in them, which is kept for every run; a path has no more
MAX_TEXT = 4096
# of epochs and seconds
MAX_NUMBER = 1e9
FIX = "Restore it from a copy, or train again"
# by these a folder is known as a run's; training writes the recipe last before its first step
SIGNS = ("recipe.yaml", "run.json")
# what is said where the files of the run are sound
NO_BUNDLE = "its bundle is missing"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run. What is not known is None."""

    path: Path
    status: str
    """finished; unfinished: it is running or was stopped; or damaged."""
    problem: str | None = None
    """Why it is damaged, or that it is unfinished and how it goes on."""
    data: str | None = None
    """Name of the data set."""
    place: str | None = None
    """Where the data lay; None: they are known by name."""
    file: str | None = None
    """The table or archive that was given, where it was one."""
    fingerprint: str | None = None
    """Of the data: equal for equal images, labels and pixels."""
    recipe: str | None = None
    model: str | None = None
    val_top1: float | None = None
    """Fraction, as `test_top1`."""
    test_top1: float | None = None
    val_map: float | None = None
    """Mean average precision, of sets of labels, in place of `val_top1`."""
    test_map: float | None = None
    epochs: float | None = None
    seconds: float | None = None
    """Process start to saved bundle."""
    bytes: int | None = None
    """Size of the bundle's files."""
    finished: str | None = None
    """When, UTC, ISO 8601."""

    @property
    def where(self) -> str | None:
        """What was given as its data: a table or an archive, else a folder; None as for `place`."""
        return self.file or self.place

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs in a folder, the one that finished last first."""

    folder: Path
    runs: tuple[Run, ...]
    passed_over: tuple[str, ...] = ()
    """Names in the folder that are no runs, or links."""

    def __iter__(self) -> Any:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [run.to_dict() for run in self.runs]
        return {"folder": str(self.folder), "runs": rows, "passed_over": list(self.passed_over)}


def runs(folder: str | Path = "runs") -> Runs:
    """The runs in a folder, or the one that it is; the one that finished last comes first, unfinished ones at the end.

    Damaged and unfinished runs are among them, with their problem; what is no run is named in `passed_over`.
    Raises RunFolderError if the folder can't be read.
    """
    if not isinstance(folder, str | Path) or "\0" in str(folder):
        raise RunFolderError(f"not a folder of runs: got {folder!r:.200}. Give its path.")
    folder = Path(folder)
    try:
        if _is_run(folder):
            return Runs(folder=folder, runs=(read_run(folder),))
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise RunFolderError(
            f"there are no runs in {folder}: {error.strerror or error}. Name the folder that holds them: vivace train "
            "writes into runs, below the folder that it is called in."
        ) from None
    # a link may lead to any folder, and only this one was given
    found = [read_run(entry) for entry in entries if _is_run(entry) and not entry.is_symlink()]
    others = tuple(
        entry.name for entry in entries if (entry.is_symlink() or not _is_run(entry)) and not _is_ours(entry)
    )
    found.sort(key=lambda run: (run.status == "finished", run.finished or "", run.path.name), reverse=True)
    return Runs(folder=folder, runs=tuple(found), passed_over=others)


def _is_run(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in SIGNS)
    except OSError:
        return False


def _is_ours(entry: Path) -> bool:
    """Whether it is hidden, or a report that vivace wrote beside the runs."""
    return entry.name.startswith(".") or (entry.name.endswith(("-receipt.json", "-report.html")) and own_file(entry))


def read_run(folder: Path) -> Run:
    """A run, from its files. Raises nothing: a run whose files can't be read is damaged.

    Of the bundle the manifest and the sizes of the files are checked, not their hashes.
    """
    told: dict[str, Any] = {}
    problem = None
    for read in (_facts, _recipe, _result):
        try:
            told |= read(folder)
        except FileNotFoundError as error:
            problem = problem or f"{Path(error.filename).name} is missing"
        except (OSError, ConfigError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            problem = problem or reason.replace(f"{folder}/", "")
    if problem is None:
        problem = _bundle_problem(folder)
    if problem is None:
        return Run(path=folder, status="finished", bytes=_bundle_bytes(folder), **told)
    if problem == "result.json is missing" and "recipe" in told and "data" in told:
        return Run(path=folder, status="unfinished", problem="it is running, or was stopped", **told)
    return Run(path=folder, status="damaged", problem=problem, **told)


def _facts(folder: Path) -> dict[str, Any]:
    data = _mapping(_json(folder / "run.json").get("data"), "run.json", "data")
    return {
        "data": _value(data, "name", str, "run.json"),
        "place": _value(data, "place", str, "run.json", may_lack=True),
        "file": _value(data, "file", str, "run.json", may_lack=True),
        "fingerprint": _value(data, "fingerprint", str, "run.json"),
    }


def _recipe(folder: Path) -> dict[str, Any]:
    text = read_regular(folder / "recipe.yaml", MAX_BYTES).decode("utf-8", "strict")
    recipe = _mapping(parse_yaml(text, "recipe.yaml"), "recipe.yaml", "a recipe")
    model = _mapping(recipe.get("model"), "recipe.yaml", "model")
    return {
        "recipe": _value(recipe, "name", str, "recipe.yaml", may_lack=True),
        "model": _value(model, "name", str, "recipe.yaml"),
    }


def _result(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    result = _json(path)
    when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return {
        "val_top1": _value(result, "val_top1", 1, "result.json", may_lack="val_map" in result),
        "val_map": _value(result, "val_map", 1, "result.json", may_lack=True),
        "test_map": _value(result, "test_map", 1, "result.json", may_lack=True),
        "test_top1": _value(result, "test_top1", 1, "result.json", may_lack=True),
        "epochs": _value(result, "epochs", MAX_NUMBER, "result.json"),
        "seconds": _value(result, "total_seconds", MAX_NUMBER, "result.json"),
        "finished": when.isoformat(timespec="seconds"),
    }


def _json(path: Path) -> Mapping[str, Any]:
    value = parse_json(read_regular(path, MAX_BYTES), path.name, fix=FIX)
    if not isinstance(value, Mapping):
        raise ValueError(f"{path.name} is no JSON object: got {str(value)[:40]!r}. {FIX}")
    return value


def _mapping(value: Any, file: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{file} lacks {what}")
    return value


def _value(values: Mapping[str, Any], key: str, kind: type[str] | float, file: str, *, may_lack: bool = False) -> Any:
    """The text of a key, or a number from 0 to `kind`. Raises ValueError for anything else."""
    value = values.get(key)
    if value is None and may_lack:
        return None
    if isinstance(kind, type):
        fits = isinstance(value, str) and len(value) <= MAX_TEXT
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= kind
    if not fits:
        raise ValueError(f"{file} has a wrong {key}: {(value[:80] if isinstance(value, str) else value)!r:.80}")
    return value


def _bundle_problem(folder: Path) -> str | None:
    """What is wrong with the bundle of a finished run, as far as can be told without reading its weights."""
    bundle = folder / "bundle"
    if bundle.is_symlink():
        return "its bundle is a link out of its folder"
    if not holds_bundle(bundle):
        return NO_BUNDLE
    try:
        _, files = read_manifest(bundle)
        check_files(bundle, files, hashes=False)
    except (BundleError, OSError) as error:
        return first_line(error).replace(f"{folder}/", "")
    return None


def _bundle_bytes(folder: Path) -> int | None:
    """None where the bundle was taken away."""
    try:
        files = [path for path in (folder / "bundle").iterdir() if path.is_file() and not path.is_symlink()]
        return sum(path.stat().st_size for path in files) if files else None
    except OSError:
        return None
