"""A prediction that is killed at any moment goes on, and its files are those of one that nothing stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from streams import fake_predictor, in_a_fork, killed_at, make_images

from vivace.batch import run
from vivace.batch.outputs import Outputs
from vivace.batch.run import Streamed, predict_stream
from vivace.errors import ConfigError, OutputPathError

SIGKILL = -signal.SIGKILL


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is committed."""
    monkeypatch.setattr(run, "COMMIT_SECONDS", 0.0)


def stream(tmp_path: Path, out: str, *, resume: bool = False, paths: Any = None, **options: Any) -> Streamed:
    return predict_stream(
        fake_predictor(tmp_path / "bundle", **options),
        [tmp_path / "images"] if paths is None else paths,
        topk=2,
        outputs=Outputs(tmp_path / out),
        resume=resume,
    )


def unfinished(tmp_path: Path, out: str) -> Path:
    return tmp_path / f"{out}.unfinished"


@pytest.mark.parametrize(
    ("suffix", "call"),
    [
        ("csv", (os, "fsync")),
        ("parquet", (os, "fsync")),
        ("jsonl", (os, "link")),
        ("parquet", (Path, "unlink")),
        ("csv", (Path, "rmdir")),
    ],
)
def test_killed_at_any_step_the_file_is_that_of_an_unbroken_run(tmp_path: Path, suffix: str, call: Any) -> None:
    make_images(tmp_path / "images", 13)
    stream(tmp_path, f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    kills = 0
    for count in range(1, 100):
        out = f"{count}.{suffix}"

        def killed(out: str = out, count: int = count) -> None:
            killed_at(*call, count)
            stream(tmp_path, out)

        status = in_a_fork(killed)
        if status == 0:
            break
        assert status == SIGKILL
        kills += 1
        folder = unfinished(tmp_path, out)
        if (tmp_path / out).exists() and not (folder.exists() and any(folder.iterdir())):
            # killed when all was done
            assert (tmp_path / out).read_bytes() == whole
            continue
        result = stream(tmp_path, out, resume=True)
        assert (result.num_images, result.num_failures) == (12, 1)
        assert (tmp_path / out).read_bytes() == whole
        assert not unfinished(tmp_path, out).exists()
    assert kills >= {"fsync": 7, "link": 1, "unlink": 3, "rmdir": 1}[call[1]]


def test_killed_again_and_again_each_image_has_one_row(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 60)
    stream(tmp_path, "whole.csv")
    kills = 0

    def killed() -> None:
        # each time after some more batches are synced
        killed_at(os, "fsync", 6)
        stream(tmp_path, "out.csv", resume=True)

    while (status := in_a_fork(killed)) == SIGKILL:
        kills += 1
        assert not (tmp_path / "out.csv").exists() or kills > 5
    assert status == 0
    assert kills >= 5
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def begun(tmp_path: Path, out: str = "out.csv") -> None:
    make_images(tmp_path / "images")

    def killed() -> None:
        killed_at(os, "fsync", 6)
        stream(tmp_path, out)

    assert in_a_fork(killed) == SIGKILL
    assert not (tmp_path / out).exists()


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    begun(tmp_path)
    result = stream(tmp_path, "out.csv", resume=True)
    assert result.num_resumed >= 4
    assert result.num_images == 20


def test_an_unfinished_run_is_not_begun_anew_without_being_asked(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(OutputPathError, match=r"an unfinished run of this output is there, with \d+ images: .*resume"):
        stream(tmp_path, "out.csv")
    assert unfinished(tmp_path, "out.csv").is_dir()


@pytest.mark.parametrize("change", ["content", "name", "gone", "bundle", "batch size", "paths"])
def test_what_changed_since_is_refused(tmp_path: Path, change: str) -> None:
    begun(tmp_path)
    images, options = tmp_path / "images", {}
    if change == "content":
        (images / "001.png").write_bytes(b"other")
    elif change == "name":
        (images / "001.png").rename(images / "0001.png")
    elif change == "gone":
        for file in list(images.iterdir())[1:]:
            file.unlink()
    elif change == "batch size":
        options = {"batch_size": 5}
    elif change == "paths":
        options = {"paths": [images / "*.png"]}
    if change == "bundle":
        predictor = fake_predictor(tmp_path / "bundle")
        (tmp_path / "bundle" / "bundle.json").write_text("[]")
        with pytest.raises(OutputPathError, match="can't be resumed, for the bundle changed"):
            predict_stream(predictor, [images], topk=2, outputs=Outputs(tmp_path / "out.csv"), resume=True)
        return
    with pytest.raises(OutputPathError, match=r"it can't be resumed, for .* changed"):
        stream(tmp_path, "out.csv", resume=True, **options)
    assert unfinished(tmp_path, "out.csv").is_dir()


def test_a_journal_that_was_changed_or_cut_is_not_believed(tmp_path: Path) -> None:
    begun(tmp_path)
    stream(tmp_path, "whole.csv")
    folder = unfinished(tmp_path, "out.csv")
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines)[:-9] + b"\0\0\0")
    stream(tmp_path, "out.csv", resume=True)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_rows_that_were_changed_are_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    rows = unfinished(tmp_path, "out.csv") / "rows"
    rows.write_bytes(b"x" + rows.read_bytes()[1:])
    with pytest.raises(OutputPathError, match="what was written is not there as it was"):
        stream(tmp_path, "out.csv", resume=True)


def test_a_folder_of_that_name_that_is_another_is_left_alone(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    folder = unfinished(tmp_path, "out.csv")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputPathError, match=r"holds something else: .* has 'mine\.txt'"):
        stream(tmp_path, "out.csv")
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "images")
    outputs = Outputs(tmp_path / "out.csv")
    original = Outputs.finish

    def late(self: Outputs) -> None:
        (tmp_path / "out.csv").write_text("mine")
        original(self)

    monkeypatch.setattr(Outputs, "finish", late)
    with pytest.raises(OutputPathError, match="`out` exists now, and was not written by this run"):
        predict_stream(fake_predictor(tmp_path / "bundle"), [tmp_path / "images"], outputs=outputs)
    assert (tmp_path / "out.csv").read_text() == "mine"
    monkeypatch.undo()
    (tmp_path / "out.csv").unlink()
    assert stream(tmp_path, "other.csv").num_images == 20


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    make_images(tmp_path / "images")

    def again(outcome: object) -> None:
        with pytest.raises(OutputPathError, match="another process is writing this output"):
            stream(tmp_path, "out.csv")

    predict_stream(
        fake_predictor(tmp_path / "bundle"), [tmp_path / "images"], outputs=Outputs(tmp_path / "out.csv"), each=again
    )
    assert (tmp_path / "out.csv").is_file()


def test_resuming_what_never_began_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "images")
    assert stream(tmp_path, "out.csv", resume=True).num_images == 20
    assert "nothing to resume" in capsys.readouterr().err
    with pytest.raises(OutputPathError, match=r"nothing to resume: .*out\.csv is there"):
        stream(tmp_path, "out.csv", resume=True)


def test_resuming_needs_an_output(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`resume` needs an output"):
        predict_stream(fake_predictor(tmp_path / "bundle"), [tmp_path], resume=True)


def test_an_error_before_the_first_row_leaves_nothing(tmp_path: Path) -> None:
    make_images(tmp_path / "images")

    def fails(outcome: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        predict_stream(
            fake_predictor(tmp_path / "bundle"), [tmp_path / "images"], outputs=Outputs(tmp_path / "o.csv"), each=fails
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "images"]
