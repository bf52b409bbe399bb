"""The options of a run that are fields of its recipe, or say how its data are opened (no torch here).

One table for `vivace.train(data, batch_size=16)` and `vivace train DATA --batch-size 16`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from vivace.errors import ConfigError, nearest

if TYPE_CHECKING:
    from vivace.data.place import AnyData

__all__ = ["FIELDS", "OPENING", "TrainKeywords", "check_keywords", "data_opened_with", "recipe_changes"]


class TrainKeywords(TypedDict, total=False):
    """Keywords of `vivace.train`, with the names and the meaning of the options of `vivace train`. None: not given."""

    model: str | Callable[..., Any] | None
    pretrained: bool | None
    weights: str | Path | None
    start_from: str | Path | None
    size: int | None
    batch_size: int | None
    optimizer: str | None
    lr: float | None
    seed: int | None
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    val_fraction: float | None
    on_bad_image: Literal["auto", "refuse", "skip"] | None
    allow_leaks: bool | None
    data_root: str | Path | None
    follow_links: bool | None
    image_column: str | None
    label_column: str | None


# option → field of the recipe
FIELDS = {
    "model": "model.name",
    "pretrained": "model.pretrained",
    "weights": "model.weights",
    "start_from": "model.start_from",
    "size": "data.size",
    "batch_size": "batch_size",
    "optimizer": "optimizer.name",
    "lr": "optimizer.lr",
    "seed": "seed",
    "precision": "precision",
    "val_fraction": "data.val_fraction",
    "on_bad_image": "data.on_bad_image",
    "allow_leaks": "data.allow_leaks",
}
# option that is a field of `vivace.Data` → (its type, as messages say it)
OPENING: dict[str, tuple[type | tuple[type, ...], str]] = {
    "data_root": ((str, Path), "a path"),
    "follow_links": (bool, "True or False"),
    "image_column": (str, "the name of a column"),
    "label_column": (str, "the name of a column"),
}


def check_keywords(keywords: Iterable[str], parameters: Iterable[str]) -> None:
    """Raise ConfigError for a keyword that is no option; parameters: what `train` takes besides."""
    known = [*parameters, *FIELDS, *OPENING]
    for name in keywords:
        if name not in FIELDS and name not in OPENING:
            raise ConfigError(
                f"train has no such keyword: got {name!r}.{nearest(name, known)} Other fields of the recipe go into "
                'overrides, such as overrides={"schedule.name": "cosine"}.'
            )


def recipe_changes(keywords: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of the recipe that keywords and `overrides` set. Raises ConfigError for a name that is no field."""
    changes = {field: keywords[name] for name, field in FIELDS.items() if keywords.get(name) is not None}
    if "model.weights" in changes:
        changes["model.weights"] = str(changes["model.weights"])
        changes.setdefault("model.pretrained", False)
    if "model.start_from" in changes:
        changes["model.start_from"] = str(changes["model.start_from"])
    for name, value in (overrides or {}).items():
        _check_field(name, value)
    return changes | dict(overrides or {})


def _check_field(name: Any, value: Any) -> None:
    """Raise ConfigError for the name of an option in place of the recipe's field, such as lr for optimizer.lr."""
    field = FIELDS.get(name)
    # "model" and "optimizer" are sections too, whose value is a mapping, in text as YAML has it
    is_section = isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip().startswith("{"))
    if field is not None and field != name and not is_section:
        raise ConfigError(
            f"the recipe's field has another name: got {name!r}. Write {field!r}, or give `{name}={value!r}`."
        )
    if name in OPENING:
        raise ConfigError(f"{name!r} is no field of the recipe: got {value!r}. Give `{name}={value!r}`.")


def data_opened_with(data: AnyData, keywords: Mapping[str, Any]) -> AnyData:
    """The data with what the keywords say of how they are opened. Raises ConfigError, DataError."""
    given = {name: keywords[name] for name in OPENING if keywords.get(name) is not None}
    for name, value in given.items():
        kind, expected = OPENING[name]
        if not isinstance(value, kind):
            raise ConfigError(f"{name} has the wrong type: got {value!r}. Give {expected}.")
    if not given:
        return data
    from vivace.data.place import Data

    return dataclasses.replace(Data.of(data), **given)
