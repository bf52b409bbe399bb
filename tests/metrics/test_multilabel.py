"""Metrics of images with sets of labels, against scikit-learn's and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.metrics.multilabel import (
    MIN_EXAMPLES,
    average_precision,
    best_thresholds,
    evaluate_sets,
    macro_average_precision,
)
from vivace.metrics.platt import best_scales

NAMES = ("a", "b", "c", "d", "e")


def answers(num_images: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """probs_NK, many of them equal, and hits_NK; no image has the last label."""
    rng = np.random.default_rng(seed)
    hits_NK = rng.random((num_images, 5)) < [0.5, 0.2, 0.1, 0.02, 0]
    probs_NK = 1 / (1 + np.exp(-rng.normal(size=hits_NK.shape) - 2 * hits_NK))
    return np.round(probs_NK, 2), hits_NK


def test_they_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probs, hits = answers()
    found = evaluate_sets(probs, hits, NAMES, [0.5, 0.4, 0.6, 0.5, 0.5])
    predicted = probs >= [0.5, 0.4, 0.6, 0.5, 0.5]
    assert found.map == pytest.approx(metrics.average_precision_score(hits[:, :4], probs[:, :4]))
    assert found.map_micro == pytest.approx(metrics.average_precision_score(hits, probs, average="micro"))
    assert found.f1_macro == pytest.approx(metrics.f1_score(hits[:, :4], predicted[:, :4], average="macro"))
    assert found.f1_micro == pytest.approx(metrics.f1_score(hits, predicted, average="micro"))
    assert found.hamming_loss == pytest.approx(metrics.hamming_loss(hits, predicted))
    assert found.exact_match == pytest.approx(metrics.accuracy_score(hits, predicted))
    assert found.exact_match_low < found.exact_match < found.exact_match_high
    assert found.bce == pytest.approx(metrics.log_loss(hits.reshape(-1), np.clip(probs.reshape(-1), 1e-7, 1 - 1e-7)))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(hits[:, :4], predicted[:, :4])
    for label, row in enumerate(found.per_label[:4]):
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision[label], recall[label], f1[label]))
        assert row.support == support[label]


def test_a_label_that_no_image_has_is_left_out_and_named() -> None:
    probs, hits = answers()
    found = evaluate_sets(probs, hits, NAMES, [0.5] * 5)
    assert found.without_images == ("e",)
    assert found.per_label[-1].average_precision is None
    assert found.map == pytest.approx(macro_average_precision(probs, hits))


def test_average_precision_by_hand() -> None:
    # ranks 1 and 3 are hits: (1/1 + 2/3) / 2
    assert average_precision([0.9, 0.8, 0.7, 0.1], [True, False, True, False]) == pytest.approx((1 + 2 / 3) / 2)
    # equal scores are taken together, whatever their order
    assert average_precision([0.5] * 4, [True, False, False, False]) == 0.25
    assert average_precision([0.5] * 4, [False, False, False, True]) == 0.25
    assert np.isnan(average_precision([0.5, 0.4], [False, False]))
    assert macro_average_precision([[np.nan], [0.1]], [[True], [False]]) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_reach_the_best_f1_that_there_is(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    probs, hits = answers(seed=seed)
    thresholds = best_thresholds(probs, hits)
    for label in range(3):
        best = max(metrics.f1_score(hits[:, label], probs[:, label] >= t) for t in np.linspace(0.005, 0.995, 199))
        assert metrics.f1_score(hits[:, label], probs[:, label] >= thresholds[label]) == pytest.approx(best)
    assert ((thresholds > 0) & (thresholds < 1)).all()


def test_rare_labels_share_the_threshold_that_is_best_for_all() -> None:
    probs, hits = answers()
    assert hits[:, 3].sum() < MIN_EXAMPLES
    thresholds = best_thresholds(probs, hits)
    assert thresholds[3] == thresholds[4]
    micro = [evaluate_sets(probs, hits, NAMES, [t] * 5).f1_micro for t in (thresholds[3], 0.3, 0.5, 0.7, 0.9)]
    assert micro[0] == max(micro)
    # no label at all: nothing to choose by
    assert best_thresholds(probs, np.zeros_like(hits)).tolist() == [0.5] * 5


@pytest.mark.parametrize(
    ("probs", "hits", "message"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2), bool), "no images"),
        (np.full((3, 2), 2.0), np.zeros((3, 2), bool), "probabilities must be from 0 to 1"),
        (np.full((3, 2), np.nan), np.zeros((3, 2), bool), "probabilities must be from 0 to 1"),
        (np.zeros((3, 2)), np.zeros((3, 1), bool), "sizes differ"),
    ],
)
def test_what_is_no_answer_is_refused(probs: np.ndarray, hits: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_sets(probs, hits, ("a", "b"), (0.5, 0.5))


def test_scales_are_those_of_an_unpenalized_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    probs, hits = answers(3000)
    logits = 3 * np.log(np.clip(probs, 0.01, 0.99) / (1 - np.clip(probs, 0.01, 0.99))) - 1
    scales, shifts = best_scales(logits, hits)
    for label in range(3):
        reference = linear_model.LogisticRegression(C=1e9, tol=1e-9).fit(logits[:, [label]], hits[:, label])
        assert (scales[label], shifts[label]) == pytest.approx(
            (reference.coef_[0, 0], reference.intercept_[0]), rel=0.02
        )
    # no image has the last label: it gets the scale of all, and no shift
    assert shifts[4] == 0
    assert 1 / 50 <= scales[4] <= 50


def test_without_shifts_the_scale_alone_is_fitted_and_the_order_stays() -> None:
    probs, hits = answers()
    logits = 4 * (probs - 0.5)
    scales, shifts = best_scales(logits, hits, shifts=False)
    assert not shifts.any()
    assert (scales > 0).all()
    assert macro_average_precision(logits * scales, hits) == macro_average_precision(logits, hits)


def test_separable_labels_get_finite_scales() -> None:
    hits = np.arange(40) % 2 == 0
    scales, shifts = best_scales(np.where(hits, 5.0, -5.0)[:, None], hits[:, None])
    assert np.isfinite([*scales, *shifts]).all()
    probs = 1 / (1 + np.exp(-(np.where(hits, 5.0, -5.0) * scales[0] + shifts[0])))
    # as many right answers as (n + 1) of (n + 2)
    assert probs[hits] == pytest.approx(21 / 22, abs=0.01)
