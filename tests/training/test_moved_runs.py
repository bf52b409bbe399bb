"""A run folder that was moved, named relative to another place, or has its curves cut short goes on (fault 69)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import Killed, die_after
from same_weights import assert_same_weights

from vivace.training.result import TrainResult
from vivace.training.train import train

RunTiny = Callable[..., TrainResult]


def test_a_killed_run_that_was_moved_goes_on_from_another_working_directory(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unbroken = run_tiny("unbroken", {"early_stopping": 3})
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", {"early_stopping": 3})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "killed").rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = train(Path("..", "colours"), run=Path("moved"), resume=True, tune=False, quiet=True)
    assert_same_weights(unbroken, resumed)
    assert not (tmp_path / "killed").exists()


@pytest.mark.parametrize("contents", [b"", b"epoch,step\n1,", b"\xff\x00" * 100])
def test_curves_that_were_cut_short_are_written_anew(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, contents: bytes
) -> None:
    def table(result: TrainResult) -> list[dict[str, Any]]:
        with (result.run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [{name: row[name] for name in ("epoch", "step", "train_loss", "val_loss", "val_top1")} for row in rows]

    unbroken = run_tiny("unbroken")
    with monkeypatch.context() as patch:
        die_after(patch, 7)
        with pytest.raises(Killed):
            run_tiny("killed")
    (unbroken.run.parent / "killed" / "metrics.csv").write_bytes(contents)
    assert table(run_tiny("killed", resume=True)) == table(unbroken)
