"""The recipe of a run that is resumed (no torch here)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.config import from_dict, override, to_dict
from vivace.errors import ConfigError
from vivace.files import read_regular
from vivace.training.folder.finding import is_finished
from vivace.training.folder.runfolder import RunFolder, check_same_recipe
from vivace.training.recipes.named import DEFAULT_RECIPE, DataFacts, resolve_recipe
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult

__all__ = ["finished_result", "resumed_recipe"]

# result.json has a few kilobytes, plus the warnings
MAX_RESULT_BYTES = 16 * 2**20


def resumed_recipe(
    folder: RunFolder, recipe: str | Path | Recipe, changes: Mapping[str, Any], facts: DataFacts
) -> Recipe:
    """The recipe of the run with the changes that a resumed run may have. Raises CheckpointError for others."""
    saved = folder.saved_recipe()
    if recipe != DEFAULT_RECIPE:
        # the network depends on the budget that the run began with
        began_with = folder.saved_facts()["contract"]["within_seconds"]
        asked = resolve_recipe(recipe, dataclasses.replace(facts, seconds=began_with))
        if isinstance(recipe, str) and recipe == asked.name:
            asked = dataclasses.replace(saved, name=recipe)
        check_same_recipe(saved, from_dict(Recipe, _merged(to_dict(saved), to_dict(asked))))
    within = folder.saved_facts()["contract"]["within_seconds"]
    if within is not None and "epochs" in changes:
        raise ConfigError(
            f"two budgets: the run was begun within {within:g} s, and got epochs {changes['epochs']!r}. "
            "Leave `epochs` out, or start a new run with another `run`."
        )
    asked = override(saved, changes)
    check_same_recipe(saved, asked)
    return asked


def finished_result(folder: RunFolder, recipe: Recipe) -> TrainResult | None:
    """What the run ended with, if it has ended and `recipe` asks for nothing else: its record is not written over.

    None also where the record can't be read: the run's end is then repeated.
    """
    if to_dict(recipe) != to_dict(folder.saved_recipe()) or not is_finished(folder.path):
        return None
    try:
        values = json.loads(read_regular(folder.path / "result.json", MAX_RESULT_BYTES))
        return TrainResult.read(values, run=folder.path)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _merged(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """`saved`, updated with the values of `asked` that are neither None nor "auto"."""
    merged = dict(saved)
    for key, value in asked.items():
        if isinstance(value, Mapping) and isinstance(saved.get(key), Mapping):
            merged[key] = _merged(saved[key], value)
        elif value is not None and value != "auto":
            merged[key] = value
    return merged
