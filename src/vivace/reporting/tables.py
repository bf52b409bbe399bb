"""Writes tables as CSV, JSON lines or parquet, and reads the metrics table of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vivace.errors import ConfigError, MissingExtra, OutputPathError, VivaceError, nearest
from vivace.files import atomic_file, read_regular
from vivace.outputs import check_file, csv_text, writing

__all__ = ["check_table", "read_rows", "write_rows"]

# enough for half a million validations
MAX_TABLE_BYTES = 2**26
# files that identify a folder
FOLDER_KINDS = {("bundle.json",): "a bundle", ("model.json",): "a deployment", ("run.json", "recipe.yaml"): "a run"}


def check_table(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> str | None:
    """What `write_rows` would replace, or None. Call it before the rows are computed.

    inputs: the files that the rows are computed from. Raises ConfigError for an extension other than .csv, .jsonl and
    .parquet, MissingExtra for parquet without pyarrow, and OutputPathError if the path can't be written, or if the file
    exists (with `overwrite` only if it is part of a bundle, a deployment or a run).
    """
    if (suffix := path.suffix.lower()) not in WRITERS:
        raise ConfigError(
            f"the format is unknown: got {path.name!r}.{nearest(suffix, WRITERS)} Use .csv, .jsonl or .parquet."
        )
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    found = check_file(path, inputs=inputs, overwrite=overwrite, advice="give `overwrite` to replace it")
    if found is not None:
        _refuse_part(path)
    return found


def _refuse_part(path: Path) -> None:
    """Raise OutputPathError for a file of a bundle, a deployment or a run: naming one is surely a mistake."""
    for folder in path.resolve().parents:
        for names, called in FOLDER_KINDS.items():
            if all((folder / name).is_file() for name in names):
                raise OutputPathError(
                    f"`out` exists already, in the folder of {called}: {path}. Such files are never replaced: give "
                    "another name."
                )


def write_rows(rows: Sequence[dict[str, Any]], path: Path, *, overwrite: bool = False) -> None:
    """Write rows with equal keys, atomically, in the format of the extension: .csv, .jsonl or .parquet.

    overwrite: replace an existing file; without it none is replaced, since a table bears no mark of vivace's.
    Bytes of file names that are not UTF-8 stay as they are in CSV, and are written as \\udcXX escapes in the other
    formats. In CSV, text that a spreadsheet would run as a formula gets a ' in front.
    Raises the errors of `check_table`, and VivaceError if the disk is full.
    """
    check_table(path, overwrite=overwrite)
    content = WRITERS[path.suffix.lower()](rows)
    with writing(path), atomic_file(path) as file:
        file.write(content)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file; the last one may be incomplete while it is being written.

    Raises VivaceError if it can't be read or is larger than the table of any run.
    """
    try:
        table = io.StringIO(read_regular(path, MAX_TABLE_BYTES).decode(), newline="")
        return [row for row in csv.DictReader(table) if None not in row.values()]
    except (OSError, ValueError, csv.Error) as error:
        raise VivaceError(f"the table can't be read: {path} ({error}). Restore the metrics.csv of the run.") from None


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    keys = list(rows[0]) if rows else []
    return csv_text([keys, *([row.get(key) for key in keys] for row in rows)] if rows else [])


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    pyarrow = _pyarrow()
    plain = [
        {
            key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for key, value in row.items()
        }
        for row in rows
    ]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), buffer)
    return buffer.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "writing parquet") from None
    return pyarrow


WRITERS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
