"""Predictions as CSV, JSON lines or parquet; and the table of a run, read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vivace.errors import ConfigError, MissingExtra, OutputPathError, VivaceError
from vivace.files import atomic_file, read_regular
from vivace.outputs import check_file, csv_text, writing

__all__ = ["check_table", "read_rows", "write_rows"]

# of half a million validations
MAX_TABLE_BYTES = 2**26
# files that together tell what a folder is
WHOLES = {("bundle.json",): "a bundle", ("model.json",): "a deployment", ("run.json", "recipe.yaml"): "a run"}


def check_table(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> str | None:
    """What `write_rows` would replace, or None: to be asked before the rows are made.

    inputs: what they are made from. Raises ConfigError for another extension than .csv, .jsonl and .parquet,
    MissingExtra for parquet without pyarrow, OutputPathError for a file that is there, unless `overwrite` and it is no
    part of a bundle, a deployment or a run, or a place
    that can't be written.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(f"the format is unknown: got {path.name!r}. Use .csv, .jsonl or .parquet.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    found = check_file(path, inputs=inputs, overwrite=overwrite, advice="give --overwrite to replace it")
    if found is not None:
        _check_no_part(path)
    return found


def _check_no_part(path: Path) -> None:
    """Raises OutputPathError for a file of a bundle, a deployment or a run: whoever names one is mistaken."""
    for folder in path.resolve().parents:
        for names, called in WHOLES.items():
            if all((folder / name).is_file() for name in names):
                raise OutputPathError(
                    f"--out is there already, in the folder of {called}: {path}. Such files are not replaced: give "
                    "another name."
                )


def write_rows(rows: Sequence[dict[str, Any]], path: Path, *, overwrite: bool = False) -> None:
    """Write rows of equal keys, atomically, in the format of the extension: .csv, .jsonl or .parquet.

    overwrite: replace a file that is there. A table can be edited without a trace, so none is taken for vivace's own.
    Bytes of file names that are no UTF-8 come out as they were in CSV, and as \\udcXX escapes in the others;
    in CSV, text that spreadsheets would run as a formula has a ' before it.
    Raises what `check_table` raises, and VivaceError if the disk is full.
    """
    check_table(path, overwrite=overwrite)
    content = WRITERS[path.suffix.lower()](rows)
    with writing(path), atomic_file(path) as file:
        file.write(content)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that are whole: the last one may be cut short while it is written.

    Raises VivaceError if it can't be read, or is larger than the table of any run.
    """
    try:
        table = io.StringIO(read_regular(path, MAX_TABLE_BYTES).decode(), newline="")
        return [row for row in csv.DictReader(table) if None not in row.values()]
    except (OSError, ValueError, csv.Error) as error:
        raise VivaceError(f"the table can't be read: {path} ({error}). Put the one of the run in its place.") from None


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
