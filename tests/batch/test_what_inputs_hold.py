"""What is said of inputs without images, of files that are left out, and of files that mean some images."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from streams import encoded, fake_predictor, make_images, make_tar

from vivace.bars import CountingBar
from vivace.batch.outputs import Outputs
from vivace.batch.run import Streamed, predict_stream
from vivace.data.layouts.listing import Skipped
from vivace.errors import DataError, OutputPathError
from vivace.heatmaps.pictures import HeatMapFolder
from vivace.prediction import Failure
from vivace.predictor import Prediction
from vivace.sources.stream import Sources


def stream(tmp_path: Path, *paths: str | Path, **options: Any) -> tuple[Streamed, list[Prediction | Failure]]:
    found: list[Prediction | Failure] = []
    return predict_stream(fake_predictor(tmp_path / "bundle"), paths, each=found.append, **options), found


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with an image, and a folder, a tar, a parquet file and a glob without one."""
    monkeypatch.chdir(tmp_path)
    make_images(Path("images"), 1, damaged=())
    Path("none").mkdir()
    make_tar(Path("none.tar"), {"a.cls": b"1"})
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), "none.parquet")
    return ["images", "none", "none.tar", "none.parquet", "none/*.png"]


def test_inputs_without_images_are_named_and_the_others_done(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "warning: no images in 'none', 'none.tar', 'none.parquet', 'none/*.png': passed over\n"
    assert stream(tmp_path, *inputs)[0].num_images == 1
    assert capsys.readouterr().err == told
    # a name in a list is no pattern
    listing = io.BytesIO("\n".join(inputs[:-1]).encode())
    assert stream(tmp_path, "-", stdin=listing)[0].num_images == 1
    assert capsys.readouterr().err == told.replace(", 'none/*.png'", "")
    # what is there, but was named before, is no input without images
    assert stream(tmp_path, "images", "images/000.png", "images")[0].num_repeated == 2
    assert capsys.readouterr().err == ""


def test_of_many_inputs_without_images_few_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        (tmp_path / f"none{number}").mkdir()
    stream(tmp_path, make_images(tmp_path / "images", 1, damaged=()), *sorted(tmp_path.glob("none*")))
    assert "none4' and 4 more: passed over" in capsys.readouterr().err


@pytest.mark.parametrize("places", [(1,), (2,), (3,), (4,), (1, 2, 3, 4)])
def test_inputs_without_any_image_are_refused(inputs: list[str], tmp_path: Path, places: tuple[int, ...]) -> None:
    given = [inputs[place] for place in places]
    with pytest.raises(DataError) as caught:
        stream(tmp_path, *given, outputs=Outputs(tmp_path / "out.csv"))
    assert str(caught.value).startswith(f"there are no images in {', '.join(map(repr, given))}. Give files")
    assert not list(tmp_path.glob("out.csv*"))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.tgz"], "holds 1 .tgz: name it, 'shards/*.tgz'"),
        (["a.tar", "deep/b.tar"], "holds 2 .tar: name them, 'shards/**/*.tar'"),
        (["a.zip"], "holds 1 .zip: unpack it"),
    ],
)
def test_a_folder_of_shards_alone_says_how_to_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in names:
        Path("shards", name).parent.mkdir(parents=True, exist_ok=True)
        Path("shards", name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        stream(tmp_path, "shards")
    assert f"there are no images in 'shards', which {told}. " in str(caught.value)


def test_a_file_that_means_images_says_how_to_give_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a.png", encoded(1))
    (tmp_path / "a.csv").write_text("path,label\na.png,x\n")
    (tmp_path / "image.csv").write_bytes(encoded(1))
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.png"], "label": [3]}), tmp_path / "a.parquet")
    names = ("a.zip", "a.csv", "a.parquet", "image.csv")
    _, (packed_row, table, rows, image) = stream(tmp_path, *(tmp_path / name for name in names))
    for row, hint in (
        (packed_row, "unpack it"),
        (table, "on stdin, by -"),
        (rows, "has 'path', 'label'. If one holds"),
    ):
        assert isinstance(row, Failure)
        assert row.problem == "not_an_image"
        assert hint in row.message
        assert "Restore" not in row.message
    # what it holds tells, as in a folder
    assert isinstance(image, Prediction)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w|"])
def test_a_tar_is_taken_like_a_folder(tmp_path: Path, mode: str) -> None:
    """By extension, or by content where that is unknown; without what is hidden."""
    members = {
        "a.png": encoded(1),
        "photo": encoded(200),
        "photo.cls": b"3",
        "deep/image.bin": encoded(201),
        ".hidden.png": encoded(1),
        "__MACOSX/b.png": encoded(1),
        "short": b"",
        "report.pdf": encoded(1),
    }
    for name, content in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    # the order of a folder
    packed = {name: members[name] for name in sorted(members, key=lambda name: ("/" in name, name))}
    make_tar(path := tmp_path / ("s.tar.gz" if mode == "w:gz" else "s.tar"), packed, "w:gz" if mode == "w:gz" else "w")
    given = f"file://{path}" if mode == "w|" else str(path)
    (_, plain), (_, shard) = stream(tmp_path, tmp_path / "folder"), stream(tmp_path, given)
    assert [Path(row.path).name for row in plain] == ["a.png", "photo", "image.bin"]
    assert [Path(row.path).name for row in shard] == ["a.png", "photo", "image.bin"]
    assert [getattr(row, "topk", None) for row in shard] == [getattr(row, "topk", None) for row in plain]


def test_files_that_are_left_out_are_told_by_their_kind(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("p.png", tarfile.FIFOTYPE), ("", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    images = make_images(tmp_path / "images", 1)
    os.mkfifo(images / "pipe.jpg")
    skipped = Skipped()
    list(Sources([images, tmp_path / "s.tar"], left=skipped))
    told = skipped.summary(1)
    assert told is not None
    assert told.startswith("skipped 4 of 5 files: ")
    assert set(told.partition(": ")[2].split(", ")) >= {"2 that are no regular files", "1 links"}
    assert "class folders" not in told
    assert "folders of the system" not in told


def test_what_is_skipped_can_be_printed() -> None:
    assert (
        repr(Skipped(["a.txt", "b.txt", "c/.git/"])) == "Skipped(num_files=2, kinds={'.txt': 2}, folders={'.git': 1})"
    )


def test_a_log_gets_a_line_of_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("vivace.bars.time.monotonic", lambda: now)
    with CountingBar("predicting") as bar:
        for now, done in ((5.0, 1000), (20.0, 1500), (36.0, 4100), (40.0, 4200), (67.0, 10_300)):
            bar.progress(done, 20_000 if now < 50 else None)
        now = 70.0
        bar.stage("square", "653 of 1,000 images are left", unit="rounds")
        for now, done in ((80.0, 10), (110.0, 20)):
            bar.progress(done, 653 if now > 75 else None)
    # the first 1,000 may have been done by an earlier run
    assert capsys.readouterr().err == (
        "predicting: 4,100 of 20,000, 100 images/s\npredicting: 10,300, 200 images/s\n"
        "square: 653 of 1,000 images are left\nsquare: 20 of 653, 0.5 rounds/s\n"
    )


def test_pictures_of_heat_maps_keep_the_names_of_images(tmp_path: Path) -> None:
    names = [
        "花.jpg",
        "a/猫 1.jpg",
        "кот.png",
        "e\u0301t\u00e9.png",
        os.fsdecode(b"\xff.png"),
        "../..",
        "a" * 99,
        "花" * 99,
    ]
    found = [path.name for path in HeatMapFolder(tmp_path / "maps", names).paths]
    assert found[:6] == ["1-花.png", "2-猫_1.png", "3-кот.png", "4-été.png", "5-image.png", "6-image.png"]
    assert found[6:] == [f"7-{'a' * 60}.png", f"8-{'花' * 60}.png"]


@pytest.mark.parametrize(("kind", "told"), [("gone", "is gone"), ("folder", "is a folder"), ("link", "is a link")])
def test_rows_that_are_no_file_any_more_are_said_to_be(
    tmp_path: Path, kind: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = make_images(tmp_path / "images", 9), tmp_path / "out.csv"

    seen: list[Any] = []

    def stops(outcome: object) -> None:
        seen.append(outcome)
        if len(seen) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("vivace.batch.run.COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        predict_stream(fake_predictor(tmp_path / "bundle"), [images], outputs=Outputs(out), each=stops)
    rows = tmp_path / "out.csv.unfinished" / "rows"
    kept = rows.rename(tmp_path / "rows")
    if kind == "folder":
        rows.mkdir()
    elif kind == "link":
        rows.symlink_to(kept)
    before = kept.read_bytes()
    with pytest.raises(OutputPathError, match=f"{told}. Restore it, or remove"):
        predict_stream(fake_predictor(tmp_path / "bundle"), [images], outputs=Outputs(out), resume=True)
    assert kept.read_bytes() == before
