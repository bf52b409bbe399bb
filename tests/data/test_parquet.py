"""Small parquet files that expand to gigabytes are refused before they are read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from vivace.data.layouts import parquet
from vivace.data.layouts.parquet import read_rows, read_schema
from vivace.data.sources import open_source
from vivace.errors import ArchiveError, DataError

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet as writer  # noqa: E402


def write(tmp_path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = tmp_path / "list.parquet"
    writer.write_table(pyarrow.table(columns), path, **{"compression": "zstd", "store_schema": False, **options})
    return path


def repeated(text: str | bytes, count: int) -> Any:
    numbers = pyarrow.array([0], pyarrow.int32()).take(pyarrow.nulls(count, pyarrow.int32()).fill_null(0))
    return pyarrow.DictionaryArray.from_arrays(numbers, pyarrow.array([text]))


def test_one_text_for_all_rows_takes_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path, {"file_name": repeated("x" * 300_000, 4000), "label": ["a"] * 4000})
    assert path.stat().st_size < 2000
    pool = pyarrow.default_memory_pool()
    before, rows = pool.bytes_allocated(), read_rows(path, ["file_name"], batch_rows=10_000)
    assert len(next(rows)["file_name"]) == 300_000
    assert pool.bytes_allocated() - before < 2 * parquet.BATCH_BYTES
    rows.close()
    with pytest.raises(DataError, match=r"line 1: file_name is too long: 300,000 characters, the limit is 131,072\."):
        open_source(path)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_page_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path, dictionary: bool) -> None:
    columns = {"image": [bytes(60 << 20)], "label": ["a"]}
    path = write(tmp_path, columns, use_dictionary=dictionary)
    with pytest.raises(
        ArchiveError, match=r"a decompression bomb: .* unpacks to a page of 62,914,5\d\d bytes\. Do not use it\."
    ):
        open_source(path)
    path.write_bytes(path.read_bytes()[:20] + path.read_bytes()[30:])
    with pytest.raises(DataError):
        open_source(path)


def test_pages_that_are_too_much_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"image": [bytes(1 << 20) for _ in range(8)], "label": ["a"] * 8}
    path = write(tmp_path, columns, use_dictionary=False, data_page_size=1 << 20, write_batch_size=1)
    monkeypatch.setattr(parquet, "FREE_BYTES", 4 << 20)
    with pytest.raises(ArchiveError, match=r"a decompression bomb: .* unpacks to over"):
        open_source(path)


def test_rows_that_no_file_could_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"file_name": repeated("x.png", 200_000), "label": repeated("a", 200_000)})
    with pytest.raises(ArchiveError, match=r"a decompression bomb: .* unpacks to 200,000 rows"):
        open_source(path)


def test_empty_images_count_against_the_limit(tmp_path: Path, own_cache: Path) -> None:
    path = write(tmp_path, {"image": [b""] * 20_000, "label": ["a"] * 20_000})
    with pytest.raises(ArchiveError, match="too many bytes"):
        open_source(path)
    assert not list((own_cache / "archives").glob("*"))


@pytest.mark.parametrize("name", ["label", "image"])
def test_columns_of_lists_of_bytes_are_refused_unread(tmp_path: Path, name: str) -> None:
    columns: dict[str, Any] = {"image": [b"x"] * 4, "label": [b"a"] * 4}
    columns = {key: [[value] for value in values] if key == name else values for key, values in columns.items()}
    with pytest.raises(DataError, match=rf"{name} is not text: it holds list<"):
        open_source(write(tmp_path, columns))


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_row_with_a_hundred_thousand_labels_is_refused_unread(tmp_path: Path, dictionary: bool) -> None:
    path = write(tmp_path, {"file_name": ["0.png"], "label": [[7] * 100_000]}, use_dictionary=dictionary)
    with pytest.raises(ArchiveError, match="over 1,000 labels a row"):
        open_source(path)


def test_delta_encoded_texts_are_refused(tmp_path: Path) -> None:
    columns = {"file_name": ["x" * 1000 + str(index) for index in range(9)], "label": ["a"] * 9}
    path = write(tmp_path, columns, use_dictionary=False, column_encoding={"file_name": "DELTA_BYTE_ARRAY"})
    with pytest.raises(DataError, match="the encoding DELTA_BYTE_ARRAY is not supported"):
        open_source(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table([["a"], ["b"], ["c"]], names=["file_name", "label", "label"])
    writer.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(DataError, match="two columns are called label"):
        read_schema(tmp_path / "list.parquet")


@pytest.mark.parametrize(
    ("compression", "version", "dictionary"),
    [*itertools.product(("snappy", "gzip", "none"), ("1.0", "2.0"), (True, False))],
)
def test_page_headers_are_read_correctly(tmp_path: Path, compression: str, version: str, dictionary: bool) -> None:
    columns = {"file_name": [f"{index:07}.png" for index in range(20_000)], "label": list(range(20_000))}
    path = write(
        tmp_path,
        columns,
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        data_page_size=20_000,
        write_page_checksum=True,
    )
    with writer.ParquetFile(path) as opened, path.open("rb") as file:
        for number in range(2):
            chunk = opened.metadata.row_group(0).column(number)
            pages = list(parquet._pages(path, file, chunk))
            assert len(pages) >= 3
            assert {kind for kind, *_ in pages} == ({2} if dictionary else set()) | {0 if version == "1.0" else 3}
            # the chunk's sums hold the headers too
            assert 0 < chunk.total_uncompressed_size - sum(made for _, made, *_ in pages) < 200 * len(pages)
            assert 0 < chunk.total_compressed_size - sum(stored for _, _, stored, _ in pages) < 200 * len(pages)
    assert [row["label"] for row in read_rows(path, ["label"], batch_rows=100)] == columns["label"]


def test_a_damaged_page_header_is_refused_with_our_message(tmp_path: Path) -> None:
    path = write(tmp_path, {"file_name": ["a.png", "b.png"], "label": ["a", "b"]})
    sound, refused = path.read_bytes(), 0
    # the first page lies behind the four letters of the format
    for place, value in itertools.product(range(4, 30), range(1, 256, 5)):
        path.write_bytes(sound[:place] + bytes([value]) + sound[place + 1 :])
        try:
            list(read_rows(path, ["file_name"], batch_rows=10))
        except DataError:
            refused += 1
    assert refused > 500
