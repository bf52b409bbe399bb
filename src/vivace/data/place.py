"""Data: where a data set lies, and how it is to be opened (no torch here)."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TypeAlias

from vivace.errors import DataError

__all__ = ["AnyData", "Data"]


@dataclass(frozen=True)
class Data:
    """A data set's name, folder, manifest or archive, with what can't be told from it alone.

    Every function that takes data takes one of these in place of a plain path. As a path it is `where`.
    """

    where: str | Path
    """A known name, a folder, a manifest or an archive."""
    _: KW_ONLY
    follow_links: bool = False
    """Follow links that lead out of a folder."""
    image_column: str | None = None
    """Column of a manifest that names the image files, or of parquet that holds them; None: found by its usual
    names."""
    label_column: str | None = None
    """Column of a manifest that holds the classes; None: found by its usual names."""
    data_root: str | Path | None = None
    """Where named data sets are downloaded to; None: inside the cache."""

    def __post_init__(self) -> None:
        """Raise DataError if `where` is no text and no path, or an empty text."""
        if self.where == "":
            # a path made of it would be the current folder
            raise DataError(
                "data are an empty text: got ''. Give a folder, a manifest, an archive or a name; '.' for this folder."
            )
        if not isinstance(self.where, str | Path):
            raise DataError(
                f"data are no path and no name: got {type(self.where).__name__}. Give a folder of class folders, a "
                "manifest, an archive, or a known data set's name."
            )

    @classmethod
    def of(cls, data: AnyData) -> Data:
        """A plain path or name with everything else as it is by default; a Data as it is."""
        return data if isinstance(data, Data) else cls(data)

    def __fspath__(self) -> str:
        return os.fspath(self.where)

    def __str__(self) -> str:
        return str(self.where)

    def refuse_columns(self) -> None:
        """Raise DataError if columns are named: called for data that have none, lest they be ignored."""
        named = {"--image-column": self.image_column, "--label-column": self.label_column}
        given = [f"{option} {value!r}" for option, value in named.items() if value is not None]
        if given:
            raise DataError(
                f"image and label columns are those of a manifest: got {' and '.join(given)} for {str(self)!r}. "
                "Leave them out."
            )


AnyData: TypeAlias = str | Path | Data
