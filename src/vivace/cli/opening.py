"""The options of every verb that opens DATA: what its path alone does not say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vivace.cli.options import option_names, verb_options
from vivace.errors import ConfigError

if TYPE_CHECKING:
    from vivace.data.place import Data


@verb_options
class Opening:
    """How DATA is opened."""

    data_root: Path | None = None
    """Where named data sets are downloaded to. Default: inside the cache."""
    follow_links: bool = False
    """Follow links that lead out of a folder."""
    image_column: str | None = None
    """Column of a manifest that names the image files, or of parquet that holds them. Default: by the usual names."""
    label_column: str | None = None
    """Column of a manifest that holds the classes. Default: found by its usual names."""

    def of(self, data: str) -> Data:
        """DATA with these options."""
        from vivace.data.place import Data

        return Data(data, **dataclasses.asdict(self))

    def of_optional(self, data: str | None) -> Data | None:
        """The same where DATA may be left out. Raises ConfigError for options that go with none."""
        if data is not None:
            return self.of(data)
        for option, value in zip(option_names(Opening), dataclasses.astuple(self), strict=True):
            if value is not None and value is not False:
                raise ConfigError(f"{option} goes with DATA: got {option} alone. Give DATA, or leave it out.")
        return None
