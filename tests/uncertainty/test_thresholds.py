"""The thresholds of a bundle: what they are computed from, and that a file with others is nobody's word."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vivace.config import to_dict
from vivace.errors import BundleError, ConfigError
from vivace.statistics.conformal import coverage_band, true_scores
from vivace.uncertainty.calibrate import MIN_IMAGES, calibrate
from vivace.uncertainty.decide import Decider
from vivace.uncertainty.record import (
    FEATURES,
    UNCERTAINTY,
    Calibrated,
    Uncertainty,
    read_features,
    write_uncertainty,
)
from vivace.uncertainty.scores import Answers, energy

LABELS = {"variant": "eager fp32", "images": "validation images"}


def answered(count: int, seed: int = 0, *, shift: float = 0.0) -> tuple[Answers, np.ndarray]:
    """Answers to images of four classes, with features around a point for each class; `shift` moves them away."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    features = np.eye(8)[labels] * 3 + rng.normal(0, 1, (count, 8)) + shift * np.eye(8)[7]
    logits = features[:, :4] * 1.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Answers(probs.astype(np.float32), energy(logits), features.astype(np.float32)), labels


def calibrated(count: int = 1000, seed: int = 0) -> Calibrated:
    found = calibrate(*answered(count, seed), {"moved": answered(60, 99, shift=5)[0]}, **LABELS)
    assert found is not None
    return found


def test_new_images_are_covered_answered_and_called_unlike_as_is_said() -> None:
    made = calibrated()
    decider = Decider(made.found, made.features_MD, before_softmax=True, risk=0.03)
    answers, labels = answered(4000, 7)
    decided = decider.decide(answers)
    rows = np.arange(len(labels))
    low, high = coverage_band(made.found.num_images, 4000, 0.9)
    assert low <= decider.exact_sets(answers.probs_NK)[rows, labels].mean() <= high
    assert decided.sets_NK.any(1).all()
    assert decided.sets_NK[rows, answers.probs_NK.argmax(1)].all()
    assert decided.abstain_N is not None
    assert decided.ood_N is not None
    right = answers.probs_NK.argmax(1) == labels
    assert 0 < decided.abstain_N.mean() < 0.6
    assert (~right[~decided.abstain_N]).mean() <= 0.03
    assert 0.02 < decided.ood_N.mean() < 0.09


def test_the_images_that_choose_are_none_of_those_that_calibrate() -> None:
    answers, labels = answered(500)
    made = calibrated(500)
    assert (made.found.num_images, made.found.num_choosing) == (400, 100)
    order = np.random.default_rng(0).permutation(500)
    scores = true_scores(answers.probs_NK, labels, made.found.rule)
    assert made.found.scores == tuple(np.sort(scores[order[100:]]))
    assert made.found.levels[-1].answered == 400


def test_the_score_that_tells_the_generated_images_best_comes_first() -> None:
    made = calibrated()
    # the move is in a feature that no class looks at
    assert made.found.ood[0].name == "neighbours"
    assert made.found.ood[0].auroc > 0.9 > made.found.ood[1].auroc
    graph = Decider(made.found)
    assert graph.ood is not None
    assert graph.ood.name == "entropy"
    assert Decider(made.found, None, before_softmax=True).ood.name != "neighbours"  # type: ignore[union-attr]


def test_too_few_images_promise_nothing_and_say_so() -> None:
    assert calibrate(*answered(MIN_IMAGES - 1), {}, **LABELS) is None
    made = calibrate(*answered(30), {}, **LABELS)
    assert made is not None
    decider = Decider(made.found, coverage=0.99)
    assert decider.decide(answered(5)[0]).sets_NK.all()
    assert decider.decide(answered(5)[0]).abstain_N is None
    sets, abstaining = decider.notes()
    assert "24 calibration images are too few for a coverage of 0.99" in sets
    assert "24 calibration images, and at least 59 answers" in abstaining
    # JSON knows no infinity
    told = decider.told()
    assert [0.99, None] in told["set_thresholds"]
    assert [0.05, None] in told["answered_from"]


@pytest.mark.parametrize("rate", [0, 1, -0.1, "0.9", True, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: Any) -> None:
    for name in ("coverage", "risk"):
        with pytest.raises(ConfigError, match=r"is out of range: got .*Give a number between 0 and 1"):
            Decider(calibrated().found, **{name: rate})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made = calibrated()
    write_uncertainty(tmp_path, made)
    assert Uncertainty.read(tmp_path / UNCERTAINTY) == made.found
    assert made.features_MD is not None
    assert np.array_equal(read_features(tmp_path / FEATURES), made.features_MD)


def set_at(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        node: Any = told
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_at("scores", to=[]),
        set_at("scores", to=[0.5, 0.1]),
        set_at("scores", to=["x"]),
        set_at("scores", to=[1e300]),
        set_at("scores", to=[0.1] * 20_001),
        set_at("scores", 0, to=-1),
        set_at("levels", to=[]),
        set_at("levels", -1, "confidence", to=0.1),
        set_at("levels", 0, "errors", to=10**6),
        set_at("levels", 0, "answered", to=0.5),
        set_at("levels", 0, to=7),
        set_at("rule", "method", to="own"),
        set_at("rule", "penalty", to=-1),
        set_at("rule", to=None),
        set_at("ood", 0, "name", to="entropy2"),
        set_at("ood", 0, "threshold", to=None),
        set_at("ood", 0, "generated", 0, "result", "auroc", to=2),
        set_at("variant", to="a\nb"),
        set_at("also_chose", to=["x" * 300]),
        set_at("schema_version", to=2),
        set_at("more", to=1),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    told = to_dict(calibrated(100).found)
    change(told)
    path = tmp_path / UNCERTAINTY
    path.write_text(json.dumps(told))
    with pytest.raises(BundleError) as caught:
        Uncertainty.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"scores": [NaN]}', " " * 5_000_000, "[" * 100_000])
def test_a_file_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / UNCERTAINTY
    path.write_text(text)
    with pytest.raises(BundleError, match=UNCERTAINTY):
        Uncertainty.read(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.float32),
        np.zeros(3, np.float16),
        np.full((3, 4), np.nan, np.float16),
        np.zeros((2_001, 1), np.float16),
        np.zeros((0, 4), np.float16),
        np.array([[{"a": 1}]], dtype=object),
    ],
)
def test_features_of_another_kind_are_refused_and_a_pickle_is_never_read(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / FEATURES
    np.save(path, array, allow_pickle=True)
    with pytest.raises(BundleError, match=r"does not hold features|NaN or Inf"):
        read_features(path)


def test_features_that_are_cut_short_or_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / FEATURES
    np.save(path, np.zeros((10, 4), np.float16))
    whole = path.read_bytes()
    for data in (whole[:-3], whole + b"x", whole[:20], b"", whole.replace(b"(10, 4)", b"(99, 4)")):
        path.write_bytes(data)
        with pytest.raises(BundleError, match="does not hold features"):
            read_features(path)


def test_a_record_that_contradicts_itself_is_not_written(tmp_path: Path) -> None:
    wrong = dataclasses.replace(calibrated().found, scores=(0.5, 0.1))
    with pytest.raises(ConfigError, match="out of order"):
        write_uncertainty(tmp_path, Calibrated(wrong))
