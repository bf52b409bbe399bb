"""Labels that are called wrong: how many of them are right, and how many of the wrong ones are found."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.statistics.mislabelled import mislabelled


def drawn(seed: int, *, rate: float, num: int = 3000, classes: int = 6, apart: float = 3.5) -> tuple[np.ndarray, ...]:
    """(exact log-probabilities of Gaussian classes, given labels, bool: replaced)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 10))
    centres *= apart / np.linalg.norm(centres, axis=1, keepdims=True)
    true = rng.integers(0, classes, num)
    images = centres[true] + rng.normal(size=(num, 10))
    logits = images @ centres.T - (centres**2).sum(1) / 2
    replaced = rng.random(num) < rate
    labels = np.where(replaced, (true + rng.integers(1, classes, num)) % classes, true)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), labels, replaced


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.6])
def test_the_stated_rate_holds_and_most_wrong_labels_are_found(temperature: float) -> None:
    right = called = found = wrong = 0
    for seed in range(8):
        logprobs, labels, replaced = drawn(seed, rate=0.05)
        # a model may be too sure or not sure enough
        result = mislabelled(logprobs / temperature, labels, fdr=0.1)
        right += int((~replaced[result.rows]).sum())
        called += len(result.rows)
        found += int(replaced[result.rows].sum())
        wrong += int(replaced.sum())
        assert result.rate == pytest.approx(0.05, abs=0.02)
        assert result.expected_fdr <= 0.1
    assert called > 0
    assert right / called <= 0.1
    assert found / wrong >= 0.8


def test_nothing_is_called_wrong_where_all_labels_are_right() -> None:
    for seed in range(4):
        logprobs, labels, _ = drawn(seed, rate=0)
        result = mislabelled(logprobs, labels)
        assert len(result.rows) <= 2
        assert result.rate < 0.005


def test_the_surest_come_first_and_none_is_the_most_likely_class() -> None:
    logprobs, labels, replaced = drawn(0, rate=0.1)
    result = mislabelled(logprobs, labels)
    assert (np.diff(result.right_N[result.rows]) >= 0).all()
    assert (labels[result.rows] != result.likely_N[result.rows]).all()
    assert replaced[result.rows[:50]].mean() > 0.95


@pytest.mark.parametrize("fdr", [0.0, 1.0])
def test_an_impossible_rate_is_refused(fdr: float) -> None:
    with pytest.raises(ValueError, match="impossible values"):
        mislabelled(np.log(np.full((4, 2), 0.5)), np.zeros(4, np.int64), fdr=fdr)
