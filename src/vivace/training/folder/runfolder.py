"""The run folder: its files, its lock, and whether a run can be resumed from it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vivace.config import from_yaml, to_dict, to_yaml
from vivace.errors import CheckpointError, RunFolderError
from vivace.files import atomic_file, read_regular, remove_leftovers, write_json
from vivace.locks import FolderLock
from vivace.outputs import check_folder
from vivace.owned import bundle_around
from vivace.systems import OPEN_FILES_MOVE
from vivace.training.recipes.recipe import Recipe

__all__ = ["MAX_FACTS_BYTES", "RunFolder", "check_run_place", "flat"]

# fields of the recipe that may change when a run is resumed
FREE_KEYS = frozenset({"epochs", "checkpoint_minutes", "early_stopping", "calibrate"})

# what a run writes before its first step, and everything that it writes except its recipe
AT_START = ("env.json", "tune.json", "run.json", "left_out.csv")
TRACKING = tuple(f"tracking.{name}.json" for name in ("mlflow", "wandb", "trackio"))
FILES = ("metrics.csv", "result.json", "curves.png", "report.html", *TRACKING, *AT_START)
FOLDERS = ("tensorboard", "checkpoints", "bundle")
# where the libraries of trackers write, if it is the run folder; wandb prefers .wandb if there is one
TRACKED_FOLDERS = ("wandb", ".wandb", "mlruns")
TRACKED_FILES = ("mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm")
# links that wandb makes itself, and never writes through: each of its runs has a folder that was not there before
LINKS_OF_WANDB = re.compile(r"\.?wandb/(debug(-internal)?\.log|latest-run|[^/]+/(files|logs)/.+)")
WRITTEN = (*FILES, *FOLDERS)
# files in its folders: others are neither read nor removed
CHECKPOINT = re.compile(r"(step-\d+|best)\.safetensors")
EVENTS = re.compile(r"events\..*")
LEFT_BY_A_RUN = re.compile("|".join(map(re.escape, ("recipe.yaml", *WRITTEN))))
# run.json has about a kilobyte, plus the warnings
MAX_FACTS_BYTES = 16 * 2**20


def _is_number(value: Any, high: float) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value <= high)


# field of run.json → whether a value is valid
FACTS: dict[str, Callable[[Any], bool]] = {
    "fingerprint": lambda value: isinstance(value, str),
    "name": lambda value: isinstance(value, str),
    "num_images": lambda value: type(value) is int and value >= 0,
    "within_seconds": lambda value: _is_number(value, 1e9),
    "target": lambda value: _is_number(value, 1.0),
}


class RunFolder:
    """A locked folder: recipe.yaml, env.json, tune.json, run.json, metrics.csv, tensorboard/, checkpoints/, bundle/.

    Raises RunFolderError if it can't be written, is in use, has a link or a device in place of a file or folder of a
    run, or holds another run and `resume` is False.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.checkpoints, self.bundle = path / "checkpoints", path / "bundle"
        self.when_begun: list[Callable[[], None]] = []
        # before the lock, which creates the folder
        if resume and not (path / "recipe.yaml").is_file():
            raise RunFolderError(f"there is no run to resume in {path}. Leave `resume` out to start one.")
        if not resume and not os.path.lexists(path / ".lock"):
            _check_free(path)
        _check_plain(path, resume=resume)
        made_folder = not os.path.lexists(path)
        self._lock = FolderLock(path)
        # left by a process that was killed before its first step: treated as created by this one
        killed = self._lock.of_unbegun_run
        self._made_folder, self._made_lock = made_folder or killed, self._lock.made or killed
        self._made_checkpoints = killed or not os.path.lexists(self.checkpoints)
        self._made = set(AT_START) if killed and not resume else set()
        try:
            if not resume:
                # again, with the lock: another process may have run here in the meantime
                _check_free(path, but=self._made)
            with self._writing():
                self._lock.write(begun=resume)
                self.checkpoints.mkdir(exist_ok=True)
            if resume:
                # at the end of the run it would be too late to find that it can't be replaced
                check_folder(self.bundle, option="the run's bundle")
            remove_leftovers(path, LEFT_BY_A_RUN)
            remove_leftovers(self.checkpoints, CHECKPOINT)
        except BaseException:
            self.release()
            raise

    def claim(self, name: str) -> Path:
        """The path of a file that is written before the first step, and removed if the run does not get that far."""
        self._made.add(name)
        return self.path / name

    def start(
        self, recipe: Recipe, facts: Mapping[str, Any], environment: Mapping[str, Any], receipt: Mapping[str, Any]
    ) -> None:
        """Write the description of the run, before its first step. Raises RunFolderError if that fails."""
        with self._writing():
            write_json(self.claim("env.json"), environment)
            write_json(self.claim("tune.json"), receipt)
        self.record(recipe, facts)

    def record(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        """Write the recipe and the budget of the run. Raises RunFolderError if that fails."""
        with self._writing():
            write_json(self.claim("run.json"), facts)
            # last: a folder with a recipe can be resumed
            with atomic_file(self.path / "recipe.yaml") as file:
                file.write(to_yaml(recipe).encode())
            self._lock.write(begun=True)
        while self.when_begun:
            self.when_begun.pop()()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"the run folder can't be written: {self.path} ({error.strerror}). "
                "Free some space, or choose another with `run`."
            ) from None

    def saved_recipe(self) -> Recipe:
        """The resolved recipe of the run that is resumed."""
        return from_yaml(Recipe, self.path / "recipe.yaml")

    def saved_facts(self) -> dict[str, Any]:
        """What `record` wrote: "data" and "contract". Raises CheckpointError if it is damaged."""
        path = self.path / "run.json"
        try:
            facts: dict[str, Any] = json.loads(read_regular(path, MAX_FACTS_BYTES))
            data, contract = facts["data"], facts["contract"]
            missing = {"fingerprint", "name", "num_images"} - data.keys()
            missing |= {"within_seconds", "target"} - contract.keys()
        except (OSError, ValueError, RecursionError) as error:
            raise _unresumable(f"{path} ({error})") from None
        except (KeyError, TypeError, AttributeError):
            raise _unresumable(f"{path} lacks data or contract") from None
        if missing:
            raise _unresumable(f"{path} lacks {', '.join(sorted(missing))}")
        for name, is_right in FACTS.items():
            value = (data if name in data else contract)[name]
            if not is_right(value):
                raise _unresumable(f"{path} has a wrong {name}: {value!r:.80}")
        return facts

    def discard_if_unused(self) -> None:
        """Remove what this process created if no run was started: a refused input leaves nothing behind."""
        if os.path.lexists(self.path / "recipe.yaml"):
            return
        with contextlib.suppress(OSError):
            if not OPEN_FILES_MOVE:
                self._lock.release()
            for name in (*self._made, *([".lock"] if self._made_lock else [])):
                (self.path / name).unlink(missing_ok=True)
            if self._made_checkpoints:
                self.checkpoints.rmdir()
            if self._made_folder:
                self.path.rmdir()

    def release(self) -> None:
        """Release the folder to other processes."""
        self._lock.release()


