"""Prediction sets: the scores are those of the papers, and the coverage of new images is where theory puts it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import betabinom

from vivace.statistics.conformal import (
    METHODS,
    SetRule,
    choose_rule,
    class_scores,
    coverage_band,
    score_threshold,
    true_scores,
)

RULES = [SetRule(method=method, penalty=0.01, free_ranks=2) for method in METHODS]


def sample(rng: np.random.Generator, count: int, num_classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels that are drawn otherwise: the coverage must not need a network that is right."""
    logits = rng.normal(size=(count, num_classes)) * 2
    probs, truth = (np.exp(factor * logits) for factor in (1.0, 0.4))
    probs, truth = (values / values.sum(1, keepdims=True) for values in (probs, truth))
    return probs, (truth.cumsum(1) > rng.random((count, 1))).argmax(1)


def test_scores_are_those_of_the_papers() -> None:
    probs, _ = sample(np.random.default_rng(0), 20)
    for row, lac, aps, raps in zip(probs, *(class_scores(probs, rule) for rule in RULES), strict=True):
        for k, p in enumerate(row):
            rank = 1 + sum(row > p)
            above = sum(row[row > p]) + p
            assert lac[k] == pytest.approx(1 - p)
            assert aps[k] == pytest.approx(above)
            assert raps[k] == pytest.approx(above + 0.01 * max(0, rank - 2))


@pytest.mark.parametrize("coverage", ["0.5", "0.8", "0.9", "0.95", "0.99"])
def test_the_quantile_is_the_one_of_finite_samples(coverage: str) -> None:
    for count in range(1, 400):
        rank = math.ceil((count + 1) * Fraction(coverage))
        expected = math.inf if rank > count else rank - 1
        assert score_threshold(np.arange(count)[::-1], float(coverage)) == expected


@pytest.mark.parametrize(("n", "m", "coverage"), [(19, 50, 0.9), (500, 1000, 0.9), (99, 7, 0.5), (5000, 200, 0.99)])
def test_the_band_is_the_central_one_of_the_beta_binomial_distribution(n: int, m: int, coverage: float) -> None:
    a = math.ceil(round((n + 1) * coverage, 9))
    low, high = (round(end * m) for end in coverage_band(n, m, coverage))
    law = betabinom(m, a, n + 1 - a)
    assert law.cdf(low - 1) <= 0.025 < law.cdf(low)
    assert law.sf(high) <= 0.025 < law.sf(high - 1)
    assert coverage_band(4, 10, 0.9) == (1.0, 1.0)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_coverage_is_inside_the_band_in_95_of_100_splits(rule: SetRule) -> None:
    """20 of them: at least 19. 200: as many as a probability of 95 % gives but once in 10,000 times."""
    rng = np.random.default_rng(4)
    low, high = coverage_band(300, 400, 0.9)
    inside, covered = [], []
    for _ in range(200):
        threshold = score_threshold(true_scores(*sample(rng, 300), rule), 0.9)
        probs, labels = sample(rng, 400)
        covered.append((true_scores(probs, labels, rule) <= threshold).mean())
        inside.append(low <= covered[-1] <= high)
    assert sum(inside[:20]) >= 19
    assert sum(inside) >= 178
    assert np.mean(covered) == pytest.approx(math.ceil(301 * 0.9) / 301, abs=0.01)


def test_a_quantile_without_the_correction_would_leave_the_band() -> None:
    """The test above sees a rank that is 5 % off, as of a few images the uncorrected one is."""
    rng = np.random.default_rng(4)
    low, high = coverage_band(300, 400, 0.9)
    covered = []
    for _ in range(200):
        threshold = score_threshold(true_scores(*sample(rng, 300), SetRule()), 0.85)
        covered.append((true_scores(*sample(rng, 400), SetRule()) <= threshold).mean())
    assert sum(low <= value <= high for value in covered) < 178


def test_the_rule_with_the_smallest_sets_is_chosen() -> None:
    probs, labels = sample(np.random.default_rng(1), 500)
    chosen = choose_rule(probs, labels, coverage=0.9)

    def size(rule: SetRule) -> float:
        threshold = score_threshold(true_scores(probs, labels, rule), 0.9)
        return float(np.maximum(1, (class_scores(probs, rule) <= threshold).sum(1)).mean())

    assert size(chosen) <= min(size(rule) for rule in RULES)


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(ValueError, match="0 scores"):
        score_threshold(np.array([]), 0.9)
    with pytest.raises(ValueError, match=r"a coverage of 1\.0"):
        score_threshold(np.array([1.0]), 1.0)
    with pytest.raises(ValueError, match="method is unknown: got 'x'"):
        class_scores(np.ones((1, 1)), SetRule(method="x"))
