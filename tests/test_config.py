"""Configuration: to YAML and back, strictly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vivace.config import check_range, from_dict, from_yaml, override, to_dict, to_yaml
from vivace.errors import ConfigError, nearest
from vivace.training.recipes.named import RECIPES, DataFacts
from vivace.training.recipes.recipe import Recipe

FACTS = [
    DataFacts(num_images=50_000, num_classes=10, channels=3, side=32),
    DataFacts(num_images=1_400, num_classes=10, channels=1, side=8),
    DataFacts(num_images=3_000, num_classes=5, channels=3, side=190),
]


@pytest.mark.parametrize("facts", FACTS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml(name: str, facts: DataFacts) -> None:
    recipe = RECIPES[name](facts)
    assert from_yaml(Recipe, to_yaml(recipe)) == recipe
    # auto takes one of the others
    assert recipe.name == name or name == "auto"


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ({"precison": "bf16"}, "unknown key 'precison'. Did you mean 'precision'?"),
        ({"optimizer.lrr": "1"}, "unknown key 'optimizer.lrr'. Did you mean 'lr'?"),
        ({"optimiser.lr": "1"}, "unknown key 'optimiser'. Did you mean 'optimizer'"),
        ({"epochs": "2.5"}, "epochs has the wrong type: got 2.5. Give an integer."),
        ({"optimizer.lr": "fast"}, "optimizer.lr has the wrong type: got 'fast'. Give a number."),
        ({"deterministic": "1"}, "deterministic has the wrong type: got 1. Give true or false."),
        ({"optimizer.lr": "-0.1"}, "optimizer.lr is out of range: got -0.1. Give a value in (0, 1e+12]."),
        ({"data.val_fraction": "0.7"}, "data.val_fraction is out of range: got 0.7. Give a value in (0, 0.5]."),
        ({"schedule.name": "cosin"}, "schedule.name is unknown: got 'cosin'. Did you mean 'cosine'"),
        ({"batch_size": "1"}, "batch_size is out of range: got 1."),
        ({"augment.random_resized_crop": "[0.5]"}, "augment.random_resized_crop has the wrong type"),
        ({"head_epochs": "1"}, "head_epochs needs a network that has learnt something"),
        ({"model.name": "!!python/object/apply:os.system ['true']"}, "Object tags are refused"),
    ],
)
def test_a_wrong_field_is_named_with_how_to_fix_it(assignments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        override(Recipe(), assignments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_are_not_balanced_twice() -> None:
    with pytest.raises(ConfigError, match="balanced twice"):
        override(Recipe(), {"data.balanced_sampling": "true", "loss.class_weights": "balanced"})


def test_values_keep_their_types() -> None:
    recipe = override(
        Recipe(),
        {
            "optimizer.lr": "1e-3",
            "channels_last": "true",
            "compile": "auto",
            "threads": 2,
            "augment.random_resized_crop": "[0.25, 1]",
            "model.arguments.widths": "[8, 16]",
            "ema_decay": "null",
        },
    )
    assert recipe.optimizer.lr == 0.001
    assert recipe.channels_last is True
    assert recipe.compile == "auto"
    assert recipe.threads == 2
    assert recipe.augment.random_resized_crop == (0.25, 1.0)
    assert recipe.model.arguments == {"widths": [8, 16]}
    assert recipe.ema_decay is None


def test_a_yaml_file_with_an_object_tag_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: !!python/name:os.system\n")
    with pytest.raises(ConfigError, match="Object tags are refused"):
        from_yaml(Recipe, path)


def test_a_missing_yaml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read: .*none\.yaml"):
        from_yaml(Recipe, tmp_path / "none.yaml")


def test_dicts_hold_plain_values_only() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or isinstance(value, bool | int | float | str)

    values = to_dict(Recipe())
    assert plain(values)
    assert from_dict(Recipe, values) == Recipe()
    assert dataclasses.replace(Recipe(), epochs=3) != Recipe()


def test_nearest_names_what_is_near_and_nothing_else() -> None:
    assert nearest("resnet8", ["resnet18", "vit"]) == " Did you mean 'resnet18'?"
    assert nearest("zzz", ["resnet18", "vit"]) == ""


def test_a_missing_required_field_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Point:
        x: float
        y: float = 0.0

    with pytest.raises(ConfigError, match=r"^Point lacks required fields: x\. Add them\.$"):
        from_dict(Point, {"y": 1.0})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_no_value_without_an_upper_bound_may_be_infinite(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^x is out of range: got (inf|nan|-1\.0)\. Give a value in \[0, inf\)\.$"):
        check_range("x", value, 0.0)
    check_range("x", 1e300, 0.0)


def test_text_in_a_mapping_stays_text() -> None:
    """A year, a version and a fingerprint that looks like a number are not numbers."""
    arguments = {"activation": "2024", "downsample": ["12.10"]}

    @dataclasses.dataclass(frozen=True)
    class Facts:
        data: Mapping[str, Any]

    values = {"year": "2024", "version": "12.10", "fingerprint": "1e18", "deep": {"x": "1e5"}, "rows": ["0x1f"]}
    assert from_dict(Facts, {"data": values}).data == values
    assert from_yaml(Facts, to_yaml(Facts(data=values))).data == values
    assert from_dict(Facts, {"data": arguments}).data == arguments


def test_the_parser_decides_what_is_a_number_in_a_free_mapping() -> None:
    recipe = override(Recipe(), {"model.arguments.drop_path_rate": "1e-1", "model.arguments.depth": "2"})
    assert recipe.model.arguments == {"drop_path_rate": 0.1, "depth": 2}
    text = "model: {arguments: {drop_path_rate: 1e-1}}\noptimizer: {lr: '1e-3'}"
    read = from_yaml(Recipe, text)
    assert read.model.arguments == {"drop_path_rate": 0.1}
    assert read.optimizer.lr == 0.001
    with pytest.raises(ConfigError, match=r"drop_path_rate has an invalid value: got '1e-1'"):
        from_yaml(Recipe, "model: {arguments: {drop_path_rate: '1e-1'}}")


@pytest.mark.parametrize("text", ["2024", "12.10", "1e5", "007"])
def test_text_on_the_command_line_is_what_was_typed(text: str) -> None:
    assert override(Recipe(), {"name": text, "model.weights": text}).name == text
    assert override(Recipe(), {"model.weights": text}).model.weights == text
    assert from_yaml(Recipe, to_yaml(override(Recipe(), {"name": text}))).name == text


def test_a_name_that_yaml_would_change_is_to_be_quoted() -> None:
    with pytest.raises(ConfigError, match=r"name has the wrong type: got 12\.1\. Give text, in quotes"):
        from_yaml(Recipe, "name: 12.10")


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), -(10**400), "9" * 5000])
@pytest.mark.parametrize("field", ["epochs", "clip_grad_norm"])
def test_a_number_that_overflows_is_not_a_traceback(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} (has the wrong type|is out of range)"):
        from_dict(Recipe, {field: value})
