"""cache=False: a data set whose items are random is read anew for each epoch, and resumed to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killed, die_after
from same_weights import assert_same_weights

import vivace
from conftest import TINY
from vivace.config import override
from vivace.data.config import AugmentConfig
from vivace.errors import DataError
from vivace.training.result import TrainResult

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)


class Random:
    """Items with a random shift of brightness, by torch's and NumPy's global generators; remembers what it gave."""

    def __init__(self, *, own_generator: bool = False) -> None:
        self.given: list[tuple[int, int]] = []
        self._own = np.random.default_rng() if own_generator else None

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        draw = int(torch.randint(0, 60, ())) + int(np.random.randint(0, 60))
        shift = draw if self._own is None else int(self._own.integers(0, 120))
        self.given.append((index, shift))
        return (IMAGES[index] // 2 + shift).astype(np.uint8), index % 3


def run_on(data: Any, run: Path, **options: Any) -> TrainResult:
    changes = {"augment": AugmentConfig(), "data.size": 16, "data.store_size": 16}
    recipe = {} if options.get("resume") else {"recipe": override(TINY, changes)}
    return vivace.train(data, run=run, tune=False, quiet=True, cache=False, **{**recipe, **options})


def test_a_random_data_set_is_refused_with_what_lets_it_be_trained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"change from read to read: .* vivace\.train\(dataset, cache=False\)"):
        vivace.train(Random(), recipe=TINY, run=tmp_path / "run", quiet=True)


def test_each_epoch_sees_other_images_and_validation_the_same(tmp_path: Path) -> None:
    dataset = Random()
    result = run_on(dataset, tmp_path / "run")
    assert any("training images are read anew for each epoch; those for validation" in line for line in result.warnings)
    shifts: dict[int, list[int]] = {}
    for index, shift in dataset.given:
        shifts.setdefault(index, []).append(shift)
    counts = {index: len(given) for index, given in shifts.items()}
    few = min(counts.values())
    # three epochs of training beside the reads that all images have; validation images have these alone
    assert sorted(set(counts.values()))[:1] == [few]
    trained = [index for index, count in counts.items() if count >= few + 3]
    assert len(trained) == 18
    assert all(len(set(shifts[index][-3:])) > 1 for index in trained[:6])


def test_a_killed_run_reads_what_the_unbroken_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = run_on(Random(), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        with pytest.raises(Killed):
            run_on(Random(), tmp_path / "killed")
    torch.manual_seed(7)
    np.random.seed(7)
    assert_same_weights(unbroken, run_on(Random(), tmp_path / "killed", resume=True))


def test_the_seed_of_the_run_decides_what_is_drawn(tmp_path: Path) -> None:
    first, second = Random(), Random()
    run_on(first, tmp_path / "first", seed=1)
    run_on(second, tmp_path / "second", seed=2)
    assert first.given != second.given
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run_on(Random(), tmp_path / "third", seed=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_a_generator_of_its_own_trains_too(tmp_path: Path) -> None:
    assert run_on(Random(own_generator=True), tmp_path / "run").epochs == 3


def test_validation_items_of_their_own_stay_as_they_are(tmp_path: Path) -> None:
    val = [(IMAGES[index] // 2, index % 3) for index in range(6)]

    class Fixed:
        def __len__(self) -> int:
            return len(val)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return val[index]

    result = run_on({"train": Random(), "val": Fixed()}, tmp_path / "run")
    assert not any("held out of the same data" in line for line in result.warnings)
    evaluation = vivace.evaluate(result.bundle, {"val": Fixed()})
    assert evaluation.metrics.top1 == result.val_top1


def test_it_is_refused_where_it_would_be_ignored(tmp_path: Path) -> None:
    for data, what in (
        ((IMAGES, np.arange(24) % 3), "read in another way"),
        ("digits", r"data sets in Python, whose items may be random: got digits"),
    ):
        with pytest.raises(DataError, match=f"cache=False is for .*{what}"):
            run_on(data, tmp_path / "run")
    result = run_on(Random(), tmp_path / "run")
    with pytest.raises(DataError, match="cache=False is for training alone"):
        vivace.evaluate(result.bundle, vivace.Data(Random(), cache=False))
