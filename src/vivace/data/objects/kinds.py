"""Which kind of data an object is, by the names of its classes: a library that is not imported has no objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from vivace.data.arrays import is_tensor
from vivace.data.layouts.splitnames import SPLIT_ORDER, split_of
from vivace.errors import DataError

__all__ = ["Kind", "is_made_by", "kind_of", "name_of", "place_of"]

Kind = Literal["splits", "arrays", "frame", "huggingface", "dataset"]
WHAT = (
    "Give a folder, a manifest, an archive or a name; or a torch Dataset, (images, labels) as arrays, a data set of "
    "Hugging Face, a frame of pandas or polars, or a dict of splits"
)
MAX_NAME = 60


def is_made_by(value: Any, library: str, *names: str) -> bool:
    """Whether the object is of a class of one of these names in a library, or of a class derived from it."""
    return any(
        found.__name__ in names and found.__module__.partition(".")[0] == library for found in type(value).__mro__
    )


def kind_of(value: Any) -> Kind:
    """The kind of data. Raises DataError, with how to fix it, for anything else."""
    if problem := _problem(value):
        raise DataError(problem)
    if isinstance(value, Mapping):
        return "splits"
    if isinstance(value, tuple):
        return "arrays"
    if is_made_by(value, "pandas", "DataFrame") or is_made_by(value, "polars", "DataFrame"):
        return "frame"
    if is_made_by(value, "datasets", "Dataset"):
        return "huggingface"
    return "dataset"


def _problem(value: Any) -> str | None:
    """What is wrong with an object; None if it may be data."""
    kind = type(value).__name__
    if is_made_by(value, "torch", "DataLoader"):
        return "data is a DataLoader: got one. Give the data set that it reads: `loader.dataset`."
    if is_made_by(value, "datasets", "IterableDataset", "IterableDatasetDict"):
        return f"the data set is streamed: got {kind}. Load it without streaming=True."
    if is_made_by(value, "torch", "IterableDataset"):
        return f"the data set has no length and no order: got the IterableDataset {kind}. Give a map-style Dataset."
    if is_made_by(value, "polars", "LazyFrame"):
        return "the frame is lazy: got a LazyFrame. Give frame.collect()."
    if isinstance(value, np.ndarray) or is_tensor(value):
        shape = list(value.shape)
        return f"images come without labels: got an array {shape}. Give both: `(images, labels)`."
    if isinstance(value, tuple):
        return None if len(value) == 2 else f"arrays are (images, labels): got a tuple of {len(value)}. Give these two."
    if isinstance(value, Mapping):
        known = [name for name in value if isinstance(name, str) and split_of(name)]
        return (
            None
            if known
            else f"a dict of splits is needed: got {'an empty dict' if not value else 'keys ' + _keys(value)}. Give "
            'keys among "train", "val" and "test".'
        )
    if isinstance(value, list):
        return (
            f"data is a list: got one of {len(value):,}. Give arrays, as (numpy.stack(images), labels), or a torch "
            "Dataset of it."
        )
    if isinstance(value, Iterator) or hasattr(value, "gi_frame"):
        return f"data can be read only once: got {kind}. Give a map-style Dataset, which has __len__ and __getitem__."
    own = type(value)
    if isinstance(value, bytes | bytearray | set | frozenset | PurePath) or not hasattr(own, "__getitem__"):
        return f"data is neither a path nor a name: got {kind}. {WHAT}."
    if not hasattr(own, "__len__"):
        return f"the data set has no length: got {kind}, which lacks __len__. Add it."
    if is_made_by(value, "pandas", "Series", "Index") or is_made_by(value, "polars", "Series"):
        return f"a frame with two columns is needed, images and labels: got a {kind}. Give a DataFrame."
    return None


def _keys(value: Mapping[Any, Any]) -> str:
    return ", ".join(repr(key)[:30] for key in list(value)[:3])


def name_of(value: Any) -> str:
    """A short name for messages, run folders and records; never the contents of the object.

    Such as CIFAR10-dataset, pets-dataset for an ImageFolder of pets/train, numpy-arrays, pandas-frame, mnist-hf. None
    of them is the name of a data set that vivace knows.
    """
    if isinstance(value, Mapping):
        by_split = {split_of(name): part for name, part in value.items() if isinstance(name, str)}
        first = next((by_split[split] for split in SPLIT_ORDER if split in by_split), None)
        return "splits" if first is None else name_of(first)
    if isinstance(value, str | PurePath):
        return _plain(PurePath(value).stem, "dataset")
    if isinstance(value, tuple):
        return "torch-tensors" if any(map(is_tensor, value)) else "numpy-arrays"
    for library in ("pandas", "polars"):
        if is_made_by(value, library, "DataFrame"):
            return f"{library}-frame"
    if is_made_by(value, "datasets", "Dataset"):
        info = getattr(value, "info", None)
        return _plain(str(getattr(info, "dataset_name", None) or getattr(info, "builder_name", None) or ""), "hf")
    inner = value
    while is_made_by(inner, "torch", "Subset") and hasattr(inner, "dataset"):
        inner = inner.dataset
    place = place_of(inner)
    return _plain(type(inner).__name__ if place is None else place, "dataset")


def place_of(dataset: Any) -> str | None:
    """The name of the folder of an ImageFolder: pets for pets/train; None for other data sets."""
    root = getattr(dataset, "root", None)
    if not is_made_by(dataset, "torchvision", "DatasetFolder") or not isinstance(root, str | PurePath):
        return None
    parts = [part for part in PurePath(root).parts if split_of(part) is None]
    return parts[-1] if parts else None


def _plain(name: str, ending: str) -> str:
    """The name with what a shell does not need to quote, and its ending."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:MAX_NAME]
    return plain if plain.lower().endswith(ending) else f"{plain}-{ending}" if plain else ending
