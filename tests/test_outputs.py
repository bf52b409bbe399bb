"""Nothing that vivace did not write is replaced: it stays, byte for byte."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vivace import outputs, owned
from vivace.batch.outputs import check_table
from vivace.errors import OutputPathError, RunFolderError, VivaceError
from vivace.files import read_regular, sha256_of
from vivace.marks import marked
from vivace.outputs import check_export, check_file, check_folder, write_sidecar, write_text, writing
from vivace.owned import own_file, seal
from vivace.training.folder.runfolder import RunFolder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bundle_in(folder: Path, name: str = "bundle.json", form: str = "vivace-bundle", **facts_of_it: object) -> Path:
    """A folder as vivace writes it: files, and a sealed manifest that lists them."""
    (folder / "golden").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    (folder / "golden" / "0.png").write_bytes(b"p")
    (folder / "classifier.py").write_text("x = 1")
    facts = {
        path: {"sha256": sha256_of(folder / path), "bytes": (folder / path).stat().st_size}
        for path in ("weights", "golden/0.png", "classifier.py")
    }
    (folder / name).write_text(json.dumps(seal({"format": form, "files": facts, **facts_of_it})))
    return folder


def test_an_empty_or_absent_folder_and_one_that_vivace_wrote_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert check_folder(tmp_path / "empty") is None
    assert check_folder(tmp_path / "a" / "b") is None
    assert check_folder(bundle_in(tmp_path / "bundle")) == "a bundle"
    deployed = bundle_in(tmp_path / "deployed", "model.json", "vivace-deployment")
    # what Python makes of a program that was run
    (deployed / "__pycache__").mkdir()
    (deployed / "__pycache__" / "classifier.cpython-312.pyc").write_bytes(b"")
    assert check_folder(deployed) == "a deployment"


def test_an_export_takes_the_place_of_its_like_alone(tmp_path: Path) -> None:
    onnx = bundle_in(tmp_path / "onnx", runtime="onnx", classes=["cat", "dog"])
    page = bundle_in(tmp_path / "page", "web.json", "vivace-web", classes=["cat", "dog"])
    trained = bundle_in(tmp_path / "run" / "bundle", runtime="eager", classes=["cat", "dog"])
    before = contents(tmp_path)
    assert check_folder(onnx, kind=owned.BUNDLE, classes=("cat", "dog")) == "a bundle"
    assert check_folder(page, kind=owned.PAGE, classes=("cat", "dog")) == "a page for browsers"
    for folder, kind, classes, why in (
        (onnx, owned.PAGE, ("cat", "dog"), "holds a bundle, not a page for browsers"),
        (page, owned.DEPLOYMENT, ("cat", "dog"), "holds a page for browsers, not a deployment"),
        (onnx, owned.BUNDLE, ("0", "1"), "holds a bundle of another network, whose classes are others"),
        (trained, owned.BUNDLE, ("cat", "dog"), "holds a bundle as training left it"),
    ):
        with pytest.raises(OutputPathError, match=rf"{why}: .*Nothing was changed. Give another folder"):
            check_folder(folder, kind=kind, classes=classes)
    # a run that goes on writes its own bundle anew
    assert check_folder(trained, option="the run's bundle") == "a bundle"
    assert contents(tmp_path) == before


def test_an_exported_file_of_other_classes_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    out.write_bytes(b"graph")
    write_sidecar(out, {"classes": ["cat", "dog"]})
    assert check_export(out, classes=("cat", "dog")) == "a file"
    with pytest.raises(OutputPathError, match=r"an export of another network, whose classes are others: .*net.onnx"):
        check_export(out, classes=("0", "1"))


def test_a_sparse_picture_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file of three gigabytes."""
    read: list[int] = []
    monkeypatch.setattr(owned, "read_regular", lambda path, limit: read.append(limit) or read_regular(path, limit))
    picture = tmp_path / "curves.png"
    picture.touch()
    os.truncate(picture, 3 * 2**30)
    assert not own_file(picture)
    # without the limit all of it would be read into memory
    assert max(read) <= 2**26
    assert not own_file(picture.with_suffix(".jpg"))


def test_a_listed_sparse_file_is_not_hashed(tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path / "bundle")
    os.truncate(bundle / "weights", 2**37)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["weights"]["bytes"] = 2**37
    (bundle / "bundle.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(OutputPathError, match=r"137,438,953,472 bytes that are almost only holes"):
        check_folder(bundle)


def add_file(folder: Path) -> None:
    (folder / "thesis.txt").write_text("work")


def add_file_deep(folder: Path) -> None:
    (folder / "golden" / "mine.png").write_text("work")


def add_folder(folder: Path) -> None:
    (folder / "notes").mkdir()


def add_link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc")


def change_file(folder: Path) -> None:
    (folder / "weights").write_bytes(b"W")


def link_file(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "weights")
    (folder / "weights").symlink_to(folder.parent / "weights")


def change_manifest(folder: Path) -> None:
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace('"bytes": 1', '"bytes": 2', 1))


def break_manifest(folder: Path) -> None:
    (folder / "bundle.json").write_text("[" * 100_000)


def foreign_cache(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "mine.pyc").write_bytes(b"")


def remove_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()


@pytest.mark.parametrize(
    "change",
    [
        add_file,
        add_file_deep,
        add_folder,
        add_link,
        change_file,
        link_file,
        change_manifest,
        break_manifest,
        foreign_cache,
        remove_manifest,
    ],
)
def test_a_folder_that_holds_anything_else_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = bundle_in(tmp_path / "bundle")
    change(folder)
    before = contents(tmp_path)
    with pytest.raises(OutputPathError, match=r"`out` holds .* Nothing was changed\. Give another folder"):
        check_folder(folder)
    assert contents(tmp_path) == before


