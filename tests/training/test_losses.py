"""The loss and its class weights, against torch, scikit-learn and plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from vivace.errors import ConfigError
from vivace.training.recipes.recipe import LossConfig
from vivace.training.techniques.losses import class_weights, image_weights, make_loss

CPU = torch.device("cpu")
LABELS = np.array([0, 0, 0, 1, 1, 2])


def test_label_smoothing_is_cross_entropy_with_a_smoothed_target() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0])
    loss = make_loss(LossConfig(label_smoothing=0.3), LABELS, 3, CPU)(logits, labels)
    targets = 0.7 * nn.functional.one_hot(labels, 3) + 0.1
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_class_weights_are_scikit_learns() -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(class_weights(LABELS, 3).numpy(), expected, rtol=1e-6)


def test_a_class_without_images_gets_a_finite_weight() -> None:
    assert math.isfinite(float(class_weights(np.array([0, 0]), 2)[1]))


def test_balanced_weights_enter_the_loss() -> None:
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    logits[0, 0] = 1.0
    loss = make_loss(LossConfig(class_weights="balanced"), LABELS, 3, CPU)(logits, labels)
    # counts 3, 2, 1 of 6 images: weights 6 / (3 · 3) and 6 / (3 · 1)
    expected = ((math.log(math.e + 2) - 1) * 2 / 3 + math.log(3) * 2) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_hard_labels_weigh_as_the_same_targets_of_mixed_images(smoothing: float) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0])
    loss = make_loss(LossConfig(label_smoothing=smoothing, class_weights="balanced"), LABELS, 3, CPU)
    torch.testing.assert_close(loss(logits, labels), loss(logits, nn.functional.one_hot(labels, 3).float()))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("ratio", [1, 3, 30, 1000])
def test_where_classes_can_be_told_apart_weights_do_not_move_the_best_answer(
    ratio: int, num_classes: int, smoothing: float, mixed: bool
) -> None:
    # one common class and rare ones; all images of a class look alike, so that each has logits of its own
    counts = np.array([ratio * 2] + [2] * (num_classes - 1))
    labels_N = np.repeat(np.arange(num_classes), counts)
    loss = make_loss(LossConfig(label_smoothing=smoothing, class_weights="balanced"), labels_N, num_classes, CPU)
    best_KK = (1 - smoothing) * torch.eye(num_classes) + smoothing / num_classes
    logits_KK = best_KK.clamp_min(1e-30).log().requires_grad_()
    targets: torch.Tensor = torch.from_numpy(labels_N)
    loss(logits_KK[labels_N], nn.functional.one_hot(targets, num_classes).float() if mixed else targets).backward()
    assert logits_KK.grad is not None
    # each class has 1 / K of the whole weight: a gradient of rounding errors alone is where the loss is lowest
    torch.testing.assert_close(logits_KK.grad, torch.zeros_like(logits_KK), rtol=0, atol=2e-6 / num_classes)
    # … and what the classes pull with is balanced
    logits_KK.grad = None
    off_KK = logits_KK.detach().roll(1, 1).requires_grad_()
    loss(off_KK[labels_N], targets).backward()
    pulls_K = off_KK.grad.abs().sum(1)  # type: ignore[union-attr]
    torch.testing.assert_close(pulls_K, pulls_K[:1].expand(num_classes), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [1, 30, 1000])
def test_images_that_can_not_be_told_apart_are_answered_with_all_classes_alike(ratio: int) -> None:
    labels_N = np.repeat([0, 1], [ratio, 1])
    loss = make_loss(LossConfig(label_smoothing=0.2, class_weights="balanced"), labels_N, 2, CPU)
    logits_K = torch.zeros(2, requires_grad=True)
    loss(logits_K.expand(len(labels_N), 2), torch.from_numpy(labels_N)).backward()
    assert logits_K.grad is not None
    torch.testing.assert_close(logits_K.grad, torch.zeros(2), rtol=0, atol=1e-5)


def test_a_mixed_image_weighs_as_much_as_its_classes_on_average() -> None:
    mix = torch.tensor([[0.25, 0.0, 0.75]])
    weights = class_weights(LABELS, 3)
    assert image_weights(weights, mix).tolist() == pytest.approx([0.25 * 2 / 3 + 0.75 * 2])
    logits = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    loss = make_loss(LossConfig(label_smoothing=0.3, class_weights="balanced"), LABELS, 3, CPU)(logits, mix)
    expected = -((0.7 * mix + 0.1) * logits.log_softmax(1)).sum() * (0.25 * 2 / 3 + 0.75 * 2)
    torch.testing.assert_close(loss, expected)


def test_micro_batches_add_up_to_the_batch() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(LABELS)
    loss = make_loss(LossConfig(class_weights="balanced"), LABELS, 3, CPU)
    parts = loss(logits[:4], labels[:4]) * 4 / 6 + loss(logits[4:], labels[4:]) * 2 / 6
    torch.testing.assert_close(parts, loss(logits, labels))


def test_without_options_it_is_the_cross_entropy_of_torch() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    loss = make_loss(LossConfig(), LABELS, 3, CPU)(logits, labels)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))


def test_soft_targets_of_mixed_images_are_taken() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    loss = make_loss(LossConfig(), LABELS, 3, CPU)(logits, torch.tensor([[0.25, 0.0, 0.75]]))
    expected = -(0.25 * logits.log_softmax(1)[0, 0] + 0.75 * logits.log_softmax(1)[0, 2])
    torch.testing.assert_close(loss, expected)


def test_the_loss_is_computed_in_fp32() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([0, 1, 2, 0])
    loss = make_loss(LossConfig(), LABELS, 3, CPU)(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.float(), labels))


def test_ranges_are_refused_with_the_range() -> None:
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing.*got 1\.0"):
        LossConfig(label_smoothing=1.0)
    with pytest.raises(ConfigError, match=r"loss\.class_weights.*got 'equal'"):
        LossConfig(class_weights="equal")  # type: ignore[arg-type]
