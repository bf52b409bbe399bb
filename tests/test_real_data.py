"""The main jobs on the two real data sets; skipped, with the reason, where they are not at hand."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.alone]


def vivace(*arguments: str) -> dict[str, Any]:
    """The JSON that a verb prints, run as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vivace", *arguments, "--json", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_cifar10_learns_from_each_image_and_keeps_its_memory(real_data: Path, tmp_path: Path) -> None:
    result = vivace("train", str(real_data / "cifar10"), "--epochs", "2", "--run", str(tmp_path / "run"))
    # the work is what is given, however long it takes: every image twice. Chance is a tenth
    assert result["epochs"] == 2
    assert result["test_top1"] > 4 / 10
    # all children so far: this one is the largest
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 3 * 2**30

    evaluation = vivace("evaluate", str(tmp_path / "run"), str(real_data / "cifar10"))
    assert evaluation["num_images"] == 10_000
    # the same pixels, network and precision as at the end of training
    assert evaluation["top1"] == pytest.approx(result["test_top1"], abs=1e-9)
    assert evaluation["top1_low"] < evaluation["top1"] < evaluation["top1_high"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_time_is_kept_whatever_the_machine_does_in_it(real_data: Path, tmp_path: Path) -> None:
    result = vivace("train", str(real_data / "cifar10"), "--within", "45s", "--run", str(tmp_path / "run"))
    # what is missed by more is told
    assert 0.95 < result["total_seconds"] / 45 < 1.05 or result["warnings"]
    assert result["epochs"] > 0


def test_flowers_learn_and_are_predicted_from_their_files(real_data: Path, tmp_path: Path) -> None:
    flowers = real_data / "flowers"
    options = ["--epochs", "2", "--size", "64", "--run", str(tmp_path / "run")]
    result = vivace("train", str(flowers), *options)
    # five classes of like size: chance is a quarter at best
    assert result["val_top1"] > 0.35
    files = sorted((flowers / "val" / "roses").iterdir())[:20]
    predictions = vivace("predict", str(tmp_path / "run"), *map(str, files))
    assert len(predictions["predictions"]) == 20


def test_the_contradiction_in_the_flowers_is_refused_and_named_where_asked(real_data: Path, tmp_path: Path) -> None:
    options = ["--run", str(tmp_path / "run"), "--on-bad-image", "refuse"]
    done = subprocess.run(
        [sys.executable, "-m", "vivace", "train", str(real_data / "flowers"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "roses" in done.stderr
    assert "tulips" in done.stderr
    assert "--on-bad-image skip" in done.stderr
    assert not (tmp_path / "run").exists()