def check_run_place(path: Path, data: object) -> None:
    """Raise RunFolderError if a new run would be inside the folder of its data, where its figures would become data."""
    if isinstance(data := getattr(data, "where", data), str | os.PathLike) and Path(data).is_dir():
        root, place = Path(data).resolve(), path.resolve()
        if place == root or root in place.parents:
            raise RunFolderError(f"the run folder lies in the data: {path} in {data}. Choose a `run` outside of it.")


def _check_free(path: Path, *, but: Collection[str] = ()) -> None:
    """Raise RunFolderError if a run would overwrite something in the folder, or lie in a bundle; but: names that may
    exist."""
    if (bundle := bundle_around(path.resolve() / "run.json")) is not None:
        raise RunFolderError(f"the run folder is inside a bundle: {path} in {bundle}. Choose another `run`.")
    if os.path.lexists(path / "recipe.yaml"):
        raise RunFolderError(
            f"the run folder holds an earlier run: {path}. Continue it with `resume=True`, "
            "or choose another folder with `run`."
        )
    found = [name for name in WRITTEN if os.path.lexists(path / name) and name not in but]
    if "checkpoints" in found and _is_empty(path / "checkpoints"):
        found.remove("checkpoints")
    if found and os.path.lexists(path / ".lock"):
        raise RunFolderError(
            f"the run folder holds a part of an earlier run: {path / found[0]}, which a run would write over. "
            "Choose another `run`; if its recipe.yaml was moved, put it back and give `resume=True`."
        )
    if found:
        raise RunFolderError(
            f"the run folder holds something else: {path / found[0]}, which a run would write over. "
            "Choose another `run`."
        )


