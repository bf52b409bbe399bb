"""AUROC and FPR95: those of scikit-learn, with intervals that hold the truth."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from vivace.statistics.detection import auroc, auroc_interval, detection


@pytest.mark.parametrize("decimals", [1, 8])
def test_the_figures_are_those_of_scikit_learn(decimals: int) -> None:
    """With many ties, and with none."""
    rng = np.random.default_rng(0)
    known, others = rng.normal(size=300).round(decimals), rng.normal(1, 2, size=200).round(decimals)
    truth, scores = np.repeat([0, 1], [300, 200]), np.concatenate([known, others])
    found = detection(known, others)
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    # known images as the positive class, low scores first
    fpr, tpr, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)])
    assert found.auroc_low < found.auroc < found.auroc_high
    assert found.fpr95_low < found.fpr95 < found.fpr95_high


def test_intervals_hold_the_truth_in_95_of_100_cases() -> None:
    rng, inside = np.random.default_rng(0), 0
    truth = NormalDist().cdf(1.5 / 2**0.5)
    for _ in range(500):
        low, high = auroc_interval(auroc(rng.normal(size=80), rng.normal(1.5, 1, size=50)), 80, 50)
        inside += low <= truth <= high
    assert inside >= 460


def test_what_is_told_perfectly_has_an_interval_all_the_same() -> None:
    low, high = auroc_interval(1.0, 100, 100)
    assert 0.95 < low < high == 1
    assert auroc(np.zeros(3), np.ones(2)) == 1
    with pytest.raises(ValueError, match="got 0 known ones"):
        auroc(np.array([]), np.ones(2))
