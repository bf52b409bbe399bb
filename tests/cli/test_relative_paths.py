"""Every verb and function that takes paths takes relative ones, from a folder that is not the root."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import vivace
from vivace.cli import main
from vivace.exporting.export import export


def test_relative_paths_everywhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_folder("photos", splits=("train", "test"), per_class=6)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    data, quick = os.path.join("..", "..", "photos"), ["--epochs", "1", "--tune", "off", "--quiet"]  # noqa: PTH118
    small = ["--set", "model.arguments={widths: [8], depth: 1}", "--set", "batch_size=8", "--precision", "fp32"]
    cache = ["--cache-dir", "cache"]
    commands = [
        ["train", data, "--run", "run", *quick, *small, *cache],
        ["evaluate", "run", data, "--figures", "run/figures", "--quiet", *cache],
        ["predict", "run/bundle", data, "--out", "tables/out.csv", "--quiet"],
        ["export", "run", "--to", "onnx", "--out", "graphs/onnx", data, *cache],
        ["export", "run", "--to", "openvino", "--out", "graphs/x.xml"],
        ["export", "run", "--state-dict", "weights/x.pth"],
        ["export", "graphs/onnx", "--to", "deploy", "--out", "shipped"],
        ["verify", "graphs/onnx"],
        ["audit", data, "--quiet", *cache],
        ["profile", "graphs/onnx", "--calls", "1"],
    ]
    for command in commands:
        assert main(command) == 0, f"{command}: {capsys.readouterr().err}"
    for path in (
        "run/bundle/bundle.json",
        "run/figures/confusion.png",
        "tables/out.csv",
        "graphs/onnx/model.onnx",
        "graphs/x.bin",
        "weights/x.pth.json",
        "shipped/selftest.py",
    ):
        assert Path(path).stat().st_size > 0
    # the functions: the same, and again into the same places
    assert len(vivace.predict("run", [data]).rows) > 0
    assert vivace.evaluate("run", data, cache_dir="cache").metrics.num_images > 0
    assert vivace.export_state_dict(vivace.load("run"), Path("weights/x.pth")) == Path("weights/x.pth")
    assert export("run", "onnx", "graphs/onnx").path == Path("graphs/onnx")
    assert json.loads(Path("shipped/model.json").read_text())["runtime"] == "onnx"
    assert not [path for path in Path().rglob(".*") if path.suffix in (".tmp", ".old")]
    assert sorted(path.name for path in Path().iterdir()) == ["cache", "graphs", "run", "shipped", "tables", "weights"]
