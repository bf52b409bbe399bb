"""Predictions as CSV, JSON lines or parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vivace.errors import ConfigError, MissingExtra
from vivace.files import atomic_file

__all__ = ["write_rows"]


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows of equal keys, atomically, in the format of the extension: .csv, .jsonl or .parquet.

    Bytes of file names that are no UTF-8 come out as they were in CSV, and as \\udcXX escapes in the others.
    Raises ConfigError for another extension and MissingExtra for parquet without pyarrow.
    """
    writers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in writers:
        raise ConfigError(f"the format is unknown: got {path.name!r}. Use .csv, .jsonl or .parquet.")
    content = writers[path.suffix.lower()](rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "writing parquet") from None
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
