"""What a run has to warn of stands on stderr, in its files, in its result and in the summary of the command line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from answers import last_answer
from vivace.cli import main
from vivace.training.loop.engine import Engine
from vivace.training.loop.session import Session
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]
MakeFolder = Callable[..., Path]
NOT_USED = "val_fraction is not used: the data has a validation split, of 9 images"


def test_a_warning_is_told_and_kept_even_by_a_quiet_run(
    run_tiny: RunTiny, make_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder("split", splits=("train", "val"), per_class=3)
    result = run_tiny(data=data, overrides={"data.val_fraction": 0.5})
    assert NOT_USED in result.warnings
    assert f"warning: {NOT_USED}\n" in capsys.readouterr().err
    for name in ("run.json", "result.json"):
        assert json.loads((result.run / name).read_text())["warnings"] == list(result.warnings)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_line_ends_with_the_warnings(
    make_folder: MakeFolder, tmp_path: Path, tiny_yaml: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    data = make_folder("split", splits=("train", "val"), per_class=3)
    options = ["--config", str(tiny_yaml), "--epochs", "1", "--tune", "off", "--quiet", "--val-fraction", "0.5"]
    options += ["--run", str(tmp_path / "run"), *(["--json"] if as_json else [])]
    assert main(["train", str(data), *options]) == 0
    captured = capsys.readouterr()
    # on the command line the parameter is called by its option
    told = NOT_USED.replace("val_fraction", "--val-fraction")
    if as_json:
        assert told in last_answer(captured.out)["warnings"]
    else:
        assert f"warning           {told}\n" in captured.out
    assert captured.err.count(told) == 1


def test_a_run_at_chance_level_says_so(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Session.logits_of_split

    def constant(self: Session, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits_NK, labels_N = plain(self, *arguments)
        return torch.tensor([0.4, 0.3, 0.3]).log().expand_as(logits_NK), labels_N

    monkeypatch.setattr(Session, "logits_of_split", constant)
    result = run_tiny()
    (told,) = [message for message in result.warnings if "has learnt anything" in message]
    # of three classes two images each are held out
    assert told.startswith(
        "6 validation images can't tell whether the network has learnt anything: 2 are right, always "
    )
    assert "always answering 'blue' gives 33.3 %" in told


def test_a_run_of_less_than_an_epoch_that_missed_its_budget_says_so(run_tiny: RunTiny) -> None:
    result = run_tiny(within=0.01)
    assert result.epochs < 1
    starts = [message.split(":")[0] for message in result.warnings]
    assert "the run ended after 0.33 epochs" in starts
    assert "the time budget was missed" in starts


def test_a_run_that_went_back_says_so_at_its_end(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Engine._step, itertools.count()

    def spoiling(self: Engine, *arguments: Any) -> None:
        step(self, *arguments)
        if next(calls) == 4:
            next(self.state.model.parameters()).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(Engine, "_step", spoiling)
    assert [m for m in run_tiny().warnings if "went back" in m] == [
        "the run went back 1 × after NaN or Inf: its learning rate ended at 0.5 of what was asked for"
    ]
