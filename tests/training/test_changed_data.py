"""Data that is touched, added to or damaged while a run trains on its cache (faults 19, 74, 77)."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import Killed, die_after
from PIL import Image
from same_weights import assert_same_weights

from caches import remove_cache
from vivace.bundle import load_bundle
from vivace.data.loader import Batches
from vivace.errors import CacheDamaged, CheckpointError, DataError
from vivace.training.loop.engine import Engine
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]
MakeFolder = Callable[..., Path]


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Let something happen behind the back of a run, after so many steps."""
    original = Engine._after_step

    def acting(self: Engine, *arguments: Any) -> None:
        if self.counters.step == step:
            action()
        original(self, *arguments)

    monkeypatch.setattr(Engine, "_after_step", acting)


def add(root: Path) -> None:
    shutil.copy(root / "blue" / "001.png", root / "red" / "label-me.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": lambda root: os.utime(root / "red" / "000.png", ns=(1, 1)),
    "contents": lambda root: Image.effect_noise((20, 20), 90).convert("RGB").save(root / "red" / "000.png"),
    "no image any more": lambda root: (root / "red" / "000.png").write_bytes(b"another"),
    "added": add,
    "removed": lambda root: (root / "red" / "000.png").unlink(),
    "relabelled": lambda root: (root / "red" / "000.png").rename(root / "blue" / "relabelled.png"),
    "class added": lambda root: shutil.copytree(root / "red", root / "white"),
    "all removed": lambda root: [path.unlink() for path in root.rglob("*.png")],
    "folder gone": lambda root: shutil.rmtree(root),
    "folder moved": lambda root: root.rename(root.with_name("elsewhere")),
}


# nobody looks for new folders while training
@pytest.mark.parametrize("change", [name for name in CHANGES if name != "class added"])
def test_a_run_whose_data_change_goes_on_with_what_it_began_with(
    run_tiny: RunTiny,
    make_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    data = make_folder("changing")
    unchanged = run_tiny("unchanged", data=data)
    capsys.readouterr()
    after_step(monkeypatch, 2, lambda: CHANGES[change](data))
    result = run_tiny("changed", data=data)
    assert_same_weights(unchanged, result)
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: files of"))
    assert "the run goes on with the images that it began with" in warning
    assert any("were touched, changed, added or removed" in message for message in result.warnings)
    # what it was trained on, not what is there now
    facts = [json.loads((run / "run.json").read_text())["data"] for run in (unchanged.run, result.run)]
    bundles = [dict(load_bundle(run.bundle).info.data) for run in (unchanged, result)]
    place = {"place": str(data), "file": None}
    assert facts[0] == facts[1] == bundles[0] | place == bundles[1] | place


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_run_that_was_killed_is_resumed_on_what_it_began_with(
    run_tiny: RunTiny,
    make_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    data = make_folder("changing")
    unchanged = run_tiny("unchanged", data=data)
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", data=data)
    CHANGES[change](data)
    capsys.readouterr()
    resumed = run_tiny("killed", data=data, resume=True)
    assert_same_weights(unchanged, resumed)
    said = capsys.readouterr().err
    assert said.count("it continues with the original images") == 1
    assert said.count("the data can't be opened any more: ") == (
        change in ("all removed", "folder gone", "folder moved")
    )


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_run_whose_data_are_gone_is_resumed_only_if_the_cache_is_whole(
    run_tiny: RunTiny, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, own_cache: Path, damage: str
) -> None:
    data = make_folder("changing")
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", data=data)
    shutil.rmtree(data)
    # another name is not taken for that of the run's data
    with pytest.raises(DataError, match=r"`data` was not found: got '.*typo'.* one of [a-z0-9, -]*\.$"):
        run_tiny("killed", data=data.with_name("typo"), resume=True)
    (pixels,) = (own_cache / "images").glob("changing-*/train.npy")
    if damage == "removed":
        remove_cache(pixels.parent)
    else:
        pixels.write_bytes(pixels.read_bytes()[:-1] + b"x")
    with pytest.raises(
        DataError, match=r"`data` was not found: .*; nor are the images .* whole in the cache: .*Restore"
    ):
        run_tiny("killed", data=data, resume=True)


def test_an_image_that_was_added_and_removed_again_leaves_no_trace(
    run_tiny: RunTiny, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder("changing")
    unchanged = run_tiny("unchanged", data=data)
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", data=data)
    add(data)
    (data / "red" / "label-me.png").unlink()
    capsys.readouterr()
    assert_same_weights(unchanged, run_tiny("killed", data=data, resume=True))
    assert "warning" not in capsys.readouterr().err


def test_data_that_changed_and_are_in_no_cache_any_more_are_told(
    run_tiny: RunTiny, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    data = make_folder("changing")
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", data=data)
    add(data)
    remove_cache(own_cache / "images")
    with pytest.raises(
        CheckpointError,
        match=r"it began on changing with 24 images \(fingerprint .*\), which are no longer in the cache; now changing "
        r"has 23 .* Restore the files, or start a new run",
    ):
        run_tiny("killed", data=data, resume=True)
    (data / "red" / "label-me.png").unlink()
    run_tiny("killed", data=data, resume=True)


@pytest.mark.parametrize("name", ["another", "same/began"])
def test_a_run_resumed_on_other_data_is_told_which_they_are(
    run_tiny: RunTiny, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, other = make_folder("began"), make_folder(name)
    add(other)
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", data=data)
    told = (
        f"the run began on began ({str(data)!r}) with 24 images; "
        f"the data given are {other.name} ({str(other)!r}) with 23 images. "
        "Give "
    )
    with pytest.raises(CheckpointError, match=re.escape(told)) as caught:
        run_tiny("killed", data=other, resume=True)
    assert "cache" not in str(caught.value)
    # the folder of somebody's pictures is not handed on with the network
    assert str(data) not in (run_tiny("killed", data=data, resume=True).bundle / "bundle.json").read_text()


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("size", [0, 128, 4000])
def test_a_cache_that_is_cut_short_under_a_run_is_told_and_made_again(
    run_tiny: RunTiny,
    make_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_cache: Path,
    resident: bool,
    size: int,
) -> None:
    init = Batches.__init__
    monkeypatch.setattr(
        Batches, "__init__", lambda self, *args, **options: init(self, *args, **{**options, "resident": resident})
    )
    data = make_folder("changing")
    unbroken = run_tiny("unbroken", data=data)
    (pixels,) = (own_cache / "images").glob("changing-*/train.npy")
    with monkeypatch.context() as patch:
        after_step(patch, 4, lambda: os.truncate(pixels, size))
        with pytest.raises(CacheDamaged, match=r"^the cache was damaged while it was in use: .* `resume=True`"):
            run_tiny("broken", data=data)
    capsys.readouterr()
    assert_same_weights(unbroken, run_tiny("broken", data=data, resume=True))
    assert "warning: the cache of changing is damaged, so its images are read again" in capsys.readouterr().err


def test_pixels_that_changed_before_a_run_are_read_anew(
    run_tiny: RunTiny, make_folder: MakeFolder, capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    data = make_folder("changing")
    first = run_tiny("first", data=data)
    (pixels,) = (own_cache / "images").glob("changing-*/train.npy")
    with pixels.open("r+b") as file:
        file.seek(2000)
        file.write(bytes(500))
    capsys.readouterr()
    assert_same_weights(first, run_tiny("second", data=data))
    assert "is damaged, so its images are read again" in capsys.readouterr().err
