"""Early stopping by a metric of choice: which validation is the best, when the run ends, what is saved and said."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
from killing import unbroken_and_resumed
from same_weights import assert_same_weights, bundle_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from vivace.errors import ConfigError
from vivace.training.loop.best import MONITORS
from vivace.training.loop.session import Session
from vivace.training.loop.validation import Validation
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]
# the best of top1, loss, macro F1 and balanced accuracy are the third, second, first and fourth
ROWS = [
    Validation(loss=0.9, top1=0.5, macro_f1=0.8, balanced_accuracy=0.3),
    Validation(loss=0.2, top1=0.6, macro_f1=0.7, balanced_accuracy=0.4),
    Validation(loss=0.3, top1=0.9, macro_f1=0.6, balanced_accuracy=0.5),
    Validation(loss=0.4, top1=0.8, macro_f1=0.5, balanced_accuracy=0.6),
    *[Validation(loss=0.5, top1=0.4, macro_f1=0.4, balanced_accuracy=0.2)] * 9,
]
BEST = {"top1": 3, "loss": 2, "macro_f1": 1, "balanced_accuracy": 4}
NAMES = {
    "top1": "top-1 accuracy has not risen",
    "loss": "validation loss has not fallen",
    "macro_f1": "macro F1 has not risen",
    "balanced_accuracy": "balanced accuracy has not risen",
}


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Validations are those of ROWS; the weights that were validated."""
    seen: list[dict[str, torch.Tensor]] = []

    def validate(self: Any, execution: Any, model: nn.Module) -> Validation:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return ROWS[len(seen) - 1]

    monkeypatch.setattr(Session, "_validate", validate)
    return seen


@pytest.mark.parametrize("monitor", BEST)
def test_the_best_weights_by_the_metric_are_saved_and_it_says_when_to_stop(
    run_tiny: RunTiny, weights: list[dict[str, torch.Tensor]], monitor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_tiny(changes={"monitor": monitor, "early_stopping": 3, "epochs": 50}, quiet=False)
    best = BEST[monitor]
    stored = bundle_weights(result)
    assert all(torch.equal(tensor, weights[best - 1][name]) for name, tensor in stored.items())
    assert (result.epochs, result.saved_epoch) == (best + 3, best)
    line = f"stopped early after epoch {best + 3}: {NAMES[monitor]} for 3 validations"
    assert line in capsys.readouterr().err
    assert result.stopped_early == line
    assert json.loads((result.run / "result.json").read_text())["stopped_early"] == line
    with (result.run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    column = f"val_{monitor}"
    assert float(rows[best - 1][column]) == pytest.approx(getattr(ROWS[best - 1], monitor))
    events = EventAccumulator(str(result.run / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars(f"val/{monitor}")] == pytest.approx(
        [getattr(row, monitor) for row in ROWS[: best + 3]]
    )


def test_patience_counts_validations_not_epochs(run_tiny: RunTiny, weights: list[dict[str, torch.Tensor]]) -> None:
    changes = {"monitor": "macro_f1", "early_stopping": 3, "epochs": 50, "validate_every": 0.34}
    result = run_tiny(changes=changes)
    # 18 images in batches of 6: an epoch has three steps, and each of them is validated
    assert len(weights) == 4
    assert result.epochs == pytest.approx(4 / 3)
    assert result.stopped_early == "stopped early after epoch 1.33: macro F1 has not risen for 3 validations"


def test_a_run_that_ends_as_planned_did_not_stop_early(run_tiny: RunTiny) -> None:
    result = run_tiny(changes={"monitor": "loss", "early_stopping": 50})
    assert result.epochs == 3
    assert result.stopped_early is None


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_judges_as_the_unbroken_one(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    changes = {"monitor": "macro_f1", "early_stopping": 1, "epochs": 12, "checkpoint_minutes": 1e-9}
    unbroken, resumed = unbroken_and_resumed(run_tiny, monkeypatch, changes, step)
    assert_same_weights(unbroken, resumed)
    assert (unbroken.stopped_early, unbroken.saved_epoch) == (resumed.stopped_early, resumed.saved_epoch)


def test_macro_f1_of_the_bundle_is_that_of_the_validation_that_was_kept(run_tiny: RunTiny) -> None:
    result = run_tiny(changes={"monitor": "macro_f1", "early_stopping": 9, "epochs": 4})
    with (result.run / "metrics.csv").open() as file:
        values = [float(row["val_macro_f1"]) for row in csv.DictReader(file)]
    assert result.metrics["val"]["macro_f1"] == pytest.approx(max(values), abs=1e-5)


def test_a_metric_that_would_decide_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"monitor needs early_stopping: got 'macro_f1' without it"):
        Recipe(monitor="macro_f1")
    with pytest.raises(ConfigError, match=r"monitor is unknown: got 'macro_f2'\. Did you mean 'macro_f1'"):
        Recipe(monitor="macro_f2", early_stopping=3)  # type: ignore[arg-type]


def test_every_metric_of_the_recipe_is_known() -> None:
    assert set(get_type_hints(Recipe)["monitor"].__args__) == set(MONITORS)
    # that of adversarial training is told of in test_overfitting.py
    assert set(MONITORS) == {*BEST, "robust"}
