"""A parquet file of rows that were written as JSON lines: made at the end, in bounded memory, the same each time.

A parquet file that was cut short can't be continued; lines can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.errors import MissingExtra

if TYPE_CHECKING:
    from vivace.batch.rows import Columns

__all__ = ["import_pyarrow", "write_parquet"]

# of a row group
ROWS = 10_000


def import_pyarrow() -> Any:
    """pyarrow, with its parquet module. Raises MissingExtra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "writing parquet") from None
    return pyarrow


def write_parquet(rows: Path, columns: Columns, file: Any) -> None:
    """Write the rows of a file of JSON lines as parquet; the types of columns do not depend on the rows."""
    pyarrow = import_pyarrow()
    schema = pyarrow.schema([(name, _type_of(name, pyarrow)) for name in columns.names])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        wrote = False
        for part in _parts(rows):
            writer.write_table(pyarrow.Table.from_pylist(part, schema))
            wrote = True
        if not wrote:
            writer.write_table(schema.empty_table())


def _parts(rows: Path) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    with rows.open("rb") as lines:
        for line in lines:
            part.append({name: _valid(value) for name, value in json.loads(line).items()})
            if len(part) == ROWS:
                yield part
                part = []
    if part:
        yield part


def _valid(value: Any) -> Any:
    """Labels may hold bytes that are no UTF-8: these as escapes, as parquet has no others."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _type_of(name: str, pyarrow: Any) -> Any:
    if name in ("abstain", "ood"):
        return pyarrow.bool_()
    if name in ("labels", "prediction_set"):
        return pyarrow.list_(pyarrow.string())
    if name == "probabilities":
        return pyarrow.list_(pyarrow.float64())
    if name.startswith("probability_") or name == "ood_score":
        return pyarrow.float64()
    return pyarrow.string()
