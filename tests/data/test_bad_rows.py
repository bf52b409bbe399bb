"""Unusable rows of a manifest are left out and reported, or refused, by the same policy as unusable images."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.data.audit import write_left_out
from vivace.data.caching.cache import audited_cache, open_cache
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError
from vivace.notices import collected_warnings

PREPROCESS = Preprocess(size=8, store_size=8)
ROWS = [f"images/{number:02d}.png,{'ab'[number % 2]}" for number in range(60)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(noise.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f"images/{number:02d}.png")
    return tmp_path


def write(root: Path, *more: str, rows: list[str] = ROWS, head: str = "file_name,label") -> Path:
    path = root / "list.csv"
    path.write_text("\n".join([head, *rows, *more]) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "reason", "message", "num_kept"),
    [
        ("gone.jpg,a", "missing_file", "line 62: there is no such file: 'gone.jpg'", 60),
        ("/nowhere/x.jpg,a", "missing_file", "line 62: there is no such file: '/nowhere/x.jpg'", 60),
        (",a", "missing_file", "line 62: file_name is empty", 60),
        ("images/00.png,", "missing_label", "line 62: label is empty", 60),
        ("images/00.png", "missing_label", "line 62: label is empty", 60),
        ("page.pdf,a", "format_not_allowed", "line 62: the format is not allowed: 'page.pdf'", 60),
        ("images/00.png,b", "contradiction", "lines 2 and 62: 'images/00.png' is labelled a and b", 59),
        ("./images/00.png,b", "contradiction", "lines 2 and 62: 'images/00.png' is labelled a and b", 59),
    ],
)
@pytest.mark.parametrize("policy", ["auto", "skip", "refuse"])
def test_an_unusable_row_is_treated_like_an_unusable_image(
    root: Path, policy: str, row: str, reason: str, message: str, num_kept: int
) -> None:
    (root / "page.pdf").write_bytes(b"%PDF")
    source = open_source(write(root, row))
    assert [(bad.reason, bad.message) for bad in source.bad_rows] == [(reason, f"list.csv, {message}")]
    if policy == "refuse":
        with pytest.raises(DataError) as error:
            open_cache(source, PREPROCESS, cache_dir=root / "cache", on_bad_image=policy)
        assert message in str(error.value)
        return
    with collected_warnings() as said:
        cache = open_cache(source, PREPROCESS, cache_dir=root / "cache", on_bad_image=policy)
    assert len(cache.splits["train"].names) == num_kept
    lines = "lines 2, 62" if reason == "contradiction" else "line 62"
    shown = "contradictory" if reason == "contradiction" else reason
    assert f"left out 1 of {num_kept + 1} images of list: 1 {shown} ({lines})" in said
    write_left_out(cache.audit, root / "left_out.csv")
    with (root / "left_out.csv").open() as file:
        (listed,) = csv.DictReader(file)
    assert (listed["reason"], listed["message"]) == (reason, f"list.csv, {message}")
    assert [
        found.kind for found in audited_cache(source, PREPROCESS, cache_dir=root / "cache").audit.of("quarantine")
    ] == [reason]


def test_a_missing_label_in_a_json_line_is_reported(root: Path) -> None:
    path = root / "list.jsonl"
    rows = [{"file_name": f"images/{number:02d}.png", "label": "ab"[number % 2]} for number in range(60)]
    del rows[7]["label"]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [(row.reason, row.lines) for row in open_source(path).bad_rows] == [("missing_label", (8,))]


def test_more_than_a_twentieth_is_refused_with_five_lines_at_once(root: Path) -> None:
    source = open_source(write(root, *(f"gone{number}.jpg,a" for number in range(7))))
    with pytest.raises(DataError, match=r"7 of 67 images of list can't be used \(10 %") as error:
        open_cache(source, PREPROCESS, cache_dir=root / "cache")
    assert [number in str(error.value) for number in ("line 62", "line 66", "line 67")] == [True, True, False]
    assert "and 2 more" in str(error.value)
    with collected_warnings() as said:
        cache = open_cache(source, PREPROCESS, cache_dir=root / "cache", on_bad_image="skip")
    assert len(cache.splits["train"].names) == 60
    assert any("7 missing_file (lines 62, 63, 64 and 4 more)" in line for line in said)


def test_a_class_of_which_no_row_is_left_is_refused(root: Path) -> None:
    source = open_source(write(root, "gone.jpg,third"))
    with pytest.raises(DataError, match=r"no row of class third can be used.*line 62.*`on_bad_image='skip'`"):
        open_cache(source, PREPROCESS, cache_dir=root / "cache")
    with collected_warnings() as said:
        open_cache(source, PREPROCESS, cache_dir=root / "cache", on_bad_image="skip")
    assert "no row of class third can be used, so the class is left out" in said


@pytest.mark.parametrize("rows", [["x.jpg,a", "y.jpg,b"], [*ROWS[::2], "x.jpg,b"]])
def test_if_too_few_rows_remain_the_lines_are_reported(root: Path, rows: list[str]) -> None:
    with pytest.raises(DataError, match=r"can't be used, and too few remain: list.csv, line \d+: .*'x.jpg'"):
        open_source(write(root, rows=rows))


def test_a_file_in_two_splits_is_a_leak_and_in_two_classes_a_contradiction(root: Path) -> None:
    rows = [f"{row},train" for row in ROWS]
    more = ("images/00.png,a,test", "images/03.png,a,test", "images/01.png,b,test", "images/05.png,b,test")
    source = open_source(write(root, *more, rows=rows, head="file_name,label,split"))
    assert [(row.reason, row.lines) for row in source.bad_rows] == [("contradiction", (5, 63))]
    with collected_warnings():
        audit = open_cache(source, PREPROCESS, cache_dir=root / "cache", on_bad_image="skip").audit
    leaks = {name for finding in audit.of("quarantine") if finding.kind == "leak" for name in finding.names}
    assert leaks == {"train:images/00.png", "train:images/01.png", "train:images/05.png"}


def test_a_file_in_three_rows_of_two_classes_is_left_out(root: Path) -> None:
    source = open_source(write(root, "images/00.png,b", "images/00.png,a", "images/02.png,a"))
    assert [(row.file, row.lines) for row in source.bad_rows] == [("images/00.png", (2, 62, 63))]
    assert "images/00.png" not in source.splits["train"].names
    assert source.splits["train"].names.count("images/02.png") == 1


def test_metadata_of_split_folders_and_one_hot_columns_are_judged_alike(root: Path) -> None:
    (root / "train").mkdir()
    for file in (root / "images").iterdir():
        shutil.copy(file, root / "train" / file.name)
    lines = [f"{number:02d}.png,{number % 2},{1 - number % 2}" for number in range(59)]
    (root / "train" / "metadata.csv").write_text("\n".join(["file_name,a,b", *lines, "59.png,0,0"]))
    source = open_source(root)
    assert [(row.reason, row.lines) for row in source.bad_rows] == [("missing_label", (61,))]


def test_rows_corrected_in_the_table_are_used_without_decoding_again(root: Path) -> None:
    bad = open_source(write(root, "gone.jpg,a"))
    with collected_warnings():
        first = open_cache(bad, PREPROCESS, cache_dir=root / "cache")
    second = open_cache(open_source(write(root)), PREPROCESS, cache_dir=root / "cache", on_bad_image="refuse")
    assert (first.fingerprint, second.audit.quarantined) == (second.fingerprint, frozenset())


def test_backslashes_of_windows_are_separators(root: Path) -> None:
    rows = [row.replace("/", "\\") for row in ROWS]
    source = open_source(write(root, "images\\gone.png,a", rows=rows))
    assert source.splits["train"].names[0] == "images/00.png"
    assert source.notes == (r"backslashes in file names of list.csv were read as slashes, as in 'images\00.png'",)
    assert source.bad_rows[0].message == (
        r"list.csv, line 62: there is no such file: 'images\gone.png' (nor with / in place of \)"
    )
    # on other systems a name may hold a backslash
    (root / "images" / "00.png").rename(root / r"images\00.png")
    assert r"images\00.png" in open_source(write(root, rows=rows)).splits["train"].names
    (root / "images" / r"odd\name.png").write_bytes(b"x")
    assert r"images/odd\name.png" in open_source(write(root, r"odd\name,a")).splits["train"].names
    with pytest.raises(DataError, match="lies outside the manifest's folder"):
        open_source(write(root, r"..\..\x.png,a"))


@pytest.mark.parametrize("written", ["images/{}", "images\\{}", "{}"])
def test_a_table_without_header_is_understood(root: Path, written: str) -> None:
    rows = [written.format(row.removeprefix("images/")) for row in ROWS]
    (root / "list.csv").write_text("\n".join(rows))
    source = open_source(root / "list.csv")
    assert len(source.splits["train"]) == 60
    assert "list.csv has no header line: its columns were taken for file_name and label" in source.notes


def test_the_lines_of_a_table_without_header_are_counted_from_its_first(root: Path) -> None:
    (root / "list.csv").write_text("\n".join(["# by hand", "", *ROWS, "gone.png,a"]))
    source = open_source(root / "list.csv")
    assert source.bad_rows[0].lines == (63,)
    assert "skipped 1 comment line above the header of list.csv" in source.notes


@pytest.mark.parametrize("text", ["0.png,a,train\n", "a,0.png\n", "0.png\n1.png\n", "0,a,x\n"])
def test_a_table_without_header_that_is_unclear_is_refused(tmp_path: Path, text: str) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=r"no header line: the first row of .* names an image: got .*file_name,label"):
        open_source(tmp_path / "list.csv")


@pytest.mark.parametrize("head", ["# made by me\n\n# and me\nfile_name,label", "#file_name,label", "\nfile_name,label"])
def test_comments_above_the_header_are_skipped_and_a_header_that_looks_like_one_is_read(root: Path, head: str) -> None:
    source = open_source(write(root, head=head))
    assert len(source.splits["train"]) == 60
    assert source.notes == (("skipped 2 comment lines above the header of list.csv",) if "made" in head else ())
