"""The drift test: its rate of false alarms over a server's whole life, and how soon it sees a change."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.statistics.drift import BLOCK, DriftTest, upper_bounds

CLASSES_K = np.array([0.4, 0.3, 0.2, 0.1])
# of being below each edge of confidence
BELOW_J = np.array([0.05, 0.2, 0.5])


def events(rng: np.random.Generator, count: int, classes_K: np.ndarray, below_J: np.ndarray) -> np.ndarray:
    """bool [N, K + J] of independent images; whoever is below an edge is below those above it too."""
    label_N = rng.choice(len(classes_K), count, p=classes_K)
    return np.concatenate([np.eye(len(classes_K), dtype=bool)[label_N], rng.random((count, 1)) < below_J], 1)


def made(rng: np.random.Generator, total: int, *, rate: float) -> DriftTest:
    counts = events(rng, total, CLASSES_K, BELOW_J).sum(0)
    return DriftTest(counts[:4].tolist(), counts[4:].tolist(), total, rate=rate)


def test_without_drift_few_ever_alarm_however_often_they_look() -> None:
    rng, false = np.random.default_rng(0), 0
    for _ in range(100):
        test = made(rng, 100, rate=0.1)
        # looked at after every few images, to an end that is far beyond the number of validation images
        for _ in range(40):
            test.update(events(rng, 50, CLASSES_K, BELOW_J))
        false += test.alarm
    # 10 % are stated: 10 of 100; more than 20 come with a probability of 0.1 %
    assert false <= 20


def test_the_capital_is_no_more_than_fair_where_the_bounds_are_right() -> None:
    rng, ends = np.random.default_rng(1), []
    for _ in range(200):
        test = made(rng, 5_000, rate=0.01)
        test.update(events(rng, 120, CLASSES_K, BELOW_J))
        ends.append(test.evidence())
    assert np.mean(ends) <= 1.0
    # it was bet
    assert np.std(ends) > 0


@pytest.mark.parametrize("before", [0, 10_000])
def test_a_change_is_seen_soon_also_after_a_long_time_without_one(before: int) -> None:
    rng = np.random.default_rng(2)
    for classes_K, below_J in ((np.array([0.1, 0.2, 0.3, 0.4]), BELOW_J), (CLASSES_K, np.array([0.3, 0.6, 0.9]))):
        test = made(rng, 2_000, rate=0.01)
        test.update(events(rng, before, CLASSES_K, BELOW_J))
        assert not test.alarm
        test.update(events(rng, 300, classes_K, below_J))
        assert test.alarm_at is not None
        assert before < test.alarm_at <= before + 300
        event, more = test.strongest()
        assert (event, more) in ({(3, True), (0, False)} if classes_K[3] == 0.4 else {(4, True), (5, True), (6, True)})


def test_images_one_by_one_and_all_at_once_are_the_same() -> None:
    rng = np.random.default_rng(3)
    given = events(rng, 3 * BLOCK + 7, np.array([0.1, 0.1, 0.1, 0.7]), BELOW_J)
    one, all_of_them = (made(np.random.default_rng(4), 500, rate=0.01) for _ in range(2))
    for row in given:
        one.update(row[None])
    all_of_them.update(given)
    assert one.num_images == all_of_them.num_images == len(given)
    assert one.evidence() == pytest.approx(all_of_them.evidence(), rel=1e-9)
    assert one.alarm
    assert all_of_them.alarm


def test_what_is_far_beyond_the_alarm_does_not_overflow() -> None:
    test = DriftTest([1000, 0], [10], 1000, rate=0.01)
    test.update(np.tile([False, True, True], (20_000, 1)))
    assert np.isfinite(test.evidence())
    assert test.alarm_at is not None
    assert test.alarm_at <= BLOCK


def test_bounds_hold_the_true_probability_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    for total, chance in ((50, 0.02), (50, 0.3), (1_000, 0.1)):
        bounds = upper_bounds(rng.binomial(total, chance, 4_000), total, 0.05)
        assert (bounds < chance).mean() <= 0.05
    assert upper_bounds(np.array([0, 50]), 50, 0.05) == pytest.approx([1 - 0.05 ** (1 / 50), 1.0])


def test_impossible_counts_are_an_error() -> None:
    with pytest.raises(ValueError, match="impossible"):
        DriftTest([1], [], 0, rate=0.01)
    with pytest.raises(ValueError, match="impossible"):
        DriftTest([3], [1], 2, rate=0.01)
