"""`Data`: where a data set is, and how to open it (no torch here)."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TypeAlias

from vivace.errors import DataError

__all__ = ["AnyData", "Data"]


@dataclass(frozen=True)
class Data:
    """A data set's name, folder, manifest or archive, with options for opening it.

    Every function that takes data accepts a Data as well as a path or name. As a path (os.fspath) it is `where`.
    """

    where: str | Path
    """The name of a known data set, a folder, a manifest or an archive."""
    _: KW_ONLY
    follow_links: bool = False
    """Follow links that lead out of a folder."""
    image_column: str | None = None
    """Column with the image files of a manifest, or with the images of parquet. None: found by its usual names."""
    label_column: str | None = None
    """Column with the classes of a manifest. None: found by its usual names."""
    data_root: str | Path | None = None
    """Folder for downloads of named data sets. None: inside the cache."""

    def __post_init__(self) -> None:
        """Raise DataError unless `where` is a path or a non-empty string."""
        if self.where == "":
            # Path("") would be the current folder
            raise DataError(
                "data is an empty string: got ''. Give a folder, a manifest, an archive or a name; '.' is the current "
                "folder."
            )
        if not isinstance(self.where, str | Path):
            raise DataError(
                f"data is neither a path nor a name: got {type(self.where).__name__}. Give a folder of class folders, "
                "a manifest, an archive, or the name of a known data set."
            )

    @classmethod
    def of(cls, data: AnyData) -> Data:
        """A path or name as a Data with the default options; a Data is returned unchanged."""
        return data if isinstance(data, Data) else cls(data)

    def __fspath__(self) -> str:
        return os.fspath(self.where)

    def __str__(self) -> str:
        return str(self.where)

    def refuse_columns(self) -> None:
        """Raise DataError if columns are named; called for data without columns, where they would be ignored."""
        named = {"`image_column`": self.image_column, "`label_column`": self.label_column}
        given = [f"{option} {value!r}" for option, value in named.items() if value is not None]
        if given:
            raise DataError(
                f"only a manifest has image and label columns: got {' and '.join(given)} for {str(self)!r}. "
                "Remove them."
            )


AnyData: TypeAlias = str | Path | Data
