"""The recipe: ranges, YAML and back, and what may not go together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vivace.config import from_dict, from_yaml, to_dict, to_yaml
from vivace.data.config import AugmentConfig, DataConfig
from vivace.errors import ConfigError
from vivace.models.config import ModelConfig
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.recipes.attack import AttackConfig
from vivace.training.recipes.expected import seconds_for
from vivace.training.recipes.named import RECIPES, DataFacts, resolve_recipe
from vivace.training.recipes.privacy import PrivacyConfig
from vivace.training.recipes.recipe import DistillConfig, FinetuneConfig, HardExamplesConfig, LossConfig, Recipe
from vivace.training.result import TrainResult

FEW = DataFacts(num_images=100, num_classes=3, channels=3, side=40)

# no field has the value that it has by default
OTHER = Recipe(
    name="other",
    model=ModelConfig(
        name="timm/resnet18", pretrained=True, weights="w.pth", arguments={"drop_path_rate": 0.1}, size=96
    ),
    data=DataConfig(
        size=40,
        store_size=48,
        fit="pad",
        max_pixels=50_000_000,
        channels=1,
        pixels="uint16",
        mean=(0.4,),
        std=(0.3,),
        interpolation="lanczos",
        val_fraction=0.2,
        on_bad_image="skip",
        allow_leaks=True,
        multi_label=False,
        balanced_sampling=True,
    ),
    augment=AugmentConfig(
        random_resized_crop=(0.3, 0.9),
        translate=3,
        flip="alternating",
        trivial_augment=True,
        color_jitter=0.1,
        mix="prime",
        cutout=8,
        mixup=0.2,
        cutmix=1.0,
        own="mine.blur sha256:0",
        start_size=16,
        full_size_from=0.4,
    ),
    optimizer=OptimizerConfig(
        name="adamw",
        lr=1e-5,
        momentum=0.8,
        nesterov=True,
        weight_decay=5e-4,
        decay_norm_and_bias=True,
        bias_lr_factor=64.0,
        aux_lr=0.003,
        layer_decay=0.75,
        sam=0.05,
        sam_adaptive=True,
        options={"betas": [0.9, 0.95]},
    ),
    schedule=ScheduleConfig(
        name="step", warmup=0.1, cooldown=0.4, start=0.2, end=0.01, milestones=(0.3, 0.6, 0.9), gamma=0.2
    ),
    loss=LossConfig(label_smoothing=0.1, class_weights={"daisy": 2.0}, focal_gamma=2.0, alpha=0.2, beta=2.0, q=0.5),
    focus=HardExamplesConfig(start=0.1, end=0.9),
    distill=DistillConfig(teacher="other", weight=0.5, temperature=4.0, mirrored=True),
    finetune=FinetuneConfig(head=True, trains="last", cut="blocks.5.0", views=3, runtime="torch"),
    attack=AttackConfig(noise=1.0, step=1.25, probe_images=100, probe_steps=5, max_rollbacks=2),
    privacy=PrivacyConfig(delta=1e-6, trains="whole", epochs=3.0, clip_norm=0.5, views=4, center=0.1),
    epochs=7,
    batch_size=32,
    micro_batch_size=16,
    ema_decay=0.99,
    clip_grad_norm=2.0,
    early_stopping=3,
    monitor="macro_f1",
    head_epochs=2,
    freeze_after=(0.4, 0.8),
    precision="bf16",
    channels_last=False,
    compile=True,
    tile_gradients=True,
    winograd=True,
    fuse_norms=True,
    threads=3,
    validate_every=0.5,
    checkpoint_minutes=1.5,
    seed=42,
    calibrate=True,
    deterministic=True,
)


@pytest.mark.parametrize("recipe", [Recipe(), OTHER], ids=["default", "other"])
def test_a_recipe_goes_to_yaml_and_back_without_loss(recipe: Recipe, tmp_path: Path) -> None:
    assert from_yaml(Recipe, to_yaml(recipe)) == recipe
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    for source in (tmp_path / "recipe.yaml", str(tmp_path / "recipe.yaml")):
        assert resolve_recipe(source, FEW) == recipe


def test_the_other_recipe_differs_in_every_field() -> None:
    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in tree.items():
            nested = isinstance(value, dict) and key not in ("arguments", "options", "class_weights")
            found.update(flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
        return found

    default, other = flat(to_dict(Recipe())), flat(to_dict(OTHER))
    # a run starts from one kind of weights, the hardest images can't be told where images are mixed, nor what was
    # answered to one, a compiler does not see what is rounded, a solved head is not attacked, focal loss is a loss
    # of its own, and a private run takes few of the others
    assert {key for key in default if default[key] == other[key]} == {
        "model.start_from",
        "loss.self_distillation",
        "loss.name",
        "privacy.epsilon",
        "focus.share",
        "attack.eps",
        "fake_quant",
    }


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 32, 300])
@pytest.mark.parametrize("num_images", [500, 50_000])
def test_every_named_recipe_is_complete_and_goes_to_yaml_and_back(
    name: str, channels: int, side: int, num_images: int
) -> None:
    recipe = resolve_recipe(name, DataFacts(num_images=num_images, num_classes=10, channels=channels, side=side))
    # auto takes one of the others
    assert recipe.name == ("fast" if name == "auto" else name)
    assert from_yaml(Recipe, to_yaml(recipe)) == recipe
    if channels == 1 and side <= 64:
        # digits and letters are not themselves in a mirror
        assert recipe.augment.flip == "none"


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^`recipe` is unknown: got 'fats'\. Did you mean 'fast'.*or a YAML file\.$"):
        resolve_recipe("fats", FEW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is out of range: got 0. Give a value in [1, 100000]."),
        ({"batch_size": 1}, "batch_size is out of range: got 1. Give a value in [2, 1e+06]."),
        ({"micro_batch_size": 65}, "micro_batch_size is out of range: got 65. Give a value in [1, 64]."),
        ({"micro_batch_size": 0}, "micro_batch_size is out of range: got 0. Give a value in [1, 64]."),
        ({"ema_decay": 1.0}, "ema_decay is out of range: got 1.0. Give a value in (0, 1)."),
        ({"ema_decay": 0.0}, "ema_decay is out of range: got 0.0. Give a value in (0, 1)."),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm is out of range: got 0.0. Give a value in (0, inf)."),
        ({"clip_grad_norm": float("nan")}, "clip_grad_norm is out of range: got nan. Give a value in (0, inf)."),
        ({"early_stopping": 0}, "early_stopping is out of range: got 0. Give a value in [1, inf)."),
        ({"head_epochs": 11}, "head_epochs is out of range: got 11. Give a value in [0, 10]."),
        ({"precision": "fp8"}, "precision is unknown: got 'fp8'."),
        ({"channels_last": "on"}, "channels_last is unknown: got 'on'. Give True, False or 'auto'."),
        ({"compile": "on"}, "compile is unknown: got 'on'. Give True, False or 'auto'."),
        ({"threads": "all"}, "threads is unknown: got 'all'."),
        ({"threads": 0}, "threads is out of range: got 0. Give a value in [1, 4096]."),
        ({"validate_every": 0.0}, "validate_every is out of range: got 0.0. Give a value in (0, inf)."),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes is out of range: got 0.0. Give a value in (0, inf)."),
        ({"seed": -1}, "seed is out of range: got -1. Give a value in [0, 4.29497e+09)."),
        ({"seed": 2**32}, "seed is out of range: got 4294967296. Give a value in [0, 4.29497e+09)."),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(Recipe(), **changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"data": {"balanced_sampling": True}, "loss": {"class_weights": "balanced"}},
            "classes would be balanced twice: ",
        ),
        ({"head_epochs": 1}, "head_epochs needs a network that has learnt something: got head_epochs 1 "),
    ],
)
def test_what_does_not_go_together_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Recipe, tree)
    assert str(caught.value).startswith(message)


def test_a_head_may_be_trained_first_on_weights_of_either_kind() -> None:
    for model in (ModelConfig(name="timm/resnet18", pretrained=True), ModelConfig(weights="w.pth")):
        assert Recipe(model=model, head_epochs=1).head_epochs == 1


def test_a_result_has_the_keys_of_the_field() -> None:
    result = TrainResult(
        bundle=Path("runs/a/bundle"),
        run=Path("runs/a"),
        val_top1=0.9,
        test_top1=None,
        epochs=2.0,
        train_seconds=10.0,
        total_seconds=12.0,
        num_images_seen=100,
    )
    found = result.to_dict()
    keys = {"bundle", "run", "val_top1", "test_top1", "epochs", "train_seconds", "total_seconds", "num_images_seen"}
    assert keys <= found.keys()
    assert (found["bundle"], found["run"], found["test_top1"]) == ("runs/a/bundle", "runs/a", None)


@pytest.mark.parametrize(
    ("seconds", "widths"),
    [
        (19.0, [48, 96, 192]),
        (20.0, [64, 128, 256]),
        (99.0, [64, 128, 256]),
        (100.0, [64, 256, 256]),
        (None, [64, 256, 256]),
    ],
)
def test_fast_takes_the_network_that_its_time_allows(seconds: float | None, widths: list[int]) -> None:
    facts = DataFacts(num_images=50_000, num_classes=10, channels=3, side=32, seconds=seconds)
    recipe = resolve_recipe("fast", facts)
    assert recipe.model.arguments.get("widths") == widths
    assert recipe.augment.start_size == (None if widths[0] == 48 else 20)


@pytest.mark.parametrize(
    ("seconds", "widths"), [(44.0, [48, 96, 192]), (45.0, [64, 128, 256]), (223.0, [64, 256, 256])]
)
def test_on_a_slower_machine_fast_needs_more_time_for_a_larger_network(seconds: float, widths: list[int]) -> None:
    facts = DataFacts(num_images=50_000, num_classes=10, channels=3, side=32, seconds=seconds, speed=0.45)
    assert resolve_recipe("fast", facts).model.arguments["widths"] == widths


@pytest.mark.parametrize("speed", [1.0, 0.45, 0.31, 0.07])
@pytest.mark.parametrize("num_images", [45_000, 50_000, 73_257])
def test_the_budget_for_a_target_gives_the_network_that_is_expected_to_reach_it(speed: float, num_images: int) -> None:
    facts = DataFacts(num_images=num_images, num_classes=10, channels=3, side=32, speed=speed)
    for target, widths in ((0.7, [48, 96, 192]), (0.82, [64, 128, 256])):
        seconds = seconds_for(target, facts)
        recipe = resolve_recipe("fast", dataclasses.replace(facts, seconds=seconds))
        assert recipe.model.arguments["widths"] == widths


def test_with_few_images_fast_takes_the_smaller_network_and_150_steps() -> None:
    recipe = resolve_recipe("fast", DataFacts(num_images=600, num_classes=10, channels=1, side=8))
    assert recipe.model.arguments == {"stride": 2}
    assert recipe.epochs * -(-600 // recipe.batch_size) >= 150


@pytest.mark.parametrize(
    ("num_images", "side", "seconds", "larger"),
    [(50_000, 32, None, True), (50_000, 32, 1800.0, True), (50_000, 32, 1799.0, False), (5_000, 32, None, False)],
)
def test_accurate_takes_the_larger_network_where_there_are_images_and_time_for_it(
    num_images: int, side: int, seconds: float | None, larger: bool
) -> None:
    facts = DataFacts(num_images=num_images, num_classes=10, channels=3, side=side, seconds=seconds)
    recipe = resolve_recipe("accurate", facts)
    assert (recipe.model.arguments.get("widths") == [128, 384, 512]) is larger
    assert recipe.model.arguments.get("residual", False) is larger
    # the setting that the measured run had
    assert not larger or (recipe.epochs, recipe.augment.cutout, recipe.augment.translate) == (36, 12, 4)


def test_fast_focuses_and_freezes_where_its_network_is_large() -> None:
    many = resolve_recipe("fast", DataFacts(num_images=50_000, num_classes=10, channels=3, side=32))
    assert (many.focus.share, many.freeze_after, many.batch_size) == (0.5, (0.4,), 1000)
    few = resolve_recipe("fast", DataFacts(num_images=600, num_classes=10, channels=3, side=32))
    assert (few.focus.share, few.freeze_after) == (1.0, ())
    assert (many.loss.self_distillation, few.loss.self_distillation) == (0.5, 0.0)
    photos = resolve_recipe("fast", DataFacts(num_images=3_000, num_classes=5, channels=3, side=240))
    assert photos.loss.self_distillation == 0.5
    # what is remembered of each image and class would take more memory than the images
    classes = DataFacts(num_images=1_300_000, num_classes=1000, channels=3, side=32)
    assert resolve_recipe("fast", classes).loss.self_distillation == 0
