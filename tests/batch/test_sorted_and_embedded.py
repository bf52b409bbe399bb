"""Links in class folders, and features in a parquet file: as of an unbroken run, whenever it was killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from streams import encoded, fake_predictor, in_a_fork, killed_at, make_images, make_tar

from factories import make_bundle
from vivace.batch import run
from vivace.batch.outputs import Outputs
from vivace.batch.run import predict_stream
from vivace.batch.sorting import class_folders
from vivace.cli import main
from vivace.errors import ConfigError, OutputPathError
from vivace.predictor import Predictor


def sort(tmp_path: Path, paths: list[Any], into: Path, *, resume: bool = False) -> None:
    predict_stream(fake_predictor(tmp_path / "bundle"), paths, outputs=Outputs(sort_into=into), resume=resume, topk=1)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def links(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): str(path.readlink()) for path in sorted(folder.rglob("*.png"))}


def test_images_are_linked_into_the_folder_of_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(Path("images"), 6, damaged=(1,))
    sort(tmp_path, ["images"], Path("sorted"))
    assert links(Path("sorted")) == {
        f"{label}/{name}.png": str(tmp_path / "images" / f"{name}.png")
        for label, name in (("dark", "000"), ("dark", "002"), ("dark", "003"), ("light", "004"), ("light", "005"))
    }
    assert not Path("sorted.unfinished").exists()


def test_names_that_collide_get_a_number_and_nothing_is_overwritten(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_images(tmp_path / name, 1, damaged=())
    (tmp_path / "sorted" / "dark").mkdir(parents=True)
    (tmp_path / "sorted" / "dark" / "000.png").write_text("mine")
    sort(tmp_path, [tmp_path / name for name in ("a", "b", "c")], tmp_path / "sorted")
    assert (tmp_path / "sorted" / "dark" / "000.png").read_text() == "mine"
    dark = tmp_path / "sorted" / "dark"
    found = {name: str((dark / f"000-{number}.png").readlink()) for number, name in ((2, "a"), (4, "c"))}
    assert found == {name: str(tmp_path / name / "000.png") for name in ("a", "c")}


def test_what_has_no_file_is_copied(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "shard.tar", {"x/a.png": encoded(9), "y/a.png": encoded(250), "b.png": encoded(3)})
    sort(tmp_path, [tar], tmp_path / "sorted")
    assert files(tmp_path / "sorted") == {
        "dark/a.png": encoded(9),
        "dark/b.png": encoded(3),
        "light/a.png": encoded(250),
    }


def test_where_links_are_not_possible_copies_are_made_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    make_images(tmp_path / "images", 3, damaged=())
    sort(tmp_path, [tmp_path / "images"], tmp_path / "sorted")
    assert not any(path.is_symlink() for path in (tmp_path / "sorted").rglob("*"))
    assert len(files(tmp_path / "sorted")) == 3
    assert capsys.readouterr().err.count("links are not possible in") == 1


@pytest.mark.parametrize("call", [(os, "symlink"), (os, "fsync")])
def test_a_killed_run_links_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    monkeypatch.setattr(run, "COMMIT_SECONDS", 0.0)
    sources = [make_images(tmp_path / name, 7) for name in ("one", "two")]
    sort(tmp_path, sources, tmp_path / "whole")
    kills = 0
    for count in range(1, 40, 3):
        into = tmp_path / f"sorted-{count}"

        def killed(into: Path = into, count: int = count) -> None:
            killed_at(*call, count)
            sort(tmp_path, sources, into, resume=True)

        if in_a_fork(killed) != -signal.SIGKILL:
            break
        kills += 1
        # and again, before what it was doing is noted as done
        if in_a_fork(killed) == -signal.SIGKILL:
            sort(tmp_path, sources, into, resume=True)
        assert links(into) == links(tmp_path / "whole")
    assert kills >= 3


def test_a_folder_among_the_images_is_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 2)
    with pytest.raises(OutputPathError, match="`sort_into` is inside what is read"):
        sort(tmp_path, [tmp_path / "images"], tmp_path / "images" / "sorted")


def test_class_names_that_are_no_names_of_folders_get_other_ones() -> None:
    folders = class_folders(["cat", "Cat", "a/b", "..", "../../x", "", "no-label"])
    assert next(iter(folders.values())) == "cat"
    assert len({name.casefold() for name in folders.values()}) == 7
    assert not any("/" in name or name.startswith(".") or name == "no-label" for name in folders.values())


def test_features_are_those_of_the_network(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", size=16, widths=[8, 8])
    images = make_images(tmp_path / "images", 5, damaged=(2,))
    out = tmp_path / "features.parquet"
    command = ["predict", str(bundle.folder), str(images), "--embeddings", str(out), "--quiet", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "rows.jsonl")]) == 0
    table = pyarrow.parquet.read_table(out)
    names = [str(images / f"00{number}.png") for number in (0, 1, 3, 4)]
    assert table["path"].to_pylist() == names
    pixels = np.stack([bundle.preprocess.load(name) for name in names])
    expected = Predictor(bundle, device="cpu").answers(pixels, everything=True).features_ND
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 5
    # and nothing is replaced
    assert main(command) == 2


def test_features_of_one_output_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`embeddings` is a parquet file: got 'x\.csv'"):
        Outputs(embeddings=tmp_path / "x.csv").check([], resuming=False)
    with pytest.raises(ConfigError, match="`embeddings` and `out` are one file"):
        Outputs(tmp_path / "x.parquet", embeddings=tmp_path / "x.parquet").check([], resuming=False)
