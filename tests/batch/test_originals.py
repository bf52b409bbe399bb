"""What is read is never replaced, by whatever name it is reached; an output takes the place of nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from streams import encoded, fake_predictor, make_images, make_tar

from vivace.batch.outputs import Outputs
from vivace.batch.run import predict_stream
from vivace.batch.sorting import Sorter
from vivace.batch.unfinished import Unfinished
from vivace.errors import OutputPathError
from vivace.predictor import Prediction
from vivace.sources.items import Item


def images_in(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"image": [encoded(3), encoded(250)]}), path)
    return path


def replace(tmp_path: Path, out: Path, *paths: str | Path, **options: Any) -> None:
    outputs = Outputs(out, overwrite=True)
    predict_stream(fake_predictor(tmp_path / "bundle"), paths, outputs=outputs, **options)


def linked(path: Path) -> str:
    os.link(path, path.with_name("other.parquet"))
    return str(path.with_name("other.parquet"))


@pytest.mark.parametrize(
    "name",
    [
        str,
        lambda path: f"{path.parent}/./{path.name}",
        lambda path: str(path.with_name("n*.parquet")),
        lambda path: f"file://{path}",
        lambda path: f"FILE://{path}",
        lambda path: f"file://{path.parent}/*.parquet",
        linked,
    ],
)
def test_a_file_of_images_is_not_replaced_by_their_table(tmp_path: Path, name: Callable[[Path], str]) -> None:
    path = images_in(tmp_path / "n.parquet")
    before = path.read_bytes()
    with pytest.raises(OutputPathError, match="`out` is what is read"):
        replace(tmp_path, path, name(path))
    assert path.read_bytes() == before
    assert not path.with_name("n.parquet.unfinished").exists()


def test_a_file_that_a_list_names_is_not_replaced(tmp_path: Path) -> None:
    path, images = images_in(tmp_path / "n.parquet"), make_images(tmp_path / "images", 9)
    before = path.read_bytes()
    (tmp_path / "names.txt").write_text(f"{images}\n{path}\n")
    with pytest.raises(OutputPathError, match="`out` is what is read"), (tmp_path / "names.txt").open("rb") as stdin:
        replace(tmp_path, path, "-", stdin=stdin)
    assert path.read_bytes() == before


def test_a_tar_and_an_image_within_an_archive_at_a_url_are_not_replaced(tmp_path: Path) -> None:
    # an extension of tables is no obstacle: a link has another
    out = make_tar(tmp_path / "t.csv", {"a.png": encoded(1)})
    (tmp_path / "t.tar").symlink_to(out)
    for name in (str(tmp_path / "t.tar"), f"tar://a.png::file://{out}", f"tar://a.png::{out}"):
        with pytest.raises(OutputPathError, match="`out` is what is read"):
            replace(tmp_path, out, name)
    assert out.read_bytes().startswith(b"a.png")


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "images", 3), tmp_path / "out.csv"

    with pytest.raises(OutputPathError, match="exists now, and was not written by this run"):
        replace(tmp_path, out, images, each=lambda outcome: out.write_text("another's"))
    assert out.read_text() == "another's"


def test_an_old_table_is_replaced(tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "images", 3), tmp_path / "out.csv"
    out.write_text("old")
    replace(tmp_path, out, images)
    assert out.read_text().startswith("path,error,label_1")


def test_a_copy_that_goes_on_does_not_write_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where links became impossible meanwhile: the one that is there leads to the image itself."""
    (tmp_path / "a.png").write_bytes(encoded(1))
    item = Item(str(tmp_path / "a.png"), str(tmp_path / "a.png"), "")
    with Unfinished(tmp_path / "sorted", {}, resume=False) as unfinished:
        sorter = Sorter(tmp_path / "sorted", ("cat",), unfinished, several=False)
        place = tmp_path / "sorted" / "cat" / "a.png"
        place.symlink_to(tmp_path / "a.png")
        sorter._can_link, sorter._noted = False, {0: ["cat/a.png"]}
        opened = []
        monkeypatch.setattr(Path, "open", lambda path, *_: opened.append(path))
        sorter.write(0, item, Prediction(item.name, "cat", 1.0, (("cat", 1.0),), ("cat",)))
        assert opened == []
        sorter.close()
