"""`Data`: where a data set is, or the object that holds it, and how to open it (no torch here)."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from vivace.data.decoding.raw import WHITE
from vivace.data.objects.kinds import kind_of, name_of
from vivace.data.splits import DataSource
from vivace.errors import DataError

__all__ = ["AnyData", "Data", "HasItems"]

# option → a value that says as little as None; of others False
NOT_GIVEN = {"cache": True, "multi_label": None}


class HasItems(Protocol):
    """Data as an object: a torch Dataset, (images, labels), a data set of Hugging Face, a frame, a dict of splits."""

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, repr=False)
class Data:
    """A data set's name, folder, manifest or archive, or an object with its images, with options for opening it.

    Every function that takes data accepts a Data as well as what is in `where`. As a path (os.fspath) it is `where`.
    """

    where: str | Path | HasItems | DataSource
    """The name of a known data set, a folder, a manifest or an archive; or an object: a map-style torch Dataset of
    (image, label), (images, labels) as arrays, a data set of Hugging Face's datasets, a frame of pandas or polars, or a
    dict of these with the keys train, val and test."""
    _: KW_ONLY
    follow_links: bool = False
    """Follow links that lead out of a folder."""
    image_column: str | None = None
    """Column with the image files of a manifest, or with the images of parquet, a frame or a data set of Hugging Face.
    None: found by its usual names."""
    label_column: str | None = None
    """Column with the classes of a manifest, a frame or a data set of Hugging Face. None: found by its usual names."""
    multi_label: bool | None = None
    """Whether an image of a manifest has a set of labels: several in a cell, separated by ; or |, a list, or columns of
    0 and 1. None: as the table tells. False: one class."""
    pixels: Literal["uint8", "uint16", "float32"] | None = None
    """dtype of images that are kept as they are, where no value is to be changed: uint16 for files of 16 bits, float32
    for floats of any scale. None: as arrays and TIFF files of many channels have it; grey and RGB become 8 bits."""
    cache: bool | None = None
    """False, for training: a data set whose items are random is read anew for each epoch. Otherwise each item is read
    once, and one that changes is refused."""
    data_root: str | Path | None = None
    """Folder for downloads of named data sets. None: inside the cache."""

    def __post_init__(self) -> None:
        """Raise DataError unless `where` is a path, a non-empty string, or an object that may hold data."""
        if isinstance(self.where, str) and self.where == "":
            # Path("") would be the current folder
            raise DataError(
                "data is an empty string: got ''. Give a folder, a manifest, an archive or a name; '.' is the current "
                "folder."
            )
        if self.cache not in (None, True, False):
            raise DataError(f"cache is neither True nor False: got {str(self.cache)[:60]!r}. Give one of them.")
        if self.pixels not in (None, *WHITE):
            raise DataError(f"pixels is unknown: got {str(self.pixels)[:60]!r}. Give one of {', '.join(WHITE)}.")
        if self.is_object and not isinstance(self.where, DataSource):
            kind_of(self.where)

    @property
    def is_object(self) -> bool:
        """Whether the data are an object of this program, which no other program can open by its name."""
        return not isinstance(self.where, str | Path)

    @classmethod
    def of(cls, data: AnyData) -> Data:
        """A path, a name or an object as a Data with the default options; a Data is returned unchanged."""
        return data if isinstance(data, Data) else cls(data)

    def __fspath__(self) -> str:
        if not isinstance(self.where, str | Path):
            raise TypeError(f"data are an object, not a path: got {self}")
        return os.fspath(self.where)

    def __str__(self) -> str:
        """The path or name; of an object a short name, never its contents."""
        if isinstance(self.where, str | Path):
            return str(self.where)
        return self.where.name if isinstance(self.where, DataSource) else name_of(self.where)

    def __repr__(self) -> str:
        options = [f", {name}={value!r}" for name, value in self.options().items()]
        return f"Data({str(self)!r}{''.join(options)})"

    def options(self) -> dict[str, Any]:
        """The options that are given, by name."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "where"}
        return {name: value for name, value in given.items() if value not in (None, NOT_GIVEN.get(name, False))}

    def refuse_columns(self) -> None:
        """Raise DataError if columns are named; called for data without columns, where they would be ignored."""
        named = {"`image_column`": self.image_column, "`label_column`": self.label_column}
        given = [f"{option} {value!r}" for option, value in named.items() if value is not None]
        if given:
            raise DataError(
                f"only a manifest{' or a frame' * self.is_object} has image and label columns: got "
                f"{' and '.join(given)} for {str(self)!r}. Remove them."
            )


AnyData: TypeAlias = str | Path | HasItems | Data | DataSource
