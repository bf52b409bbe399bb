"""Batch-norm statistics fit the weights that are saved, however few steps a run has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_weights import assert_same_weights, bundle_weights
from torch import nn

import vivace
from colours import COLOURS, noisy_image
from vivace.bundle import load_bundle
from vivace.training.loop.engine import Engine
from vivace.training.loop.session import Session
from vivace.training.loop.statistics import estimate_statistics
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


def batches(count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) + seed for seed in range(count)]


def test_statistics_are_the_mean_over_the_batches() -> None:
    norm = nn.BatchNorm2d(3)
    nn.Module.train(norm)
    norm(torch.full((4, 3, 6, 6), 100.0))
    estimate_statistics(norm, batches())
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches()])
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches()])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    torch.testing.assert_close(norm.running_var, variances.mean(0))


def test_all_but_the_statistics_stays_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.BatchNorm1d(64, track_running_stats=False),
    ).train()
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    estimate_statistics(model, batches())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"{layer}.running_{what}" for layer in (1, 3) for what in ("mean", "var")}
    assert [module.training for module in model] == [True, True, True, False, True, True]
    assert (model[1].momentum, model[3].momentum) == (0.3, 0.1)
    assert torch.equal(torch.get_rng_state(), random)


# our own networks, timm's with norms of its own and drop path, with and without a moving average
@pytest.mark.parametrize(
    ("network", "ema_decay"),
    [
        ("simple_cnn", None),
        ("fast_cnn", None),
        ("fast_cnn", 0.9),
        ("timm/test_resnet", None),
        ("timm/test_efficientnet", 0.9),
    ],
)
def test_after_a_few_steps_no_other_statistics_answer_better(
    network: str, ema_decay: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, float] = {}
    calibrated = Session.calibrated

    def comparing(self: Session, model: nn.Module, execution: Any) -> tuple[nn.Module, float | None]:
        seen["saved"] = self.validator(execution)(model).top1
        seen["steps"] = -(-self.batches.num_images // 64)
        result = calibrated(self, model, execution)
        # weights unchanged, statistics of all training images
        estimate_statistics(model, self.sample_images(5000).tensor_split(1))
        seen["again"] = self.validator(execution)(model).top1
        return result

    monkeypatch.setattr(Session, "calibrated", comparing)
    changes = {
        "model.name": network,
        "model.arguments": {},
        "optimizer.name": "adamw",
        "optimizer.lr": 3e-3,
        "ema_decay": ema_decay,
        "batch_size": 64,
        "precision": "fp32",
        "threads": 1,
    }
    vivace.train(
        "digits", epochs=1, overrides=changes, run=tmp_path / "run", tune=False, quiet=True, cache_dir=tmp_path
    )
    assert 15 <= seen["steps"] <= 25
    assert seen["saved"] > 0.3
    assert abs(seen["saved"] - seen["again"]) <= 0.02


def test_a_validation_has_the_statistics_that_are_saved(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[dict[str, torch.Tensor]] = []
    validate = Session._validate

    def recording(self: Session, execution: Any, model: nn.Module) -> Any:
        validated.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return validate(self, execution, model)

    monkeypatch.setattr(Session, "_validate", recording)
    result = run_tiny()
    stored = bundle_weights(result)
    assert all(torch.equal(stored[name], tensor) for name, tensor in validated[-1].items())
    assert load_bundle(result.bundle).info.metrics["val"]["top1"] == result.val_top1


def test_a_long_run_does_not_pay_for_it(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    settle = Engine._settle

    def recording(self: Engine) -> None:
        monkeypatch.setattr("vivace.training.loop.engine.NUM_STEPS", 4)
        self.settle, plain = (lambda model, last: calls.append(self.counters.step)), self.settle
        settle(self)
        self.settle = plain

    monkeypatch.setattr(Engine, "_settle", recording)
    run_tiny()
    # three steps an epoch, a validation after each of three
    assert calls == [3]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_run_that_is_resumed_between_validations_ends_alike(run_tiny: RunTiny, ema_decay: float | None) -> None:
    changes = {"ema_decay": ema_decay, "schedule.name": "constant", "schedule.warmup": 0.0}
    whole = run_tiny("whole", {**changes, "epochs": 3})
    run_tiny("parts", {**changes, "epochs": 1})
    assert_same_weights(whole, run_tiny("parts", resume=True, epochs=3))


@pytest.mark.parametrize("change", [{"loss.class_weights": "balanced"}, {"data.balanced_sampling": True}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_a_rare_class_weighs_much_what_is_saved_knows_the_common_one(
    tmp_path: Path, change: dict[str, Any], seed: int
) -> None:
    for label, colour, count in (("big", COLOURS["blue"], 300), ("small", COLOURS["red"], 3)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(count):
            noisy_image(colour, 1000 * len(label) + index, (24, 24)).save(tmp_path / "data" / label / f"{index}.png")
    result = vivace.train(
        tmp_path / "data",
        epochs=15,
        overrides={**change, "data.size": 16, "precision": "fp32", "threads": 1, "seed": seed},
        run=tmp_path / "run",
        tune=False,
        quiet=True,
        cache_dir=tmp_path,
    )
    # with running averages alone: 1 of 31; with statistics of all images where classes are drawn alike: 13 to 29
    assert result.val_top1 >= 0.95
