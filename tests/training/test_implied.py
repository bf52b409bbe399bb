"""What follows from another network, optimizer or mixed images, and what the user says comes last."""

from __future__ import annotations

import pytest

from vivace.config import override
from vivace.errors import ConfigError
from vivace.training.recipes.implied import USUAL, with_implied
from vivace.training.recipes.named import RECIPES, DataFacts
from vivace.training.recipes.recipe import Recipe

SMALL = DataFacts(num_images=50_000, num_classes=10, channels=3, side=32)


def changed(name: str, **changes: object) -> Recipe:
    recipe = RECIPES[name](SMALL)
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return override(recipe, with_implied(recipe, dotted))


def test_without_a_change_of_either_nothing_follows() -> None:
    assert changed("fast", epochs=3).optimizer == RECIPES["fast"](SMALL).optimizer
    assert changed("fast", model__name="fast_cnn").model == RECIPES["fast"](SMALL).model


def test_another_network_has_no_arguments_of_the_first_and_rates_that_suit_any() -> None:
    recipe = changed("fast", model__name="timm/vit_tiny_patch16_224")
    assert recipe.model.arguments == {}
    assert (recipe.optimizer.lr, recipe.optimizer.options["aux"]) == (0.02, "adamw")
    # the rates of the article and of fine-tuning are no network's own
    assert changed("article", model__name="timm/resnet18").optimizer == RECIPES["article"](SMALL).optimizer
    assert changed("finetune", model__name="timm/resnet50").optimizer == RECIPES["finetune"](SMALL).optimizer


@pytest.mark.parametrize("name", [*sorted(set(USUAL) - {"muon"}), "lion"])
def test_another_optimizer_starts_from_its_usual_rate(name: str) -> None:
    config = changed("fast", optimizer__name=name).optimizer
    assert config.lr == USUAL.get(name, {"lr": 1e-3})["lr"]
    assert config.aux_lr is None
    assert config.options == {}
    assert config.nesterov == (name == "sgd")


@pytest.mark.parametrize(
    ("changes", "focus", "own"),
    [
        ({"augment__mixup": 0.2}, 1.0, 0.0),
        ({"augment__cutmix": 1.0}, 1.0, 0.0),
        ({"data__balanced_sampling": True}, 1.0, 0.5),
        ({"augment__mixup": 0.0, "data__balanced_sampling": False}, 0.5, 0.5),
    ],
)
def test_what_knows_an_image_is_left_out_where_images_are_mixed_or_drawn(
    changes: dict[str, object], focus: float, own: float
) -> None:
    recipe = changed("fast", **changes)
    assert (recipe.focus.share, recipe.loss.self_distillation) == (focus, own)


def test_what_is_said_comes_last() -> None:
    with pytest.raises(ConfigError, match=r"focus.share can't go with"):
        changed("fast", augment__mixup=0.2, focus__share=0.5)
    config = changed("fast", optimizer__name="adamw", optimizer__lr=0.5, optimizer__weight_decay=0.1).optimizer
    assert (config.lr, config.weight_decay) == (0.5, 0.1)
    recipe = changed("fast", model__name="timm/resnet18", optimizer__lr=0.5, model__arguments={"drop_rate": 0.1})
    assert (recipe.optimizer.lr, recipe.model.arguments) == (0.5, {"drop_rate": 0.1})


def test_gradients_of_weighted_classes_are_clipped_unless_a_norm_is_given() -> None:
    assert changed("fast", loss__class_weights="balanced").clip_grad_norm == 2.0
    assert changed("fast").clip_grad_norm is None
    assert changed("fast", loss__class_weights="balanced", clip_grad_norm=5.0).clip_grad_norm == 5.0
    # a recipe that clips keeps its own norm
    assert changed("finetune", loss__class_weights="balanced").clip_grad_norm == changed("finetune").clip_grad_norm


def test_focal_loss_leaves_out_what_it_does_not_go_with_unless_it_is_set() -> None:
    recipe = changed("fast", loss__focal_gamma=2.0)
    assert (recipe.loss.label_smoothing, recipe.loss.self_distillation, recipe.focus.share) == (0.0, 0.0, 1.0)
    assert changed("fast", loss__focal_gamma=2.0, loss__label_smoothing=0.05).loss.label_smoothing == 0.05
    assert changed("fast", loss__focal_gamma=0.0).loss == changed("fast").loss


def test_gradients_of_classes_with_weights_of_their_own_are_clipped_too() -> None:
    assert changed("fast", loss__class_weights={"daisy": 2.0}).clip_grad_norm == 2.0
    assert changed("fast", loss__class_weights="none").clip_grad_norm is None
