"""The attack on membership: it finds what is there, and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trust_private


def drawn(gap: float, *, models: int = 16, images: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """(scores, members): normal scores of images of different difficulty, higher by `gap` for members."""
    rng = np.random.default_rng(0)
    members = np.argsort(rng.random((models, images)), axis=0) < models // 2
    return rng.normal(0, 3, images) + rng.normal(0, 1, (models, images)) + gap * members, members


def test_members_that_score_higher_are_found() -> None:
    found = trust_private.attacked(*drawn(4.0), seed=0)
    # two normal distributions four deviations apart: Φ(4 - 3.09) = 0.82 were the spread known
    assert 0.7 < found["0.001"]["tpr"] < 0.9
    assert found["0.001"]["low"] <= found["0.001"]["tpr"] <= found["0.001"]["high"]


def test_where_nothing_is_to_be_found_the_rates_are_equal() -> None:
    found = trust_private.attacked(*drawn(0.0), seed=0)
    for rate in trust_private.RATES:
        assert found[str(rate)]["tpr"] == pytest.approx(rate, rel=0.5)


def test_the_threshold_lets_no_more_than_the_rate_pass() -> None:
    ratios, members = np.arange(2000.0), np.arange(2000) % 2 == 0
    # the highest of a thousand outsiders is above all members but none
    assert trust_private.true_positive_rate(ratios, members, 0.0) == 0.0
    assert trust_private.true_positive_rate(ratios, members, 0.001) == pytest.approx(0.001)


def test_confidence_is_the_log_of_the_odds_of_the_true_class() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, 1.0], [100.0, 0.0, 0.0]]), torch.tensor([0, 0])
    p = float(logits[0].softmax(0)[0])
    assert trust_private.confidence(logits, labels)[0] == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(trust_private.confidence(logits, labels)).all()


def test_each_image_is_in_half_of_the_models() -> None:
    _, members = drawn(0.0)
    assert (members.sum(0) == 8).all()