def test_a_folder_is_not_written_in_place_of_a_file_or_a_link(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("mine")
    bundle_in(tmp_path / "bundle")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name, what in (("x.onnx", "a file"), ("link", "a link"), ("broken", "a link")):
        with pytest.raises(OutputPathError, match=f"`out` is {what}, but a folder is to be written"):
            check_folder(tmp_path / name)


def test_inputs_are_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_in(tmp_path / "run" / "bundle")
    monkeypatch.chdir(tmp_path / "run")
    (tmp_path / "x").mkdir()
    for path in (bundle, Path("bundle"), bundle / "new", tmp_path / "run", tmp_path / "x" / ".." / "run" / "bundle"):
        with pytest.raises(OutputPathError, match=r"`out` (is|is inside|contains) an input"):
            check_folder(path, inputs=[bundle])
    with pytest.raises(OutputPathError, match="is inside an input"):
        check_file(bundle / "x.pth", inputs=[bundle])
    with pytest.raises(OutputPathError, match="is inside the data"):
        check_folder(tmp_path / "data" / "out", outside=[tmp_path / "data"])
    assert check_folder(tmp_path / "run" / "onnx", inputs=[bundle]) is None


def test_a_way_through_a_folder_that_does_not_exist_leads_to_no_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    for check in (check_file, check_folder):
        with pytest.raises(OutputPathError, match=r"goes through a folder that does not exist: .*none in .*mine\.html"):
            check(tmp_path / "none" / ".." / "mine.html")
    # what writes looks again
    with pytest.raises(VivaceError, match="goes through a folder that does not exist"):
        write_text(tmp_path / "a" / "b" / ".." / ".." / "mine.html", "page")
    assert contents(tmp_path) == {"mine.html": b"mine"}
    assert check_file(tmp_path / "new" / "mine.html") is None


def test_nothing_is_written_into_a_bundle(tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path / "bundle")
    before = contents(tmp_path)
    for path in (bundle / "page.html", bundle / "golden" / "page.html", bundle / "new" / "page.html"):
        with pytest.raises(OutputPathError, match="is inside a bundle, which lists all of its files"):
            check_file(path)
    with pytest.raises(RunFolderError, match="the run folder is inside a bundle"):
        RunFolder(bundle, resume=False)
    assert contents(tmp_path) == before
    assert check_file(tmp_path / "page.html") is None


def test_a_file_is_replaced_only_if_vivace_wrote_it_and_nobody_changed_it(tmp_path: Path) -> None:
    xml, weights = tmp_path / "x.xml", tmp_path / "x.bin"
    xml.write_text("graph")
    with pytest.raises(OutputPathError, match="exists already, and was not written by vivace"):
        check_export(xml, weights)
    weights.write_text("weights")
    write_sidecar(xml, {"classes": ["a"]}, weights)
    assert check_export(xml, weights) == "a file"
    assert own_file(weights)
    weights.write_text("changed")
    with pytest.raises(OutputPathError, match=r"x\.bin"):
        check_export(xml, weights)
    xml.unlink()
    weights.unlink()
    # a .json of the same name with other contents
    (tmp_path / "x.xml.json").write_text('{"format": "vivace-export"}')
    with pytest.raises(OutputPathError, match=r"x\.xml\.json"):
        check_export(xml, weights)


def test_a_figure_is_recognized_unless_its_pixels_changed(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "figure.png"
    Image.new("RGB", (8, 8)).save(path)
    assert not own_file(path)
    path.write_bytes(marked(path.read_bytes()))
    assert own_file(path)
    with Image.open(path) as image:
        assert image.size == (8, 8)
        assert len(image.text["vivace"]) == 64  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    assert not own_file(path)


def test_a_file_is_not_written_in_place_of_a_folder_a_link_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("folder", "a folder"), ("link", "a link"), ("pipe", "not a regular file")):
        with pytest.raises(OutputPathError, match=f"`out` is {what}, but a file is to be written"):
            check_file(tmp_path / name, overwrite=True)


@pytest.mark.parametrize(
    ("names", "called"),
    [(["bundle.json"], "a bundle"), (["model.json"], "a deployment"), (["run.json", "recipe.yaml"], "a run")],
)
def test_not_even_overwrite_replaces_a_file_of_a_bundle_or_run(tmp_path: Path, names: list[str], called: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in (*names, "metrics.csv", "checkpoints/list.csv"):
        (tmp_path / name).write_text("x")
    for name in ("metrics.csv", "checkpoints/list.csv"):
        with pytest.raises(OutputPathError, match=rf"^`out` exists already, in the folder of {called}: .*{name}\."):
            check_table(tmp_path / name, overwrite=True)
    # a new name replaces nothing
    assert check_table(tmp_path / "new.csv", overwrite=True) is None


def read_only(**_: object) -> None:
    raise OSError(30, "Read-only file system")


def test_an_unwritable_path_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for check in (check_file, check_folder):
        with pytest.raises(OutputPathError, match=r"`out` can't be written: .* \(Not a directory\)"):
            check(tmp_path / "file" / "out")
        with pytest.raises(OutputPathError, match=r"`out` can't be written: .*File name too long"):
            check(tmp_path / ("n" * 300))
        # as another user, or on a disk that is mounted read-only
        with monkeypatch.context() as patch:
            patch.setattr(outputs.tempfile, "TemporaryFile", read_only)
            with pytest.raises(OutputPathError, match=r"`out` can't be written: .* \(Read-only file system\)"):
                check(tmp_path / "out")


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VivaceError, match=r"it can't be written: .*out \(No space left.*\)\. Free some space"):  # noqa: SIM117
        with writing(tmp_path / "out"):
            raise OSError(28, "No space left on device")
