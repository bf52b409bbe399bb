"""Accuracy agrees with scikit-learn and scipy, and handles edge cases correctly."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from vivace.metrics.accuracy import balanced_accuracy, confusion_matrix, macro_f1, per_class, topk_accuracy


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """scores_BK of 7 classes that are better than chance, and labels_B."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 400)
    return rng.normal(size=(400, 7)) + 1.5 * np.eye(7)[labels], labels


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_topk_agrees_with_scikit_learn(scored: tuple[np.ndarray, np.ndarray], k: int) -> None:
    scores, labels = scored
    expected = reference.top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    assert topk_accuracy(scores, labels, k=k) == pytest.approx(expected, abs=1e-12)


def test_top_of_all_classes_is_always_right(scored: tuple[np.ndarray, np.ndarray]) -> None:
    assert topk_accuracy(*scored, k=7) == 1


def test_a_constant_prediction_is_correct_for_one_class_only() -> None:
    assert topk_accuracy(np.zeros((4, 4)), np.arange(4), k=1) == 0.25
    assert topk_accuracy(np.zeros((4, 4)), np.arange(4), k=3) == 0.75


def test_ties_fall_as_argmax_lets_them_fall() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 3, (200, 5)), rng.integers(0, 5, 200)
    assert topk_accuracy(scores, labels) == (scores.argmax(1) == labels).mean()


def test_nan_is_never_right() -> None:
    assert topk_accuracy(np.full((2, 3), np.nan), [0, 1], k=3) == 0


def test_no_images_have_no_accuracy() -> None:
    assert np.isnan(topk_accuracy(np.zeros((0, 3)), np.zeros(0, np.int64)))


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_classes_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is out of range: got {k}, there are 3 classes"):
        topk_accuracy(np.zeros((2, 3)), [0, 1], k=k)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"a label is out of range: got {label}, there are 3 classes"):
        topk_accuracy(np.zeros((2, 3)), [0, label])
    with pytest.raises(ValueError, match=f"a label is out of range: got {label}, there are 3 classes"):
        confusion_matrix([0, 0], [0, label], 3)
    with pytest.raises(ValueError, match=f"a prediction is out of range: got {label}, there are 3 classes"):
        confusion_matrix([0, label], [0, 0], 3)


def test_confusion_agrees_with_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = scored
    confusion = confusion_matrix(scores.argmax(1), labels, 7)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(labels, scores.argmax(1), labels=range(7)))


def test_rows_of_the_confusion_are_the_true_classes() -> None:
    np.testing.assert_array_equal(confusion_matrix([1, 1, 0], [0, 0, 0], 2), [[1, 2], [0, 0]])


def test_per_class_metrics_agree_with_scikit_learn_also_for_0_over_0() -> None:
    # class 2 is never predicted, class 3 has no images, class 4 both
    labels, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 3])
    rows = per_class(confusion_matrix(predictions, labels, 5), ("a", "b", "c", "d", "e"))
    expected = reference.precision_recall_fscore_support(labels, predictions, labels=range(5), zero_division=0)
    assert [row.name for row in rows] == ["a", "b", "c", "d", "e"]
    for row, precision, recall, f1, support in zip(rows, *expected, strict=True):
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx((precision, recall, f1, support))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("num_classes", [2, 7, 30])
@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_and_balanced_accuracy_agree_with_scikit_learn_also_where_classes_are_absent(
    num_classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # of 30 classes some have no images, some of those are predicted, and some are neither
    labels, predictions = rng.integers(0, num_classes, 25), rng.integers(0, num_classes, 25)
    confusion = confusion_matrix(predictions, labels, num_classes)
    assert macro_f1(confusion) == pytest.approx(reference.f1_score(labels, predictions, average="macro"), abs=1e-12)
    expected = reference.balanced_accuracy_score(labels, predictions)
    assert balanced_accuracy(confusion) == pytest.approx(expected, abs=1e-12)


def test_of_no_images_there_is_no_mean() -> None:
    confusion = np.zeros((3, 3), dtype=np.int64)
    assert np.isnan(macro_f1(confusion))
    assert np.isnan(balanced_accuracy(confusion))


def test_a_class_that_is_predicted_and_has_no_images_lowers_macro_f1_alone() -> None:
    confusion = confusion_matrix([0, 1, 2], [0, 1, 1], 4)
    assert balanced_accuracy(confusion) == pytest.approx((1 + 0.5) / 2)
    assert macro_f1(confusion) == pytest.approx((1 + 2 / 3 + 0) / 3)
