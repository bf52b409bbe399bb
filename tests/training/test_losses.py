"""Cross-entropy, focal loss and class weights, against torch, torchvision, scikit-learn and plain computations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from vivace.config import override, to_yaml
from vivace.errors import ConfigError
from vivace.training.recipes.balance import balance_lines
from vivace.training.recipes.recipe import LossConfig, Recipe
from vivace.training.techniques.losses import (
    class_weights,
    focal_losses,
    image_weights,
    make_loss,
    own_weights,
    recipe_weights,
)

CPU = torch.device("cpu")
LABELS = np.array([0, 0, 0, 1, 1, 2])
FLOWERS = ("daisy", "rose", "tulip")


def loss_of(
    config: LossConfig, labels_N: np.ndarray = LABELS, num_classes: int = 3
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of a run whose training images have these labels."""
    classes = FLOWERS if num_classes == 3 else [str(number) for number in range(num_classes)]
    return make_loss(config, recipe_weights(config, labels_N, classes, CPU))


def test_label_smoothing_is_cross_entropy_with_a_smoothed_target() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0])
    loss = loss_of(LossConfig(label_smoothing=0.3))(logits, labels)
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
    loss = loss_of(LossConfig(class_weights="balanced"))(logits, labels)
    # counts 3, 2, 1 of 6 images: weights 6 / (3 · 3) and 6 / (3 · 1)
    expected = ((math.log(math.e + 2) - 1) * 2 / 3 + math.log(3) * 2) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_hard_labels_weigh_as_the_same_targets_of_mixed_images(smoothing: float) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0])
    loss = loss_of(LossConfig(label_smoothing=smoothing, class_weights="balanced"))
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
    loss = loss_of(LossConfig(label_smoothing=smoothing, class_weights="balanced"), labels_N, num_classes)
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
    loss = loss_of(LossConfig(label_smoothing=0.2, class_weights="balanced"), labels_N, 2)
    logits_K = torch.zeros(2, requires_grad=True)
    loss(logits_K.expand(len(labels_N), 2), torch.from_numpy(labels_N)).backward()
    assert logits_K.grad is not None
    torch.testing.assert_close(logits_K.grad, torch.zeros(2), rtol=0, atol=1e-5)


def test_a_mixed_image_weighs_as_much_as_its_classes_on_average() -> None:
    mix = torch.tensor([[0.25, 0.0, 0.75]])
    weights = class_weights(LABELS, 3)
    assert image_weights(weights, mix).tolist() == pytest.approx([0.25 * 2 / 3 + 0.75 * 2])
    logits = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    loss = loss_of(LossConfig(label_smoothing=0.3, class_weights="balanced"))(logits, mix)
    expected = -((0.7 * mix + 0.1) * logits.log_softmax(1)).sum() * (0.25 * 2 / 3 + 0.75 * 2)
    torch.testing.assert_close(loss, expected)


def test_micro_batches_add_up_to_the_batch() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(LABELS)
    loss = loss_of(LossConfig(class_weights="balanced"))
    parts = loss(logits[:4], labels[:4]) * 4 / 6 + loss(logits[4:], labels[4:]) * 2 / 6
    torch.testing.assert_close(parts, loss(logits, labels))


def test_without_options_it_is_the_cross_entropy_of_torch() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    loss = loss_of(LossConfig())(logits, labels)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))


def test_soft_targets_of_mixed_images_are_taken() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    loss = loss_of(LossConfig())(logits, torch.tensor([[0.25, 0.0, 0.75]]))
    expected = -(0.25 * logits.log_softmax(1)[0, 0] + 0.75 * logits.log_softmax(1)[0, 2])
    torch.testing.assert_close(loss, expected)


def test_the_loss_is_computed_in_fp32() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([0, 1, 2, 0])
    loss = loss_of(LossConfig())(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.float(), labels))


def test_ranges_are_refused_with_the_range() -> None:
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing.*got 1\.0"):
        LossConfig(label_smoothing=1.0)
    with pytest.raises(ConfigError, match=r"loss\.class_weights.*got 'equal'"):
        LossConfig(class_weights="equal")  # type: ignore[arg-type]


def test_weights_by_name_keep_their_ratios_and_have_mean_1_over_the_images() -> None:
    weights = own_weights({"daisy": 2.0, "tulip": 6.0}, LABELS, FLOWERS)
    # the rose has none: 1
    torch.testing.assert_close(weights / weights[1], torch.tensor([2.0, 1.0, 6.0]))
    assert float(weights[torch.from_numpy(LABELS)].mean()) == pytest.approx(1)
    # weights that are all alike change nothing
    torch.testing.assert_close(own_weights(dict.fromkeys(FLOWERS, 7.0), LABELS, FLOWERS), torch.ones(3))


def test_a_class_of_weight_0_is_not_learnt_from() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss_of(LossConfig(class_weights={"daisy": 0.0}))(logits, torch.from_numpy(LABELS)).backward()
    assert logits.grad is not None
    assert not logits.grad[:3].any()
    assert logits.grad[3:].abs().min() > 0


def test_weights_of_no_class_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"got 'dasy'\. Did you mean 'daisy'\? Known: daisy, rose, tulip\."):
        own_weights({"dasy": 2.0}, LABELS, FLOWERS)
    with pytest.raises(ConfigError, match=r"is 0 for all training images"):
        own_weights(dict.fromkeys(FLOWERS, 0.0), LABELS, FLOWERS)
    # the only images that there are
    with pytest.raises(ConfigError, match=r"is 0 for all training images"):
        own_weights({"daisy": 0.0}, np.array([0, 0]), FLOWERS)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e7, True, "2", None])
