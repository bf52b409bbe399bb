"""Folders, globs, lists, tars and parquet files as one stream: each image once, in order, and nothing trusted."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from streams import encoded, fake_predictor, make_images, make_tar

from vivace.batch import pipeline
from vivace.batch.pipeline import decoded_batches
from vivace.batch.run import predict_stream
from vivace.data.layouts.listing import Skipped
from vivace.errors import ConfigError, DataError, ImageError
from vivace.prediction import Failure
from vivace.predictor import Prediction
from vivace.sources.items import Item, content_of
from vivace.sources.stream import Sources

MEMBERS = {"a.jpg": encoded(10, "JPEG"), "a.cls": b"3", "deep/b.png": encoded(200), "c.json": b"{}"}


def outcomes(tmp_path: Path, paths: Iterable[Any], **options: Any) -> list[Prediction | Failure]:
    found: list[Prediction | Failure] = []
    predict_stream(fake_predictor(tmp_path / "bundle"), paths, each=found.append, **options)
    return found


def names(sources: Iterable[Item]) -> list[str]:
    return [item.name for item in sources]


def test_sources_come_in_the_order_given_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(Path("images"), 3)
    make_tar(Path("shard.tar"), MEMBERS)
    skipped = Skipped()
    listed = io.BytesIO(b"images/001.png\nshard.tar\nextra.png\n")
    sources = Sources(["images/002.png", "images", "shard.tar", "-", "imag*/*.png"], left=skipped, stdin=listed)
    assert names(sources) == [
        "images/002.png",
        "images/000.png",
        "images/001.png",
        "shard.tar/a.jpg",
        "shard.tar/deep/b.png",
        "extra.png",
    ]
    assert sources.num_repeated == 6
    assert len(skipped) == 2


def test_how_many_there_are_is_known_where_names_tell(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 3)
    (images / "notes.txt").write_text("x")
    totals: list[tuple[int, int | None]] = []
    paths = [images, images / "000.png"]
    predict_stream(fake_predictor(tmp_path / "bundle"), paths, progress=lambda *step: totals.append(step))
    assert totals == [(3, 4)]
    tar = make_tar(tmp_path / "shard.tar", MEMBERS)
    assert Sources([images, tar], left=[]).count() is None
    assert Sources(["-"], left=[]).count() is None
    assert Sources([images], left=[]).count(seconds=-1) is None


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_images_in_a_tar_are_classified_like_files(tmp_path: Path, mode: str) -> None:
    make_tar(tmp_path / f"shard.tar{mode[1:].replace(':', '.')}", MEMBERS, mode)
    for name in ("a.jpg", "deep/b.png"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(MEMBERS[name])
    packed = outcomes(tmp_path, [next(tmp_path.glob("shard.tar*"))])
    plain = outcomes(tmp_path, [tmp_path / "files"])
    assert [row.label for row in packed if isinstance(row, Prediction)] == ["dark", "light"]
    assert [row.topk for row in packed] == [row.topk for row in plain]  # type: ignore[union-attr]


def test_a_tar_is_not_trusted(tmp_path: Path) -> None:
    """Links, devices and members that lead outside are no images, and nothing is unpacked."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, kind, target in (
            ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.png", tarfile.LNKTYPE, "../x.png"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("device.png", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        info = tarfile.TarInfo("../../outside.png")
        info.size = len(encoded(9))
        tar.addfile(info, io.BytesIO(encoded(9)))
    skipped = Skipped()
    sources = Sources([tmp_path / "shard.tar"], left=skipped)
    assert names(sources) == [f"{tmp_path}/shard.tar/../../outside.png"]
    assert len(skipped) == 4
    before = sorted(tmp_path.parent.rglob("*"))
    assert len(outcomes(tmp_path / "..", [tmp_path / "shard.tar"])) == 1
    assert {path.name for path in set(tmp_path.parent.rglob("*")) - set(before)} <= {"bundle", "bundle.json"}


