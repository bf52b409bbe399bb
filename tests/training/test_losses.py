"""The loss and its class weights, against torch, scikit-learn and plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from vivace.errors import ConfigError
from vivace.training.losses import class_weights, make_loss
from vivace.training.recipe import LossConfig

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
