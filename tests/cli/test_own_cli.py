"""vivace train --model FILE.py:NAME, as a stranger types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from answers import last_answer
from own_nets import nets_file
from vivace.bundle import load_bundle
from vivace.cli import main

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
QUICK = ["--epochs", "1", "--batch-size", "8", "--size", "16", "--tune", "off", "--precision", "fp32"]


def test_a_network_in_a_file_is_trained_and_then_needs_no_file(
    make_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_folder(splits=("train", "test"))
    path = nets_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["train", str(data), "--model", "nets.py:Net", "--set", "model.arguments.width=5", "--run", "run", *QUICK]
    assert main([*command, "--json"]) == 0
    told = last_answer(capsys.readouterr().out)
    assert told["no_graph"] is None
    assert load_bundle(tmp_path / "run").info.architecture.arguments == {"width": 5}
    assert main(["export", "run", "--to", "pt2", "--out", "net.pt2", "--model", "nets.py:Net"]) == 0
    path.unlink()
    image = str(next((data / "test").rglob("*.png")))
    assert main(["predict", "run", image]) == 0
    assert main(["evaluate", "run", str(data)]) == 0
    assert main(["export", "run", "--to", "deploy", "--out", "deployed"]) == 0
    assert main(["export", "run", "--to", "pt2", "--out", "other.pt2"]) == 2
    assert "Give it (--model; in Python `vivace.load(" in capsys.readouterr().err
    assert main(["train", str(data), "--resume", "--run", "run", "--epochs", "2"]) == 2
    assert "trains a network of your own" in capsys.readouterr().err


def test_what_is_wrong_with_the_file_is_said_on_one_line(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = nets_file(tmp_path), str(make_folder())
    for model, message in [
        (f"{path}:Nett", "has no 'Nett'. Did you mean 'Net'?"),
        (str(path), "names no network in its file"),
        (str(tmp_path / "none.py:Net"), "can't be read"),
    ]:
        assert main(["train", data, "--model", model, *QUICK]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("ModelError: ")
        assert message in line
    assert main(["train", data, "--set", f"model.name={path}:Net", *QUICK]) == 2
    assert "the network is unknown" in capsys.readouterr().err


def test_a_run_without_a_graph_ends_with_status_1_and_its_bundle(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nets.py"
    nets_file(tmp_path)
    path.write_text(
        path.read_text()
        + "    def forward(self, images):\n"
        + "        logits = super().forward(images)\n"
        + "        return logits * 2 if float(logits.detach().sum()) > 1e9 else logits\n"
    )
    run = tmp_path / "run"
    command = ["train", str(make_folder()), "--model", f"{path}:Net", "--run", str(run), "--json", *QUICK]
    assert main(command) == 1
    told = capsys.readouterr()
    assert "the bundle has no graph" in told.err
    assert last_answer(told.out)["no_graph"].startswith("onnx can't take this network")
    assert json.loads((run / "result.json").read_text())["no_graph"]
    assert load_bundle(run).info.network["without_graph"]
