"""What a run has to warn of stands on stderr, in its files, in its result and in the summary of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vivace.cli import main
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
    if as_json:
        assert NOT_USED in json.loads(captured.out.splitlines()[-1])["warnings"]
    else:
        assert f"warning           {NOT_USED}\n" in captured.out
    assert captured.err.count(NOT_USED) == 1
