"""Folders and parquet files in the layouts of Hugging Face's datasets."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colours import COLOURS, noisy_image
from vivace.data.caching.cache import open_cache
from vivace.data.layouts import shards
from vivace.data.place import Data
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import ArchiveError, DataError

pyarrow = pytest.importorskip("pyarrow")
import pyarrow.parquet as parquet  # noqa: E402

MakeFolder = Callable[..., Path]
NAMES = sorted(COLOURS)


def rows_of(count: int, seed: int = 0) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for label, name in enumerate(NAMES):
        for index in range(count):
            data = io.BytesIO()
            noisy_image(COLOURS[name], seed + 100 * label + index).save(data, "PNG")
            rows.append({"image": {"bytes": data.getvalue(), "path": f"../../{name}{index}.png"}, "label": label})
    return rows


def test_one_hot_tables_of_roboflow_are_read(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
        lines = [f"{index}.jpg, {index % 2}, {1 - index % 2}\n" for index in range(6)]
        (tmp_path / split / "_classes.csv").write_text("filename, circle, square\n" + "".join(lines))
        for index in range(6):
            (tmp_path / split / f"{index}.jpg").write_bytes(b"x")
    source = open_source(tmp_path)
    assert source.classes == ("circle", "square")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert source.splits["train"].labels.tolist() == [1, 0, 1, 0, 1, 0]


def named(table: object) -> object:
    features = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})  # type: ignore[attr-defined]


def flat_split(root: Path, made: Path, kind: str) -> None:
    """A split folder with images beside a metadata table."""
    rows = []
    for path in sorted(made.rglob("*.png")):
        target = root / f"{path.parent.name}{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        rows.append({"file_name": target.name, "label": path.parent.name})
    if kind == "csv":
        text = "file_name,label\n" + "".join(f"{row['file_name']},{row['label']}\n" for row in rows)
        (root / "metadata.csv").write_text(text)
    elif kind == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), root / "metadata.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_in_split_folders_and_in_the_root(make_folder: MakeFolder, tmp_path: Path, kind: str) -> None:
    made, root = make_folder(), tmp_path / "hf"
    flat_split(root / "train", made, kind)
    flat_split(root / "validation", made, kind)
    source = open_source(root)
    assert source.classes == tuple(NAMES)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 24, "val": 24}
    assert open_source(root / "train").classes == tuple(NAMES)


def test_class_folders_take_precedence_over_a_table_of_captions(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "metadata.csv").write_text("file_name,text\nred/000.png,a caption\n")
    assert len(open_source(root).splits["train"]) == 24


@pytest.mark.parametrize("names", [True, False])
def test_shards_of_parquet_are_read(tmp_path: Path, names: bool) -> None:
    root = tmp_path / "colours"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("x")
    for name, seed in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1000), ("test-00000-of-00001", 2000)):
        table = pyarrow.Table.from_pylist(rows_of(4, seed))
        parquet.write_table(named(table) if names else table, root / "data" / f"{name}.parquet")
    source = open_source(root)
    assert source.classes == (tuple(NAMES) if names else ("0", "1", "2"))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 24, "test": 12}
    cache = open_cache(source, Preprocess(size=16, store_size=16))
    assert len(cache.splits["train"].names) == 24
    assert not cache.audit.findings


def test_one_file_holds_the_images_themselves(tmp_path: Path, own_cache: Path) -> None:
    rows = rows_of(3)
    parquet.write_table(named(pyarrow.Table.from_pylist(rows)), tmp_path / "colours.parquet")
    source = open_source(tmp_path / "colours.parquet")
    assert source.classes == tuple(NAMES)
    paths = source.splits["train"].paths
    assert paths is not None
    # files are named by numbers, because the paths in the file are untrusted
    assert all(Path(path).is_relative_to(own_cache) and path.endswith(".png") for path in paths)
    encoded = rows[0]["image"]
    assert isinstance(encoded, dict)
    np.testing.assert_array_equal(Image.open(paths[0]), Image.open(io.BytesIO(encoded["bytes"])))


def test_shards_that_unpack_to_far_more_than_their_size_are_refused(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "RATIO_FLOOR_BYTES", 1 << 16)
    rows = [{"image": {"bytes": bytes(1 << 20), "path": None}, "label": index % 2} for index in range(64)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "bomb.parquet", compression="zstd")
    with pytest.raises(ArchiveError, match=r"too many bytes: .*bomb\.parquet unpacks to over 100 times its size"):
        open_source(tmp_path / "bomb.parquet")
    assert not list((own_cache / "archives").glob("*"))


def test_rows_without_a_class_are_bad_rows(tmp_path: Path) -> None:
    row = {"image": {"bytes": b"x", "path": "x.png"}, "label": None}
    parquet.write_table(pyarrow.Table.from_pylist([*rows_of(4), row]), tmp_path / "x.parquet")
    source = open_source(tmp_path, cache_dir=tmp_path / "cache")
    assert [(bad.reason, bad.lines) for bad in source.bad_rows] == [("missing_label", (13,))]


def test_rows_without_an_image_are_named(tmp_path: Path) -> None:
    row = {"image": {"bytes": None, "path": "x.png"}, "label": 0}
    parquet.write_table(pyarrow.Table.from_pylist([*rows_of(4), row]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="row 13: the image has no bytes, only a path"):
        open_source(tmp_path / "x.parquet")


@pytest.mark.parametrize("folder", [False, True])
def test_the_column_of_images_may_be_named(tmp_path: Path, folder: bool) -> None:
    # two columns of images: the second one is wanted
    rows = [
        {"mask": row["image"], "X-Ray": rows_of(3, 999)[i]["image"], "b": i % 3} for i, row in enumerate(rows_of(3))
    ]
    (tmp_path / "hf").mkdir()
    path = tmp_path / "hf" / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = path.parent if folder else path
    pixels = []
    for column in ("mask", "x ray"):
        source = open_source(Data(data, image_column=column, label_column="b"))
        assert source.splits["train"].paths is not None
        pixels.append(Path(source.splits["train"].paths[0]).read_bytes())
    assert pixels == [rows[0][name]["bytes"] for name in ("mask", "X-Ray")]  # type: ignore[index]
    wrong = (
        "there is no column 'y'"
        if not folder
        else r"there is no column 'y' of images; images are in mask, X-Ray\. Name a column"
    )
    with pytest.raises(DataError, match=wrong):
        open_source(Data(data, image_column="y", label_column="b"))


def test_columns_of_metadata_tables_may_be_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = tmp_path / "hf"
    flat_split(root / "train", make_folder(), "csv")
    table = root / "train" / "metadata.csv"
    table.write_text(table.read_text().replace("file_name,label", "a,b"))
    with pytest.raises(DataError, match="no column holds the image files"):
        open_source(root)
    assert open_source(Data(root, image_column="a", label_column="b")).classes == tuple(NAMES)


@pytest.mark.parametrize("kind", ["metadata", "shard", "shards"])
def test_an_archive_holds_what_a_folder_may(make_folder: MakeFolder, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "hf"
    if kind == "metadata":
        made = make_folder()
        for split in ("train", "validation"):
            flat_split(root / split, made, "csv")
    else:
        (root / "data").mkdir(parents=True)
        table = pyarrow.Table.from_pylist(rows_of(4))
        names = ("train",) if kind == "shard" else ("train-0", "validation-0")
        for name in names:
            parquet.write_table(named(table), root / ("" if kind == "shard" else "data") / f"{name}.parquet")
        if kind == "shard":
            (root / "data").rmdir()
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    source, plain = open_source(packed), open_source(root)
    assert (source.name, source.classes) == ("packed", tuple(NAMES))
    assert {name: len(split) for name, split in source.splits.items()} == {
        name: len(split) for name, split in plain.splits.items()
    }
