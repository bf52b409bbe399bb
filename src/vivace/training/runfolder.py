"""The run folder: where a run's files lie, who holds it, and whether a resume fits what is in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.config import from_yaml, to_dict, to_yaml
from vivace.errors import CheckpointError, RunFolderError
from vivace.files import FolderLock, atomic_file, remove_leftovers, write_json
from vivace.outputs import check_folder
from vivace.training.recipe import Recipe

__all__ = ["RunFolder", "check_run_place", "new_run_path", "newest_run", "runs_of"]

# what may differ between a run and its resumption: how long it goes on
FREE_KEYS = frozenset({"epochs", "checkpoint_minutes", "early_stopping", "calibrate"})

# what a run writes beside its recipe
WRITTEN = (
    "env.json", "tune.json", "run.json", "metrics.csv", "result.json", "curves.png", "tensorboard", "checkpoints",
    "bundle",
)  # fmt: skip


class RunFolder:
    """A locked folder: recipe.yaml, env.json, tune.json, run.json, metrics.csv, tensorboard/, checkpoints/, bundle/.

    Raises RunFolderError if it can't be written, is in use, or holds another run and `resume` is False.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.bundle = path / "bundle"
        # before the lock, which makes the folder
        if resume and not (path / "recipe.yaml").is_file():
            raise RunFolderError(f"there is no run to resume in {path}. Leave --resume out to start one.")
        if not resume:
            _check_free(path)
        self._lock = FolderLock(path)
        try:
            # behind the lock: before it, another process could still start and end a run here
            if not resume and (path / "recipe.yaml").exists():
                raise RunFolderError(
                    f"the run folder holds an earlier run: {path}. Continue it with --resume (in Python resume=True), "
                    "or choose another folder with --run (run=...)."
                )
            with self._writing():
                self.checkpoints.mkdir(exist_ok=True)
            if resume:
                # at the end of a run it is too late to find that it can't be replaced
                check_folder(self.bundle, option="the run's bundle")
            remove_leftovers(path)
            remove_leftovers(self.checkpoints)
        except BaseException:
            self.release()
            raise

    def start(
        self, recipe: Recipe, facts: Mapping[str, Any], environment: Mapping[str, Any], receipt: Mapping[str, Any]
    ) -> None:
        """Record what the run is, before its first step. Raises RunFolderError if that can't be written."""
        with self._writing():
            write_json(self.path / "env.json", environment)
            write_json(self.path / "tune.json", receipt)
        self.record(recipe, facts)

    def record(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        """Record how far the run is to go. Raises RunFolderError if that can't be written."""
        with self._writing():
            write_json(self.path / "run.json", facts)
            # last: a folder with a recipe is a run that can be resumed
            with atomic_file(self.path / "recipe.yaml") as file:
                file.write(to_yaml(recipe).encode())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"the run folder can't be written: {self.path} ({error.strerror}). "
                "Free some space, or choose another with --run."
            ) from None

    def saved_recipe(self) -> Recipe:
        """The resolved recipe of the run that is resumed."""
        return from_yaml(Recipe, self.path / "recipe.yaml")

    def saved_facts(self) -> dict[str, Any]:
        """What `record` wrote: "data" and "contract". Raises CheckpointError if it is damaged."""
        path = self.path / "run.json"
        try:
            facts: dict[str, Any] = json.loads(path.read_text())
            missing = {"fingerprint", "name", "num_images"} - facts["data"].keys()
            missing |= {"within_seconds", "target"} - facts["contract"].keys()
        except (OSError, ValueError) as error:
            raise _unresumable(f"{path} ({error})") from None
        except (KeyError, TypeError, AttributeError):
            raise _unresumable(f"{path} lacks data or contract") from None
        if missing:
            raise _unresumable(f"{path} lacks {', '.join(sorted(missing))}")
        return facts

    def discard_if_unused(self) -> None:
        """Remove the folder if no run was started in it: a refused input leaves nothing behind."""
        if not (self.path / "recipe.yaml").exists():
            for name in ("env.json", "tune.json", "run.json", "left_out.csv", ".lock"):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.checkpoints.rmdir()
                self.path.rmdir()

    def release(self) -> None:
        """Give the folder free for other processes."""
        self._lock.release()


