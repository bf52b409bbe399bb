"""Reads rows of parquet files in bounded memory, whatever a file claims to hold (no torch here).

A few hundred bytes may expand to gigabytes: compressed pages, a long text that a dictionary gives to every row, row
counts without stored rows. So the headers of all pages are read first: memory is allocated by the sizes in them, while
the sizes in the file's footer may be wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from vivace.data.layouts.columns import check_width
from vivace.data.text import shortened
from vivace.errors import ArchiveError, DataError, MissingExtra

__all__ = ["MAX_LIST", "import_parquet", "read_rows", "read_schema"]

# as for archives: a file may unpack to MAX_RATIO times its size, and always to FREE_BYTES
MAX_RATIO, FREE_BYTES = 100, 50 * 2**20
# images are already compressed: a page of them hardly shrinks
MAX_PAGE_RATIO = 10
# file names differ, so each row takes at least some bits
ROWS_PER_BYTE, FREE_ROWS = 20, 100_000
# of a column, read at once; any row may hold the largest value of its dictionary
BATCH_BYTES = 32 * 2**20
MAX_HEADER = 1 << 20
# values in a row of a column of lists, on average
MAX_LIST = 1000
# the types of thrift's compact protocol that occur in a page header
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
# from parquet.thrift: the type of a dictionary page, and the encoding in which values repeat the previous ones
DICTIONARY_PAGE, DELTA_BYTE_ARRAY = 2, 7


def read_schema(path: Path) -> Any:
    """The pyarrow schema of a file.

    Raises DataError if it is not parquet, has too many columns, or has two columns of the same name.
    """
    parquet = import_parquet().parquet
    try:
        schema = parquet.read_schema(path)
    except _errors() as error:
        raise _unreadable(path, error) from None
    check_width(len(schema.names), str(path))
    if twins := sorted(name for name, count in Counter(schema.names).items() if count > 1):
        raise DataError(f"{path}: two columns are called {shortened(twins[0])}. Remove or rename one.")
    return schema


def read_rows(
    path: Path, columns: Sequence[str], *, batch_rows: int, pixels: str | None = None, first: int = 0
) -> Iterator[Any]:
    """Yields rows as dictionaries, with the given columns only.

    pixels: the one column that may hold encoded images, as bytes or as a struct with a field "bytes". first: rows
    before this one are left out, whole row groups of them unread. Raises
    ArchiveError for a file that expands to far more memory or rows than its size allows, DataError if it can't be read
    or if another column holds anything but text and numbers.
    """
    pyarrow, schema = import_parquet(), read_schema(path)
    leaves: list[str] = []
    lists: list[str] = []
    for name in dict.fromkeys(columns):
        kind = schema.field(name).type
        if name == pixels:
            leaves.append(f"{name}.bytes" if pyarrow.types.is_struct(kind) else name)
        elif _is_flat(kind, pyarrow.types):
            leaves.append(name)
        elif _is_list(kind, pyarrow.types):
            leaves.append(name)
            lists.append(name)
        else:
            raise DataError(
                f"{path}: {shortened(name)} is not text: it holds {shortened(str(kind))}. Name another column."
            )
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            largest = _check_pages(path, file.metadata, leaves, lists)
            size = max(1, min(batch_rows, BATCH_BYTES // max(1, largest)))
            num_rows, groups = _groups_from(file.metadata, first)
            for batch in file.iter_batches(batch_size=size, columns=leaves, row_groups=groups):
                before, num_rows = num_rows, num_rows + batch.num_rows
                if num_rows > file.metadata.num_rows:
                    raise ArchiveError(
                        f"{path} holds more rows than the {file.metadata.num_rows:,} that it states. Write it again."
                    )
                yield from batch.slice(max(0, first - before)).to_pylist()
    except _errors() as error:
        raise _unreadable(path, error) from None


def _groups_from(metadata: Any, first: int) -> tuple[int, list[int]]:
    """(the first row, the numbers) of the row groups that hold the row `first` and those after it."""
    before = 0
    for group in range(metadata.num_row_groups):
        after = before + metadata.row_group(group).num_rows
        if after > first:
            return before, list(range(group, metadata.num_row_groups))
        before = after
    return before, []


def _is_flat(kind: Any, types: Any) -> bool:
    """Whether values are text, numbers or bytes."""
    if types.is_dictionary(kind):
        return _is_flat(kind.value_type, types)
    tests = ("primitive", "string", "large_string", "string_view", "binary", "large_binary", "binary_view", "decimal")
    return types.is_null(kind) or any(getattr(types, f"is_{name}", lambda _: False)(kind) for name in tests)


def _is_list(kind: Any, types: Any) -> bool:
    """Whether values are lists of text or whole numbers, such as the labels of an image."""
    if not any(getattr(types, f"is_{name}")(kind) for name in ("list", "large_list", "fixed_size_list")):
        return False
    inner = kind.value_type.value_type if types.is_dictionary(kind.value_type) else kind.value_type
    return any(getattr(types, f"is_{name}")(inner) for name in ("string", "large_string", "integer", "null"))


def _check_pages(path: Path, metadata: Any, leaves: Sequence[str], lists: Sequence[str]) -> int:
    """The bytes of the largest dictionary, an upper bound for a single value. Raises ArchiveError for a bomb.

    lists: the columns among them whose rows hold several values: a row of one may hold a billion, in a few bytes.
    """
    num_bytes = path.stat().st_size
    if metadata.num_rows > max(FREE_ROWS, ROWS_PER_BYTE * num_bytes):
        raise _bomb(path, f"{metadata.num_rows:,} rows")
    largest = total = listed = 0
    with path.open("rb") as file:
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(number)
                column = chunk.path_in_schema.partition(".")[0]
                if chunk.path_in_schema not in leaves and column not in lists:
                    continue
                for kind, num_unpacked, num_stored, num_values in _pages(path, file, chunk):
                    total += num_unpacked
                    listed += num_values if column in lists and kind != DICTIONARY_PAGE else 0
                    if listed > MAX_LIST * metadata.num_rows:
                        raise _bomb(path, f"over {MAX_LIST:,} labels a row")
                    if num_unpacked > max(FREE_BYTES, MAX_PAGE_RATIO * num_stored):
                        raise _bomb(path, f"a page of {num_unpacked:,} bytes")
                    if total > max(FREE_BYTES, MAX_RATIO * num_bytes):
                        raise _bomb(path, f"over {total:,} bytes")
                    largest = max(largest, num_unpacked if kind == DICTIONARY_PAGE else 0)
    return largest


def _pages(path: Path, file: IO[bytes], chunk: Any) -> Iterator[tuple[int, int, int, int]]:
    """(type, uncompressed bytes, stored bytes, number of values) of each page of a column chunk."""
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    end, num_values = place + chunk.total_compressed_size, 0
    while place < end and num_values < chunk.num_values:
        header, length = _header(file, place)
        kind, num_unpacked, num_stored = (header.get(field) for field in (1, 2, 3))
        data = header.get(5) or header.get(8) or {}
        if not isinstance(data, dict):
            raise ValueError("invalid page header")
        encoding = data.get(2 if 5 in header else 4)
        sizes = [number for number in (kind, num_unpacked, num_stored, data.get(1, 0)) if isinstance(number, int)]
        if len(sizes) < 4 or not all(0 <= number < 2**31 for number in sizes):
            raise ValueError("invalid page header")
        if encoding == DELTA_BYTE_ARRAY:
            raise DataError(
                f"{path}: the encoding DELTA_BYTE_ARRAY is not supported: a few bytes of it may expand to gigabytes. "
                "Write the file again with the defaults of pyarrow or polars."
            )
        num_values += sizes[3]
        place += length + sizes[2]
        yield sizes[0], sizes[1], sizes[2], sizes[3]


def _header(file: IO[bytes], place: int) -> tuple[dict[int, Any], int]:
    """(fields, length in bytes) of the page header at `place`."""
    for size in (1 << 10, MAX_HEADER):
        file.seek(place)
        data = file.read(size)
        try:
            return _struct(data, 0)
        except IndexError:
            continue
    raise ValueError("a page header without an end")


def _struct(data: bytes, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """(field → number or inner struct, end position) of the thrift struct at `place`; text is skipped.

    Raises IndexError if the data end first, ValueError for an unexpected type.
    """
    fields: dict[int, Any] = {}
    field = 0
    while mark := data[place]:
        kind, place = mark & 15, place + 1
        if mark >> 4:
            field += mark >> 4
        else:
            field, place = _number(data, place)
        if kind in (I16, I32, I64):
            fields[field], place = _number(data, place)
        elif kind == STRUCT and depth < 4:
            fields[field], place = _struct(data, place, depth + 1)
        elif kind == BINARY:
            length, place = _varint(data, place)
            place += length
        elif kind in (TRUE, FALSE, BYTE, DOUBLE):
            place += {BYTE: 1, DOUBLE: 8}.get(kind, 0)
        else:
            raise ValueError("invalid page header")
    return fields, place + 1


def _number(data: bytes, place: int) -> tuple[int, int]:
    value, place = _varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("invalid page header")


def _bomb(path: Path, what: str) -> ArchiveError:
    return ArchiveError(
        f"the parquet file is a decompression bomb: {path} of {path.stat().st_size:,} bytes unpacks to {what}. "
        "Do not use it."
    )


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"the manifest can't be read: {path} ({reason}). Give UTF-8 text, or parquet.")


def _errors() -> tuple[type[BaseException], ...]:
    # pyarrow has its own subclasses of MemoryError, KeyError and TypeError
    return (OSError, ValueError, NotImplementedError, MemoryError, KeyError, TypeError, import_parquet().ArrowException)


def import_parquet() -> Any:
    """pyarrow, with its parquet module. Raises MissingExtra."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "a parquet manifest") from None
    return pyarrow
