"""Reads the metrics table of a run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vivace.errors import VivaceError
from vivace.files import read_regular

__all__ = ["read_rows"]

# enough for half a million validations
MAX_TABLE_BYTES = 2**26


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file; the last one may be incomplete while it is being written.

    Raises VivaceError if it can't be read or is larger than the table of any run.
    """
    try:
        table = io.StringIO(read_regular(path, MAX_TABLE_BYTES).decode(), newline="")
        return [row for row in csv.DictReader(table) if None not in row.values()]
    except (OSError, ValueError, csv.Error) as error:
        raise VivaceError(f"the table can't be read: {path} ({error}). Restore the metrics.csv of the run.") from None
