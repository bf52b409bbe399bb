"""The bound on an accuracy drop: known values, coverage, and the number of images that would prove a budget."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.statistics.paired import exact_p_value, images_to_prove, loss_bound, paired_loss


def test_lost_and_gained_count_changed_predictions() -> None:
    before = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
    after = np.array([1, 0, 0, 1, 0, 1], dtype=bool)
    loss = paired_loss(before, after)
    assert (loss.lost, loss.gained, loss.num_images) == (2, 1, 6)
    assert loss.drop == pytest.approx(1 / 6)
    assert (loss.top1_before, loss.top1_after) == (pytest.approx(4 / 6), pytest.approx(3 / 6))
    assert loss.bound > loss.drop


@pytest.mark.parametrize(("lost", "gained", "n"), [(12, 1, 44), (3, 2, 200), (0, 4, 90), (30, 22, 1000)])
def test_at_the_bound_the_score_is_that_of_the_level(lost: int, gained: int, n: int) -> None:
    bound = loss_bound(lost, gained, n)
    # the most likely proportions under the assumed drop, found by a grid search
    share = np.linspace(max(0.0, -bound) + 1e-9, (1 - bound) / 2, 400_001)
    rest = 1 - bound - 2 * share
    logs = (
        lost * np.log(share + bound) + gained * np.log(share) + (n - lost - gained) * np.log(np.maximum(rest, 1e-300))
    )
    best = share[logs.argmax()]
    score = (lost - gained - n * bound) / np.sqrt(n * (2 * best + bound - bound**2))
    assert score == pytest.approx(-1.6448536, abs=2e-3)


@pytest.mark.parametrize("n", [50, 1000, 100_000])
def test_without_changed_predictions_the_bound_is_exact(n: int) -> None:
    assert loss_bound(0, 0, n) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)


@pytest.mark.parametrize("budget", [0.005, 0.01, 0.02])
def test_a_drop_of_just_the_budget_is_rarely_called_proven(budget: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    # no image is ever gained, and the images are just enough: there the score test alone errs in 6.7 %
    for n in {round(factor * (1 - budget) / budget) for factor in (2.71, 2.8, 3.0, 4.9)}:
        most = max((lost for lost in range(20) if loss_bound(lost, 0, n) <= budget), default=-1)
        assert stats.binom.cdf(most, n, budget) <= 0.0503, n


def test_without_gained_images_it_is_the_exact_bound_where_that_is_larger() -> None:
    stats = pytest.importorskip("scipy.stats")
    for lost, n in ((1, 90), (3, 200), (40, 1000)):
        assert loss_bound(lost, 0, n) >= stats.beta.ppf(0.95, lost + 1, n - lost) - 1e-12
        assert loss_bound(lost, 0, n) > loss_bound(lost, 1, n)


def test_more_lost_images_and_more_confidence_raise_it_and_more_images_lower_it() -> None:
    bounds = [loss_bound(lost, 5, 500) for lost in range(0, 40, 4)]
    assert bounds == sorted(bounds)
    assert loss_bound(9, 5, 500, confidence=0.99) > loss_bound(9, 5, 500)
    assert loss_bound(90, 50, 5000) < loss_bound(9, 5, 500)
    # all lost: no drop is rejected as too large
    assert loss_bound(20, 0, 20) == pytest.approx(1.0)
    assert loss_bound(0, 20, 20) < 0


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.02, 0.01, 700), (0.005, 0.005, 700), (0.01, 0.0, 552)])
def test_the_true_loss_lies_above_it_about_once_in_twenty(lost: float, gained: float, n: int) -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [lost, gained, 1 - lost - gained], size=4000)
    missed = np.mean([loss_bound(a, b, n) < lost - gained for a, b, _ in counts])
    assert missed <= 0.065


def test_the_number_of_images_that_would_prove_a_budget() -> None:
    loss = paired_loss(np.ones(200, dtype=bool), np.ones(200, dtype=bool))
    needed = images_to_prove(loss, 0.005)
    assert needed is not None
    assert loss_bound(0, 0, needed) <= 0.005 < loss_bound(0, 0, needed - 1)
    worse = paired_loss(np.ones(200, dtype=bool), np.arange(200) >= 4)
    assert images_to_prove(worse, 0.02) is None
    assert images_to_prove(worse, 0.03) is not None
    assert images_to_prove(loss, 0.0) is None


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        loss_bound(*counts)
    with pytest.raises(ValueError, match="same images"):
        paired_loss(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 5), (0, 6), (3, 12), (40, 61), (900, 1100)])
def test_the_exact_p_value_is_that_of_the_binomial_test(lost: int, gained: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert exact_p_value(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert exact_p_value(gained, lost) == exact_p_value(lost, gained)
