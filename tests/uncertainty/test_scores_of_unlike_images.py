"""Scores of images that are unlike the known ones, and images of other kinds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from vivace.statistics.detection import auroc
from vivace.uncertainty.generated import generated_images
from vivace.uncertainty.scores import Answers, energy, generalised_entropy, neighbour_distance, ood_score, own_rows


def test_scores_are_those_of_the_papers() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (20, 7))
    probs = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    assert energy(logits) == pytest.approx(-logsumexp(logits, axis=1))
    assert generalised_entropy(probs) == pytest.approx((probs**0.1 * (1 - probs) ** 0.1).sum(1))
    # of many classes the 100 likeliest
    many = rng.dirichlet(np.ones(300), 5)
    expected = [sum((p * (1 - p)) ** 0.1 for p in sorted(row)[-100:]) for row in many]
    assert generalised_entropy(many) == pytest.approx(expected)


def test_the_distance_is_the_one_to_the_kth_neighbour_but_not_to_itself() -> None:
    rng = np.random.default_rng(0)
    known, others = rng.normal(size=(250, 8)), rng.normal(size=(5, 8))
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (known, others)]
    apart = np.linalg.norm(unit[1][:, None] - unit[0][None], axis=2)
    # 250 / 100: the second
    assert neighbour_distance(others, known) == pytest.approx(np.sort(apart, axis=1)[:, 1], abs=1e-3)
    own = neighbour_distance(known[:5], known, own_N=np.arange(5))
    apart = np.linalg.norm(unit[0][:5, None] - unit[0][None], axis=2)
    assert own == pytest.approx(np.sort(apart, axis=1)[:, 2], abs=1e-3)


def test_images_that_may_be_known_are_not_compared_with_themselves() -> None:
    known = np.random.default_rng(0).normal(size=(250, 64)).astype(np.float32)
    new = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    # stored in 16 bits, and of any length
    stored = known.astype(np.float16).astype(np.float32)
    mixed = Answers(np.full((10, 2), 0.5, np.float32), features_ND=np.concatenate([3 * known[:5], new]))
    own_N = np.array([0, 1, 2, 3, 4, -1, -1, -1, -1, -1])
    assert own_rows(mixed.features_ND, stored).tolist() == own_N.tolist()
    apart = ood_score("neighbours", mixed, stored, may_be_known=True)
    assert apart == pytest.approx(neighbour_distance(mixed.features_ND, stored, own_N=own_N), abs=1e-6)
    together = ood_score("neighbours", mixed, stored)
    assert (apart[:5] > together[:5]).all()
    assert apart[5:] == pytest.approx(together[5:], abs=1e-9)


def test_a_score_that_needs_what_is_not_there_is_none() -> None:
    answers = Answers(np.full((2, 4), 0.25, np.float32))
    assert ood_score("entropy", answers, None) is not None
    assert ood_score("energy", answers, None) is None
    assert ood_score("neighbours", answers, np.ones((3, 8))) is None
    other = Answers(answers.probs_NK, features_ND=np.ones((2, 5), np.float32))
    assert ood_score("neighbours", other, np.ones((3, 8))) is None


@pytest.mark.parametrize(("dtype", "channels", "size"), [("uint8", 3, 32), ("uint16", 1, 3), ("float32", 5, 30)])
def test_generated_images_have_the_type_and_range_of_the_known_ones(dtype: str, channels: int, size: int) -> None:
    scale = {"uint8": 255, "uint16": 60_000, "float32": 2.5}[dtype]
    known = (np.random.default_rng(0).random((80, size, size, channels)) * scale).astype(dtype)
    kinds = generated_images(known)
    assert list(kinds) == ["uniform noise", "normal noise", "shuffled patches", "flat colours"]
    for images in kinds.values():
        assert (images.dtype, images.shape) == (known.dtype, (64, size, size, channels))
        assert known.min() <= images.min() <= images.max() <= known.max()
        assert not np.array_equal(images, known[:64])
    again = generated_images(known)
    assert all(np.array_equal(images, again[name]) for name, images in kinds.items())
    shuffled = kinds["shuffled patches"]
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(known[:64], axis=None))
    assert auroc(kinds["flat colours"].std((1, 2)).mean(1), known.std((1, 2)).mean(1)) == 1