def test_what_is_no_weight_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"loss\.class_weights.*got"):
        LossConfig(class_weights={"daisy": value})  # type: ignore[dict-item]


def test_weights_are_given_by_name_in_yaml_and_as_a_mapping() -> None:
    recipe = override(Recipe(), {"loss.class_weights": "{daisy: 2.0, rose: 1e1}"})
    assert recipe.loss.class_weights == {"daisy": 2.0, "rose": 10.0}
    assert override(Recipe(), {"loss.class_weights": {"daisy": 2, "rose": 10}}) == recipe
    assert "daisy: 2.0" in to_yaml(recipe)
    # names of classes are text, whatever YAML takes them for elsewhere
    assert override(Recipe(), {"loss.class_weights": "{0: 2, 007: 3, yes: 4}"}).loss.class_weights == {
        "0": 2.0,
        "007": 3.0,
        "yes": 4.0,
    }
    for value, message in [
        ("{daisy: -1}", r"loss\.class_weights\.daisy is out of range: got -1"),
        ("{daisy: heavy}", r"loss\.class_weights\.daisy has the wrong type: got 'heavy'"),
        ("{daisy: .nan}", r"it has the number nan"),
        ("{}", r"loss\.class_weights is empty"),
        ("balancd", r"loss\.class_weights is unknown: got 'balancd'\. Did you mean 'balanced'"),
        ("[1, 2]", r"loss\.class_weights is unknown: got \[1, 2\]"),
    ]:
        with pytest.raises(ConfigError, match=message):
            override(Recipe(), {"loss.class_weights": value})


def test_very_unequal_classes_are_reported_and_balanced_ones_are_not() -> None:
    labels = np.repeat([0, 1, 2], [1200, 120, 500])
    (line,) = balance_lines(Recipe(), labels, FLOWERS)
    assert "daisy has 1,200 training images, rose 120" in line
    assert "`loss.class_weights='balanced'`" in line
    assert balance_lines(Recipe(), np.repeat([0, 1, 2], [1199, 120, 500]), FLOWERS) == []
    assert balance_lines(override(Recipe(), {"loss.class_weights": "balanced"}), labels, FLOWERS) == []
    assert balance_lines(override(Recipe(), {"data.balanced_sampling": True}), labels, FLOWERS) == []
    own = override(Recipe(), {"loss.class_weights": {"rose": 5}})
    assert balance_lines(own, labels, FLOWERS) == ["class weights: rose 5, the other 2: 1"]


def test_focal_loss_has_the_values_of_its_definition() -> None:
    # two classes of logits 0 and ln 9: p = 0.9, and -(1 - 0.9)² · ln 0.9
    logits = torch.tensor([[math.log(9.0), 0.0]], dtype=torch.float64)
    assert float(focal_losses(logits, torch.tensor([0]), 2.0)) == pytest.approx(0.01 * -math.log(0.9), rel=1e-5)
    assert float(focal_losses(logits, torch.tensor([1]), 2.0)) == pytest.approx(0.81 * -math.log(0.1), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_of_two_classes_is_that_of_torchvision(gamma: float) -> None:
    ops = pytest.importorskip("torchvision.ops")
    x = torch.linspace(-6, 6, 25)
    labels = torch.arange(25) % 2
    expected = ops.sigmoid_focal_loss(x, labels.float(), alpha=-1, gamma=gamma)
    torch.testing.assert_close(focal_losses(torch.stack([torch.zeros(25), x], 1), labels, gamma), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", {"daisy": 3.0}])
@pytest.mark.parametrize("mixed", [False, True])
def test_focal_loss_with_gamma_0_is_cross_entropy(
    smoothing: float, weights: str | dict[str, float], mixed: bool
) -> None:
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    labels: torch.Tensor = torch.arange(9) % 3
    targets = torch.softmax(torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), 1) if mixed else labels
    config = LossConfig(label_smoothing=smoothing, class_weights=weights)  # type: ignore[arg-type]
    plain = loss_of(config)(logits, targets)
    weights_K = recipe_weights(config, LABELS, FLOWERS, CPU)
    focal_B = focal_losses(logits, targets, 0.0, label_smoothing=smoothing)
    if weights_K is not None:
        focal_B = focal_B * image_weights(weights_K, targets)
    torch.testing.assert_close(focal_B.mean(), plain, rtol=1e-6, atol=1e-6)


def test_the_focal_loss_of_a_mixed_image_is_the_mean_of_its_labels() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    mixed = 0.3 * nn.functional.one_hot(first, 3) + 0.7 * nn.functional.one_hot(second, 3)
    config = LossConfig(focal_gamma=2.0, label_smoothing=0.1)
    loss = loss_of(config)
    torch.testing.assert_close(loss(logits, mixed), 0.3 * loss(logits, first) + 0.7 * loss(logits, second))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_a_perfect_answer_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss_of(LossConfig(focal_gamma=gamma), np.array([0, 1]), 2)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_focal_loss_is_refused_with_what_it_would_distort() -> None:
    with pytest.raises(ConfigError, match=r"focal_gamma can't go with loss\.self_distillation"):
        LossConfig(focal_gamma=2.0, self_distillation=0.5)
    with pytest.raises(ConfigError, match=r"loss\.focal_gamma is out of range: got -1"):
        LossConfig(focal_gamma=-1.0)
