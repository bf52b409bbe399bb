"""Losses, class weights and validation, against plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from vivace.errors import ConfigError
from vivace.models.normalize import Normalize
from vivace.training.losses import class_weights, make_loss
from vivace.training.recipe import LossConfig
from vivace.training.step import Setup
from vivace.training.validation import central_view, split_logits

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
    weights = class_weights(LABELS, 3)
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, (each * weights[labels]).sum() / weights[labels].sum())


def test_soft_targets_of_mixed_images_are_taken() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    loss = make_loss(LossConfig(), LABELS, 3, CPU)(logits, torch.tensor([[0.25, 0.0, 0.75]]))
    expected = -(0.25 * logits.log_softmax(1)[0, 0] + 0.75 * logits.log_softmax(1)[0, 2])
    torch.testing.assert_close(loss, expected)


def test_the_loss_is_computed_in_fp32() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = make_loss(LossConfig(), LABELS, 3, CPU)(logits, torch.tensor([0, 1, 2, 0]))
    assert loss.dtype == torch.float32


def test_ranges_are_refused_with_the_range() -> None:
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing.*got 1\.0"):
        LossConfig(label_smoothing=1.0)
    with pytest.raises(ConfigError, match=r"loss\.class_weights.*got 'equal'"):
        LossConfig(class_weights="equal")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 7, 10])
def test_validation_is_the_plain_loop_over_images_the_partial_batch_included(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 10, 10, 3), generator=generator, dtype=torch.uint8).numpy()
    labels = np.arange(12) % 4
    indices = np.arange(12)[::-1][:count].copy()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Dropout(0.5)).train()
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    logits, found = split_logits(
        model, images, labels, size=8, normalize=normalize, setup=Setup(), device=CPU, batch_size=4, indices=indices
    )
    assert found.tolist() == labels[indices].tolist()
    model.eval()
    for row, index in enumerate(indices):
        pixels = torch.from_numpy(images[index, 1:9, 1:9]).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor((0.4, 0.5, 0.6)).view(3, 1, 1), torch.tensor((0.2, 0.25, 0.3)).view(3, 1, 1)
        expected = model(((pixels - mean) / std)[None])
        torch.testing.assert_close(logits[row], expected[0], rtol=1e-4, atol=1e-5)


def test_the_central_view_of_an_image_of_the_right_size_is_the_image() -> None:
    images = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6)
    assert torch.equal(central_view(images, 6), images)
    assert torch.equal(central_view(images, 4), images[..., 1:5, 1:5])
