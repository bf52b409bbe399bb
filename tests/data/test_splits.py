"""Holding out a validation split among copies and contradictions."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.data.holdout import hold_out


@pytest.mark.parametrize("seed", range(20))
def test_a_group_in_several_classes_stays_in_training(seed: int) -> None:
    # the same file under two labels: if one were held out, the network would have been trained on the other
    labels = np.repeat([0, 1], 10)
    groups = np.array([f"a{i}" for i in range(9)] + ["both", "both"] + [f"b{i}" for i in range(9)])
    kept, held = hold_out(labels, groups, 0.3, seed=seed)
    assert not set(groups[kept]) & set(groups[held])
    assert set(labels[kept]) == set(labels[held]) == {0, 1}


@pytest.mark.parametrize("seed", range(20))
def test_a_large_group_of_copies_does_not_swamp_the_validation(seed: int) -> None:
    labels = np.zeros(100, dtype=np.int64)
    groups = np.concatenate([np.zeros(90, dtype=np.int64), np.arange(1, 11)])
    _, held = hold_out(labels, groups, 0.1, seed=seed)
    assert len(held) == 10


def test_where_no_group_fits_the_smallest_is_held_out() -> None:
    labels = np.zeros(12, dtype=np.int64)
    groups = np.repeat([0, 1, 2], [3, 4, 5])
    _, held = hold_out(labels, groups, 0.1)
    assert held.tolist() == [0, 1, 2]


def test_a_class_of_one_group_stays_in_training() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    groups = np.array([7, 7, 7, 1, 2, 3])
    kept, held = hold_out(labels, groups, 0.5)
    assert set(labels[held]) == {1}
    assert {0, 1, 2} <= set(kept.tolist())


def test_the_positions_are_sorted_int64_and_cover_all() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    digests = np.array([f"{index:032x}".encode() for index in range(200)], dtype="S32")
    kept, held = hold_out(labels, digests, 0.1)
    assert kept.dtype == held.dtype == np.int64
    assert np.all(np.diff(kept) > 0)
    assert np.all(np.diff(held) > 0)
    assert sorted([*kept, *held]) == list(range(200))


def test_a_class_keeps_a_group_to_train_on_whatever_the_fraction() -> None:
    kept, held = hold_out(np.array([0, 0, 1, 1, 1]), np.arange(5), 0.9)
    assert (len(kept), len(held)) == (2, 3)
