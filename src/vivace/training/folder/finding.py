"""Which run folders there are, and which of them is to be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.errors import RunFolderError
from vivace.files import read_regular
from vivace.training.folder.runfolder import MAX_FACTS_BYTES

__all__ = ["is_finished", "new_run_path", "run_to_resume", "runs_of"]


def new_run_path(runs: Path, name: str) -> Path:
    """The first of `name`, `name-2`, `name-3` … that does not exist."""
    path, number = runs / name, 1
    while path.exists():
        number += 1
        path = runs / f"{name}-{number}"
    return path


def run_to_resume(runs: Path, data_names: Sequence[str]) -> Path:
    """The newest run on data of one of these names that has not ended; the newest of all where each has.

    Raises RunFolderError if there is none.
    """
    found = runs_of(runs, data_names)
    if not found:
        name = data_names[0] if data_names else "these data"
        raise RunFolderError(f"there is no run of {name} to resume in {runs}. Name one with `run`.")
    return next((path for path in found if not is_finished(path)), found[0])


def is_finished(run: Path) -> bool:
    """Whether the run ended and was not continued since then: only the end writes its warnings, then its result."""
    return "warnings" in _facts(run / "run.json") and (run / "result.json").is_file()


def runs_of(runs: Path, data_names: Sequence[str]) -> list[Path]:
    """The runs on data sets of these names, the newest first."""
    found = [(path.stat().st_mtime, path.parent) for path in runs.glob("*/run.json") if _data_name(path) in data_names]
    return [path for _, path in sorted(found, reverse=True)]


def _data_name(path: Path) -> str | None:
    data = _facts(path).get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    return name if isinstance(name, str) else None


def _facts(path: Path) -> Mapping[str, Any]:
    """What run.json holds; nothing where it can't be read."""
    try:
        facts = json.loads(read_regular(path, MAX_FACTS_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, Mapping) else {}
