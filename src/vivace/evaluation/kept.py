"""Keeps what corruptions and attacks left of a bundle's accuracy beside it, where `vivace report` finds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle
from vivace.errors import ConfigError
from vivace.evaluation.evaluate import Evaluation
from vivace.files import read_regular
from vivace.manifest import WEIGHTS
from vivace.outputs import check_file, write_sealed, writing
from vivace.owned import own_file
from vivace.plain import parse_json

__all__ = ["KEPT", "keep", "kept_beside", "kept_of"]

KEPT = "robustness.json"
# a real one has a few kilobytes
MAX_BYTES = 2**20


def kept_beside(bundle: Bundle) -> Path:
    """Where it is kept: robustness.json in the folder of the run, or beside another bundle NAME-robustness.json."""
    folder = bundle.folder
    if folder.name == "bundle" and (folder.parent / "run.json").is_file():
        return folder.parent / KEPT
    place = folder if folder.name not in ("", "..") else folder.resolve()
    return place.with_name(f"{place.name}-{KEPT}")


def kept_of(bundle: Bundle) -> Mapping[str, Any]:
    """What was kept of this very bundle, as plain values that anybody may have written; {} where there is none."""
    try:
        values = parse_json(read_regular(kept_beside(bundle), MAX_BYTES), KEPT)
    except (OSError, ConfigError):
        return {}
    return values if isinstance(values, Mapping) and values.get("bundle") == _identity(bundle) else {}


def keep(bundle: Bundle, evaluation: Evaluation) -> Path:
    """Write what was measured, beside what was kept of the same bundle before, and return the file.

    Raises OutputPathError if a file is there that vivace did not write, or none can be written.
    """
    path = kept_beside(bundle)
    check_file(path, option="the file of results")
    before = kept_of(bundle) if own_file(path) else {}
    on = {"data": evaluation.data, "split": evaluation.split}
    found = {
        name: before.get(name) if result is None else {**on, **result.to_dict()}
        for name, result in (("corruptions", evaluation.corruptions), ("attack", evaluation.attack))
    }
    with writing(path):
        write_sealed(path, {"bundle": _identity(bundle), **found})
    return path


def _identity(bundle: Bundle) -> dict[str, Any]:
    """What makes another bundle of it: its weights, and how it computes."""
    weights = bundle.recorded.get(WEIGHTS)
    digest = weights.get("sha256") if isinstance(weights, Mapping) else None
    return {"weights": digest, "runtime": bundle.info.runtime, "precision": bundle.info.precision}
