"""Test-time augmentation: which views are asked for, and how their answers are averaged."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.errors import ConfigError
from vivace.evaluation.tta import VIEWS, averaged_probs, least_sure


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    powers = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def logits(images_NHWC: np.ndarray) -> np.ndarray:
    """Different for every view: sums over a corner, a row and a column."""
    x = images_NHWC.astype(float)
    return np.stack([x[:, :3, :2].mean((1, 2, 3)), x[:, 2].mean((1, 2)), x[:, :, 4].mean((1, 2))], 1) / 50


@pytest.mark.parametrize("tta", ["mirror", "shift"])
def test_the_answer_is_that_of_averaged_logits(images: np.ndarray, tta: str) -> None:
    def shifted(step: int) -> np.ndarray:
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return padded[:, 1 + step : 9 + step, 1 + step : 7 + step]

    def mirrored(pixels: np.ndarray) -> np.ndarray:
        return (logits(pixels) + logits(pixels[:, :, ::-1])) / 2

    expected = mirrored(images)
    if tta == "shift":
        expected = expected / 2 + (mirrored(shifted(-1)) + mirrored(shifted(1))) / 4
    answer = averaged_probs(lambda pixels: softmax(logits(pixels)), images, tta)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, softmax(expected), rtol=1e-4)


def test_shares_add_up_and_none_asks_once(images: np.ndarray) -> None:
    for views in VIEWS.values():
        assert sum(share for share, _, _ in views) == pytest.approx(1.0)
    asked: list[np.ndarray] = []

    def probs(pixels: np.ndarray) -> np.ndarray:
        asked.append(pixels)
        return softmax(logits(pixels))

    averaged_probs(probs, images, "none")
    assert len(asked) == 1
    assert asked[0] is images
    averaged_probs(probs, images, "shift")
    assert len(asked) == 7
    assert all(pixels.shape == images.shape and pixels.flags["C_CONTIGUOUS"] for pixels in asked)


def test_known_answers_are_not_asked_for_again(images: np.ndarray) -> None:
    asked: list[np.ndarray] = []

    def probs(pixels: np.ndarray) -> np.ndarray:
        asked.append(pixels)
        return softmax(logits(pixels))

    plain = softmax(logits(images))
    kept = plain.copy()
    answer = averaged_probs(probs, images, "shift", plain_NK=plain)
    assert len(asked) == 5
    np.testing.assert_array_equal(plain, kept)
    np.testing.assert_array_equal(answer, averaged_probs(probs, images, "shift"))


def test_the_least_sure_have_the_two_best_answers_closest() -> None:
    probs = np.array([[0.9, 0.1, 0.0], [0.4, 0.2, 0.4], [0.2, 0.5, 0.3], [0.05, 0.0, 0.95]], dtype=np.float32)
    assert least_sure(probs, 0.25).tolist() == [1]
    assert least_sure(probs, 0.5).tolist() == [1, 2]
    # a share is rounded up, and ties keep their order
    assert least_sure(probs, 0.51).tolist() == [0, 1, 2]
    assert least_sure(probs, 1.0).tolist() == [0, 1, 2, 3]
    assert least_sure(np.ones((3, 1), dtype=np.float32), 0.3).tolist() == [0]


def test_a_probability_of_zero_is_no_trouble(images: np.ndarray) -> None:
    certain = np.tile(np.array([[1.0, 0.0, 0.0]], dtype=np.float32), (5, 1))
    answer = averaged_probs(lambda pixels: certain, images, "mirror")
    np.testing.assert_allclose(answer, certain, atol=1e-6)


def test_an_unknown_name_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="tta is unknown: got 'flip'"):
        averaged_probs(lambda pixels: pixels, images, "flip")
