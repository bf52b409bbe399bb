"""`vivace predict` of streams: tars and parquet files like folders, failures counted, resumed by the same command."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
from streams import make_images, make_tar

import vivace
from factories import make_bundle
from vivace.batch import run
from vivace.cli import main
from vivace.errors import ConfigError


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "bundle", size=16, widths=[8, 8]).folder)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_tar_is_classified_as_the_folder_that_it_was_made_of(bundle: str, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 5, damaged=(3,))
    make_tar(tmp_path / "shard.tar", {path.name: path.read_bytes() for path in sorted(images.iterdir())})
    for source, out in ((images, "a.csv"), (tmp_path / "shard.tar", "b.csv")):
        assert main(["predict", bundle, str(source), "--out", str(tmp_path / out), "--quiet"]) == 0
    plain, packed = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert [row["error"] for row in packed] == ["", "", "", "not_an_image", ""]
    assert [Path(row.pop("path")).name for row in packed] == [Path(row.pop("path")).name for row in plain]
    assert packed == plain


def test_many_failures_are_counted(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images", 25, damaged=tuple(range(24)))
    assert main(["predict", bundle, str(images), "--out", str(tmp_path / "out.csv"), "--quiet"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not classified: ")]
    assert len(told) == 21
    assert told[-1] == "not classified: 4 more, which have an error in the output"
    assert [row["error"] for row in rows(tmp_path / "out.csv")] == ["not_an_image"] * 24 + [""]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_same_command_goes_on_after_it_was_stopped(
    bundle: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    monkeypatch.setattr(run, "COMMIT_SECONDS", 0.0)
    images = make_images(tmp_path / "images", 12)
    command = ["predict", bundle, str(images), "--batch-size", "2", "--quiet", "--threads", "1", "--out"]
    assert main([*command, str(tmp_path / "whole.csv")]) == 0
    original = os.fsync
    calls = 0

    def stopped(descriptor: int) -> None:
        nonlocal calls
        if (calls := calls + 1) == 6:
            signal.raise_signal(number)
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stopped)
        assert main([*command, str(tmp_path / "out.csv")]) == status
    assert "images are done, and kept in" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out.csv")]) == 2
    assert "Continue it by --resume" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out.csv"), "--resume"]) == 0
    assert "4 were done before; 1 could not be classified" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_python_writes_what_the_command_writes(bundle: str, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 5, damaged=(3,))
    assert main(["predict", bundle, str(images), "--out", str(tmp_path / "a.csv"), "--quiet", "--topk", "2"]) == 0
    done = vivace.predict_to(bundle, images, tmp_path / "b.csv", topk=2)
    assert (done.num_images, done.num_failures) == (4, 1)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with pytest.raises(ConfigError, match="predict_to needs an output: got none"):
        vivace.predict_to(bundle, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "--resume goes with"),
        (["--resume", "--out", "o.csv", "--json"], "--resume and --json exclude each other"),
        (["--resume", "--out", "o.csv", "--heat-maps", "h"], "--resume and --heat-maps exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "b", "p", *options]) == 2
    assert message in capsys.readouterr().err