def _is_empty(folder: Path) -> bool:
    return not folder.is_symlink() and folder.is_dir() and not any(folder.iterdir())


def _check_plain(path: Path, *, resume: bool) -> None:
    """Raise RunFolderError if there is a link, a pipe or a device in place of a file or folder of a run.

    With a link, a downloaded run folder could make vivace read, replace or remove other files of the user.
    """
    for name in ("recipe.yaml", *FILES, *TRACKED_FILES):
        _check_kind(path / name, stat.S_ISREG, "file", resume)
    for name in (*FOLDERS, *TRACKED_FOLDERS):
        _check_kind(path / name, stat.S_ISDIR, "folder", resume)
    for folder, pattern in (("checkpoints", CHECKPOINT), ("tensorboard", EVENTS)):
        with contextlib.suppress(OSError):
            for entry in sorted((path / folder).iterdir()):
                if pattern.fullmatch(entry.name):
                    _check_kind(entry, stat.S_ISREG, "file", resume)
    for name in TRACKED_FOLDERS:
        for parent, folders, files in os.walk(path / name):
            for entry in (Path(parent, found) for found in (*folders, *files)):
                if entry.is_symlink() and not LINKS_OF_WANDB.fullmatch(entry.relative_to(path).as_posix()):
                    _check_kind(entry, stat.S_ISREG, "file", resume)


def _check_kind(path: Path, is_kind: Callable[[int], bool], kind: str, resume: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not is_kind(mode):
        found = "a link" if stat.S_ISLNK(mode) else "something else"
        advice = f"Put the {kind} itself in its place" if resume else "Remove it, or choose another `run`"
        raise RunFolderError(f"the run folder holds {found} where a run has a {kind}: {path}. {advice}.")


def _unresumable(cause: str) -> CheckpointError:
    return CheckpointError(f"the run can't be resumed: {cause}. Start a new run with another `run`.")


def check_same_recipe(saved: Recipe, asked: Recipe) -> None:
    """Raise CheckpointError that lists the differences if `asked` changes more than FREE_KEYS."""
    before, after = flat(to_dict(saved)), flat(to_dict(asked))
    changed = [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in FREE_KEYS
    ]
    if changed:
        raise CheckpointError(
            f"the run can't be resumed with another recipe: {'; '.join(changed)}. "
            "Leave these options out, or start a new run with another `run`."
        )


def check_same_data(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the data are not those that the run began with; both as in run.json."""
    if saved["fingerprint"] == given["fingerprint"]:
        return
    # runs of earlier versions did not record the place of their data
    is_other = saved["name"] != given["name"] or saved.get("place", given["place"]) != given["place"]
    if is_other:
        raise CheckpointError(
            f"the run can't be resumed with other data: the run began on {_told(saved)}; the data given are "
            f"{_told(given)}. Give the data that it began with, or start a new run with another `run`."
        )
    raise CheckpointError(
        f"the run can't be resumed with other data: it began on {saved['name']} with {saved['num_images']:,} "
        f"images (fingerprint {saved['fingerprint'][:12]}), which are no longer in the cache; now {given['name']} has "
        f"{given['num_images']:,} ({given['fingerprint'][:12]}). Restore the files, or start a new run with "
        "another `run`."
    )


def _told(facts: Mapping[str, Any]) -> str:
    """Data as in run.json, for a message: name, place, and number of images."""
    # the end of a path says more than its start
    place = f" ({str(facts['place'])[-120:]!r})" if facts.get("place") else ""
    # a name in backquotes would be read as one of a parameter
    name = str(facts["name"]).replace("`", "'")
    return f"{name}{place} with {facts['num_images']:,} images"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted names."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values
