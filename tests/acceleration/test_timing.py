"""Timing in fresh processes: alternation, equals that come out equal, and sides that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.acceleration.timing import Side, SideFailure, Timings, ratio_of, time_sides
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError
from vivace.models.zoo import create_model

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def make(folder: Path, widths: list[int]) -> Bundle:
    torch.manual_seed(0)
    arguments = {"widths": widths, "depth": 1}
    info = BundleInfo(
        architecture=Architecture(name="fast_cnn", num_classes=3, arguments=arguments),
        classes=("a", "b", "c"),
        preprocess=Preprocess(size=32, store_size=32),
    )
    return save_bundle(folder, create_model("fast_cnn", 3, in_channels=3, size=32, **arguments), info)


def side(name: str, bundle: Bundle, runtime: str = "eager") -> Side:
    return Side(name=name, bundle=bundle.folder, runtime=runtime, precision="fp32")


def test_the_smaller_network_is_the_faster_one_and_equals_are_equal(tmp_path: Path) -> None:
    small, large = make(tmp_path / "small", [8]), make(tmp_path / "large", [256, 256])
    sides = [side("large", large), side("again", large), side("small", small)]
    timings = time_sides(sides, IMAGES, batch_size=2, threads=1, rounds=6, block_seconds=0.05)
    assert [one.name for one in timings] == ["large", "again", "small"]
    assert {len(one.blocks_ms) for one in timings} == {6}
    first, again, fast = timings
    assert ratio_of(first, fast)[1] > 1.5
    # whatever else runs beside the tests
    assert 0.4 < ratio_of(first, again)[0] < 2.5
    for one in timings:
        assert 0 < one.p50_ms <= one.percentile(90) <= one.percentile(99)
        assert one.cold_start_seconds > 0.1
        # torch alone has more than this, and this process, which has done other things, is not counted
        assert 50e6 < one.peak_memory_bytes < 8e9


def test_the_ratio_is_of_block_medians_and_a_slow_round_cancels() -> None:
    def timed(name: str, blocks: list[list[float]]) -> Timings:
        return Timings(
            name=name,
            blocks_ms=tuple(map(tuple, blocks)),
            cold_start_seconds=1.0,
            peak_memory_bytes=1,
        )

    # one call of each block was interrupted, and everything was slow in the third round
    before = timed("before", [[4, 4, 90], [4, 4, 90], [8, 8, 8], [4, 4, 4]])
    after = timed("after", [[2, 2, 90], [2, 2, 2], [4, 4, 90], [2, 2, 2]])
    assert before.medians_ms == (4, 4, 8, 4)
    assert ratio_of(before, after) == (2.0, 2.0, 2.0)


def test_a_side_that_fails_is_left_out_and_told_or_raised(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", [8])
    # it holds no graph for this runtime
    broken = side("broken", whole, "onnx")
    told: list[str] = []
    timings = time_sides(
        [broken, side("whole", whole)],
        IMAGES,
        rounds=1,
        block_seconds=0.01,
        on_failure=lambda failed, why: told.append(f"{failed.name}: {why}"),
    )
    assert [one.name for one in timings] == ["whole"]
    assert len(told) == 1
    assert "broken could not be timed: ConfigError: the bundle holds no graph for onnx" in told[0]
    with pytest.raises(SideFailure, match="broken could not be timed"):
        time_sides([broken], IMAGES, rounds=1)


def test_a_side_that_dies_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivace.acceleration.timing.CHILD", "import sys; sys.exit('no such library')")
    with pytest.raises(SideFailure, match=r"its process died \(no such library\)"):
        time_sides([side("a", make(tmp_path / "a", [8]))], IMAGES, rounds=1)


def test_too_few_images_for_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 6 for batches of 7"):
        time_sides([side("a", make(tmp_path / "a", [8]))], IMAGES, batch_size=7)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SideFailure])
def test_no_process_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]) -> None:
    from vivace.acceleration import timing

    started: list[timing._Child] = []
    plain: Callable[..., None] = timing._Child.__init__

    def remembered(child: timing._Child, *arguments: object) -> None:
        plain(child, *arguments)
        started.append(child)

    def stopped(child: timing._Child) -> None:
        raise stop

    monkeypatch.setattr(timing._Child, "__init__", remembered)
    monkeypatch.setattr(timing._Child, "run_block", stopped)
    with pytest.raises(stop):
        time_sides([side("a", make(tmp_path / "a", [8]))], IMAGES, rounds=1, block_seconds=0.01)
    assert [child._process.poll() is not None for child in started] == [True]