def check_run_place(path: Path, data: object) -> None:
    """Raise RunFolderError if a new run would lie in the folder of its own data, where its pictures would be taken for
    it."""
    if isinstance(data, str | os.PathLike) and Path(data).is_dir():
        root, place = Path(data).resolve(), path.resolve()
        if place == root or root in place.parents:
            raise RunFolderError(f"the run folder lies in the data: {path} in {data}. Choose a --run outside of it.")


def _check_free(path: Path) -> None:
    """Raise RunFolderError if a run would write over what somebody else has put into the folder."""
    found = [name for name in WRITTEN if os.path.lexists(path / name)]
    # with its lock beside it, it is what a run left that was killed before its first step
    if found and not (path / ".lock").exists():
        raise RunFolderError(
            f"the run folder holds something else: {path / found[0]}, which a run would write over. "
            "Choose another --run."
        )


def _unresumable(cause: str) -> CheckpointError:
    return CheckpointError(f"the run can't be resumed: {cause}. Start a new run with another --run.")


def check_same_recipe(saved: Recipe, asked: Recipe) -> None:
    """Raise CheckpointError with the differences if `asked` would change more than the length of the run."""
    before, after = _flat(to_dict(saved)), _flat(to_dict(asked))
    changed = [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in FREE_KEYS
    ]
    if changed:
        raise CheckpointError(
            f"the run can't be resumed with another recipe: {'; '.join(changed)}. "
            "Leave these options out, or start a new run with another --run."
        )


def check_same_data(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the data set is not the one that the run began with; both as run.json has them."""
    if saved["fingerprint"] == given["fingerprint"]:
        return
    # runs of earlier versions do not tell where their data lay
    is_other = saved["name"] != given["name"] or saved.get("place", given["place"]) != given["place"]
    if is_other:
        raise CheckpointError(
            f"the run can't be resumed with other data: the run began on {_told(saved)}; DATA given is "
            f"{_told(given)}. Give the data that it began with, or start a new run with another --run."
        )
    raise CheckpointError(
        f"the run can't be resumed with other data: it began on {saved['name']} with {saved['num_images']:,} "
        f"images (fingerprint {saved['fingerprint'][:12]}), which are no longer in the cache; now {given['name']} has "
        f"{given['num_images']:,} ({given['fingerprint'][:12]}). Restore the files, or start a new run with "
        "another --run."
    )


def _told(facts: Mapping[str, Any]) -> str:
    """Data as run.json has them, for people: by name, place, and number of images."""
    # the end of a path tells more than its start
    place = f" ({str(facts['place'])[-120:]})" if facts.get("place") else ""
    return f"{facts['name']}{place} with {facts['num_images']:,} images"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def new_run_path(runs: Path, name: str) -> Path:
    """The first of `name`, `name-2`, `name-3` … that is not there yet."""
    path, number = runs / name, 1
    while path.exists():
        number += 1
        path = runs / f"{name}-{number}"
    return path


def newest_run(runs: Path, data_name: str) -> Path:
    """The run on this data set that was last written. Raises RunFolderError if there is none."""
    found = runs_of(runs, [data_name])
    if not found:
        raise RunFolderError(f"there is no run of {data_name} to resume in {runs}. Name one with --run.")
    return found[0]


def runs_of(runs: Path, data_names: Sequence[str]) -> list[Path]:
    """The runs on data sets of these names, the one that was last written first."""
    found = [(path.stat().st_mtime, path.parent) for path in runs.glob("*/run.json") if _data_name(path) in data_names]
    return [path for _, path in sorted(found, reverse=True)]


def _data_name(path: Path) -> str | None:
    try:
        name: str = json.loads(path.read_text())["data"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name