def test_what_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    found = outcomes(tmp_path, [tmp_path / name for name in ("gone.tar", "gone.parquet", "gone.png")])
    assert [row.problem for row in found if isinstance(row, Failure)] == ["unreadable"] * 3


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_is_cut_short_gives_its_images_and_an_error(tmp_path: Path, mode: str) -> None:
    path = make_tar(tmp_path / "shard.tar", {f"{index}.png": encoded(index) for index in range(200)}, mode)
    path = path.rename(tmp_path / ("shard.tgz" if mode == "w:gz" else "shard.tar"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *found, last = outcomes(tmp_path, [path, make_images(tmp_path / "images", 1, damaged=())])
    *images, error = found
    assert isinstance(error, Failure)
    assert (error.path, error.problem) == (str(path), "damaged_archive")
    assert images
    assert all(isinstance(row, Prediction) for row in images)
    # the others go on
    assert last.path == str(tmp_path / "images" / "000.png")


def test_a_tar_that_unpacks_to_far_more_than_its_size_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vivace.sources.shards.FREE_BYTES", 100_000)
    path = make_tar(tmp_path / "bomb.tar.gz", {f"{index}.png": bytes(2**20) for index in range(9)}, "w:gz")
    (error,) = outcomes(tmp_path, [path])
    assert isinstance(error, Failure)
    assert "a decompression bomb" in error.message


def test_a_list_of_headers_is_not_kept(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "shard.tar", {f"{index:06d}.cls": b"1" for index in range(3000)})
    held: list[int] = []
    original = tarfile.TarFile.next

    def counting(tar: tarfile.TarFile) -> Any:
        held.append(len(tar.members))
        return original(tar)

    skipped = Skipped()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", counting)
        with pytest.raises(DataError, match="there are no images in"):
            names(Sources([path], left=skipped))
    assert len(skipped) == 3000
    assert max(held) <= 1


def images_table(path: Path, images: list[Any], kind: Any = None, **options: Any) -> Path:
    table = pyarrow.table({"label": list(range(len(images))), "image": pyarrow.array(images, kind)})
    pyarrow.parquet.write_table(table, path, **options)
    return path


def test_images_in_a_parquet_file_are_read_by_rows(tmp_path: Path) -> None:
    pictures = [{"bytes": encoded(index * 25), "path": None} for index in range(10)]
    pictures[3] = {"bytes": None, "path": "elsewhere.png"}
    path = images_table(tmp_path / "rows.parquet", pictures, row_group_size=4)
    found = outcomes(tmp_path, [path])
    assert [row.path for row in found] == [f"{path}#{row}" for row in range(10)]
    assert [row.path for row in found if isinstance(row, Failure)] == [f"{path}#3"]
    assert [row.label for row in found if isinstance(row, Prediction)] == ["dark"] * 5 + ["light"] * 4


@pytest.mark.parametrize("done", [0, 1, 4, 7, 10, 12])
def test_rows_that_are_done_are_not_read_again(tmp_path: Path, done: int) -> None:
    path = images_table(tmp_path / "rows.parquet", [encoded(index) for index in range(10)], row_group_size=4)
    sources = Sources([path], left=[])
    sources.done = done
    items = list(sources)
    assert names(items) == [f"{path}#{row}" for row in range(10)]
    assert [item.content is None for item in items] == [row < done for row in range(10)]
    assert [content_of(item) for item in items[done:]] == [encoded(index) for index in range(done, 10)]


def test_a_parquet_file_without_images_is_an_error_of_one_row(tmp_path: Path) -> None:
    path = images_table(tmp_path / "rows.parquet", ["text", "text"])
    (error,) = outcomes(tmp_path, [path])
    assert isinstance(error, Failure)
    assert "no column holds images" in error.message


def test_a_list_comes_line_by_line_and_not_at_its_end(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 2, damaged=())
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb", buffering=0) as listing:
        items = iter(Sources(["-"], left=[], stdin=stdin))
        listing.write(f"{images}/000.png\n{images}/00".encode())
        assert next(items).name == str(images / "000.png")
        listing.write(b"1.png\n")
        assert next(items).name == str(images / "001.png")


def test_a_list_that_ends_names_in_two_ways_is_refused() -> None:
    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            return self.readline()

    with pytest.raises(DataError, match="lines, and then a zero byte"):
        list(Sources(["-"], left=[], stdin=Slow(b"a.png\nb.png\0")))


def test_stdin_is_named_once() -> None:
    with pytest.raises(ConfigError, match="stdin is named twice"):
        Sources(["-", "-"], left=[])


def test_the_bounds_of_batches_depend_on_the_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number and bytes: then rows of a resumed run are rounded as those of an unbroken one."""
    monkeypatch.setattr(pipeline, "HELD_BYTES", 50)
    sizes = [10, 10, 10, 10, 60, 10, 45, 10, 10]
    items = [Item(str(number), bytes(size), "") for number, size in enumerate(sizes)]
    for workers in (1, 3):
        batches = decoded_batches(iter(items), lambda data: np.zeros(1), batch_size=3, workers=workers)
        assert [len(batch) for batch, _ in batches] == [3, 2, 2, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_was_found_before_an_error_comes_before_it(batch_size: int, count: int) -> None:
    def items() -> Iterable[Item]:
        yield from (Item(str(number), b"x", "") for number in range(count))
        raise DataError("the folder can't be read")

    seen: list[str] = []

    def look() -> None:
        for batch, _ in decoded_batches(items(), lambda data: np.zeros(1), batch_size=batch_size, workers=2):
            seen.extend(names(batch))

    with pytest.raises(DataError, match="can't be read"):
        look()
    assert seen == [str(number) for number in range(count)]


def test_an_image_of_a_tar_that_is_cut_while_it_is_read_is_a_failure(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "shard.tar", {"a.png": encoded(1), "b.png": encoded(2) + bytes(20_000)})
    item = list(Sources([path], left=[]))[1]
    os.truncate(path, 2000)
    with pytest.raises(ImageError, match="can't be read"):
        content_of(item)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """One folder: neither names nor results are kept."""
    images = make_images(tmp_path / "images", 1, damaged=())
    for index in range(1, 600):
        os.link(images / "000.png", images / f"{index:03d}.png")
    peaks = {}
    for count in (300, 600):
        for path in sorted(images.iterdir())[count:]:
            path.unlink()
        tracemalloc.start()
        predict_stream(fake_predictor(tmp_path / "bundle", batch_size=16), [images])
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if count == 300:
            for index in range(300, 600):
                os.link(images / "000.png", images / f"{index:03d}.png")
    # the names of a folder are sorted: less than 200 bytes for each
    assert peaks[600] - peaks[300] < 300 * 400
