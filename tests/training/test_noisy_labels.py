"""Losses for wrong labels, against their closed forms and limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vivace.config import override
from vivace.errors import ConfigError
from vivace.training.recipes.datafacts import DataFacts
from vivace.training.recipes.implied import with_implied
from vivace.training.recipes.named import RECIPES
from vivace.training.recipes.recipe import LossConfig
from vivace.training.result import TrainResult
from vivace.training.techniques.losses import generalized_losses, make_loss, symmetric_losses


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """logits_BK, labels_B and probs_BK, whose logarithms are the logits."""
    draw = torch.Generator().manual_seed(0)
    probs = torch.rand(12, 4, generator=draw).add_(0.05)
    probs /= probs.sum(1, keepdim=True)
    return probs.log() + 3, torch.randint(0, 4, (12,), generator=draw), probs


def test_symmetric_cross_entropy_of_a_label() -> None:
    logits, labels, probs = batch()
    p = probs.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(symmetric_losses(logits, labels, 0.1, 2.0), -0.1 * p.log() + 2.0 * 6.0 * (1 - p))


def test_generalised_cross_entropy_of_a_label() -> None:
    logits, labels, probs = batch()
    p = probs.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(generalized_losses(logits, labels, 0.7), (1 - p**0.7) / 0.7)
    # half of the mean absolute error, |onehot - p| summed over classes
    error = (functional.one_hot(labels, 4) - probs).abs().sum(1)
    torch.testing.assert_close(generalized_losses(logits, labels, 1.0), error / 2)
    plain = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(generalized_losses(logits, labels, 1e-4), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["symmetric", "generalized"])
def test_one_hot_targets_are_labels(name: str) -> None:
    logits, labels, _ = batch()
    loss = make_loss(LossConfig(name=name))  # type: ignore[arg-type]
    torch.testing.assert_close(loss(logits, functional.one_hot(labels, 4).float()), loss(logits, labels))


def test_a_mixed_image_has_the_mean_of_two_generalised_losses() -> None:
    logits, labels, _ = batch()
    others = (labels + 1) % 4
    mixed = 0.3 * functional.one_hot(labels, 4) + 0.7 * functional.one_hot(others, 4)
    expected = 0.3 * generalized_losses(logits, labels, 0.7) + 0.7 * generalized_losses(logits, others, 0.7)
    torch.testing.assert_close(generalized_losses(logits, mixed, 0.7), expected)


def test_no_image_has_a_loss_beyond_a_bound_but_by_cross_entropy() -> None:
    logits, labels = torch.tensor([[40.0, -40.0]]), torch.tensor([1])
    assert float(functional.cross_entropy(logits, labels)) == pytest.approx(80)
    assert float(generalized_losses(logits, labels, 0.7)[0]) == pytest.approx(1 / 0.7)
    assert float(symmetric_losses(logits, labels, 0.0, 1.0)[0]) == pytest.approx(6)


@pytest.mark.parametrize("value", [-90.0, 0.0, 90.0])
def test_gradients_are_finite_where_probabilities_are_0_or_1(value: float) -> None:
    for config in (LossConfig(name="symmetric"), LossConfig(name="generalized", q=0.1)):
        logits = torch.tensor([[value, 0.0]], requires_grad=True)
        make_loss(config)(logits, torch.tensor([0])).backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())


def test_class_weights_and_smoothing_apply() -> None:
    logits, labels, _ = batch()
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0])
    config = LossConfig(name="generalized", label_smoothing=0.2)
    per_image = generalized_losses(logits, labels, 0.7, label_smoothing=0.2)
    torch.testing.assert_close(make_loss(config, weights)(logits, labels), (per_image * weights[labels]).mean())
    all_classes = torch.stack([generalized_losses(logits, torch.full((12,), k), 0.7) for k in range(4)]).mean(0)
    torch.testing.assert_close(per_image, 0.8 * generalized_losses(logits, labels, 0.7) + 0.2 * all_classes)
    smoothed = symmetric_losses(logits, labels, 1.0, 0.0, label_smoothing=0.2)
    plain = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(smoothed, plain)


def test_a_recipe_drops_what_stresses_wrong_labels() -> None:
    base = RECIPES["fast"](DataFacts(num_images=50_000, num_classes=10, channels=3, side=32))
    assert (base.focus.share, base.loss.label_smoothing) == (0.5, 0.2)
    recipe = override(base, with_implied(base, {"loss.name": "symmetric"}))
    assert (recipe.focus.share, recipe.loss.label_smoothing, recipe.loss.self_distillation) == (1.0, 0.0, 0.0)
    kept = override(base, with_implied(base, {"loss.name": "symmetric", "loss.label_smoothing": 0.1}))
    assert kept.loss.label_smoothing == 0.1


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss.name is unknown: got 'symetric'\. Did you mean 'symmetric'"):
        LossConfig(name="symetric")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"loss.focal_gamma can't go with loss.name=generalized .*got 2\. Set one"):
        LossConfig(name="generalized", focal_gamma=2)
    with pytest.raises(ConfigError, match=r"loss.q is out of range: got 0\. Give a value in \(0, 1\]"):
        LossConfig(name="generalized", q=0)


def test_a_run_takes_the_loss(run_tiny: Callable[..., TrainResult]) -> None:
    result = run_tiny(changes={"loss.name": "generalized", "epochs": 1})
    assert math.isfinite(result.val_top1)
