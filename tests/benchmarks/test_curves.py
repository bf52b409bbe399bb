"""The figure of accuracy over time: what may be drawn together, and that it is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curves import draw, gather


def record(folder: Path, name: str, contender: str, cpu: str = "a CPU") -> Path:
    run: dict[str, Any] = {"top1": 0.8, "train_seconds": 20.0, "curve": [[10.0, 0.5], [20.0, 0.8]]}
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps({"data": "flowers", "environment": {"cpu": cpu, "num_cpus": 2}, "runs": {contender: [run]}})
    )
    return path


def test_runs_of_several_files_come_together(tmp_path: Path) -> None:
    files = [record(tmp_path, "1", "vivace"), record(tmp_path, "2", "peer"), record(tmp_path, "3", "vivace")]
    runs, origin = gather(files)
    assert {name: len(its_runs) for name, its_runs in runs.items()} == {"vivace": 2, "peer": 1}
    assert origin == "flowers, a CPU, 2 cores"


def test_times_of_different_machines_are_not_drawn_together(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="do not compare: flowers, a CPU, 2 cores; flowers, another, 2 cores"):
        gather([record(tmp_path, "1", "vivace"), record(tmp_path, "2", "peer", cpu="another")])


def test_the_figure_is_written_and_not_empty(tmp_path: Path) -> None:
    runs, origin = gather([record(tmp_path, "1", "vivace")])
    draw(runs, origin, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (960, 600)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # the line's blue, blended with white
    assert (pixels[..., 2] > pixels[..., 0] + 80).any()
