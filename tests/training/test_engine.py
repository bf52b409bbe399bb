"""The loop: what it trains, averages, freezes, keeps and when it ends."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import judged_as
from killing import Killed, die_after, not_ended
from same_weights import assert_same_weights, bundle_weights
from torch import nn

from vivace.models.config import ModelConfig
from vivace.training.folder.checkpoints import load_newest
from vivace.training.loop.engine import Engine
from vivace.training.loop.session import Session
from vivace.training.loop.state import Ema, TrainState
from vivace.training.loop.validation import Validation
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


def test_the_moving_average_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = Ema(model, 0.5)
    expected = model[0].weight.detach().clone()
    for update in range(1, 6):
        with torch.no_grad():
            model[0].weight.add_(1.0)
            model[1].running_mean.add_(1.0)
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.model[0].weight, expected)
    # statistics are those of the newest network
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_the_bundle_holds_the_averaged_weights(run_tiny: RunTiny) -> None:
    result = run_tiny()
    tree, _, _ = load_newest(result.run / "checkpoints")
    assert tree is not None
    stored = bundle_weights(result)
    assert all(torch.equal(stored[name], tree["ema"]["model"][name]) for name in stored)
    assert not all(torch.equal(stored[name], tree["model"][name]) for name in stored)


def test_a_state_goes_on_bitwise_from_its_own_copy() -> None:
    def make() -> TrainState:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return TrainState(
            model=model, optimizer=optimizer, generator=torch.Generator().manual_seed(1), ema=Ema(model, 0.9)
        )

    def step(state: TrainState) -> None:
        images = torch.randn(4, 3, generator=state.generator)
        state.optimizer.zero_grad()
        # both generators matter: dropout draws from the global one
        nn.functional.dropout(state.model(images)).sum().backward()
        state.optimizer.step()
        assert state.ema is not None
        state.ema.update(state.model)

    first = make()
    step(first)
    snapshot = first.snapshot()
    for _ in range(3):
        step(first)
    second = make()
    second.load_state_dict(snapshot)
    for _ in range(3):
        step(second)
    assert torch.equal(first.model.weight, second.model.weight)
    assert first.ema is not None
    assert second.ema is not None
    assert torch.equal(first.ema.model.weight, second.ema.model.weight)


def test_only_the_head_learns_in_the_head_epochs(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vivace.bundle import load_bundle
    from vivace.exporting.state_dict import export_state_dict

    pretrained = run_tiny("pretrained")
    weights = export_state_dict(load_bundle(pretrained.bundle), tmp_path / "w.pth")
    # validations within the epoch put the network in eval mode and back
    changes = {"model.weights": str(weights), "head_epochs": 1, "ema_decay": None, "validate_every": 0.34}
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []
    step = Engine._step

    def recording(self: Engine, *arguments: Any) -> None:
        step(self, *arguments)
        seen.append((self.counters.epoch, {k: v.clone() for k, v in self.state.model.state_dict().items()}))

    monkeypatch.setattr(Engine, "_step", recording)
    run_tiny("tuned", changes)
    start = torch.load(weights, weights_only=True)

    def changed(state: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, tensor in state.items() if not torch.equal(tensor, start[name])}

    head_only = [state for epoch, state in seen if epoch == 0]
    # not even the statistics of the body's norms move
    assert all(changed(state) == {"head.weight"} for state in head_only)
    last = changed(seen[-1][1])
    assert "groups.0.0.weight" in last
    # the network's own frozen parameters stay so
    assert "whiten.weight" not in last


def test_early_stopping_ends_the_run_and_keeps_the_best(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    top1 = iter([0.4, 0.7, 0.6, 0.65, 0.9])
    at_best: dict[str, torch.Tensor] = {}

    def validate(self: Any, execution: Any, model: nn.Module) -> Validation:
        value = next(top1)
        if value == 0.7:
            at_best.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return judged_as(value)

    monkeypatch.setattr(Session, "_validate", validate)
    result = run_tiny(changes={"early_stopping": 2, "epochs": 50})
    assert (result.epochs, result.saved_epoch) == (4, 2)
    stored = bundle_weights(result)
    assert all(torch.equal(stored[name], at_best[name]) for name in stored)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[float, dict[str, torch.Tensor]]:
    """Weights by the accuracy that they were given: 0.4, 0.7, then ever less."""
    top1 = iter([0.4, *(0.7 - 0.01 * number for number in range(100))])
    seen: dict[float, dict[str, torch.Tensor]] = {}

    def validate(self: Any, execution: Any, model: nn.Module) -> Validation:
        value = next(top1)
        seen[value] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return judged_as(value)

    monkeypatch.setattr(Session, "_validate", validate)
    return seen


Judged = dict[float, dict[str, torch.Tensor]]


def assert_holds(result: TrainResult, weights: dict[str, torch.Tensor]) -> None:
    stored = bundle_weights(result)
    assert all(torch.equal(stored[name], weights[name]) for name in stored)


def test_a_run_that_stopped_early_is_over_until_it_is_extended(run_tiny: RunTiny, judged: Judged) -> None:
    first = run_tiny(changes={"early_stopping": 2, "epochs": 50})
    again = run_tiny(resume=True)
    assert (first.epochs, again.epochs) == (4, 4)
    assert_holds(again, judged[0.7])
    # with more patience it goes on, from its last weights and not from its best
    longer = run_tiny(resume=True, changes={"early_stopping": 4})
    assert longer.epochs == 6
    assert_holds(longer, judged[0.7])


def test_the_last_checkpoint_holds_the_last_weights_and_the_bundle_the_best(run_tiny: RunTiny, judged: Judged) -> None:
    result = run_tiny(changes={"early_stopping": 2, "epochs": 50})
    tree, _, _ = load_newest(result.run / "checkpoints")
    assert tree is not None
    last = judged[min(value for value in judged if value > 0.4)]
    assert all(torch.equal(tensor, last[name]) for name, tensor in tree["ema"]["model"].items())
    assert_holds(result, judged[0.7])


def test_a_run_that_is_killed_after_it_stopped_early_stays_stopped(
    run_tiny: RunTiny, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Engine) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_restore_best", dying)
        with pytest.raises(Killed):
            run_tiny(changes={"early_stopping": 2, "epochs": 50})
    resumed = run_tiny(resume=True)
    assert resumed.epochs == 4
    assert_holds(resumed, judged[0.7])


def test_early_stopping_that_is_switched_on_later_keeps_the_best_from_then_on(
    run_tiny: RunTiny, judged: Judged
) -> None:
    assert run_tiny(changes={"epochs": 3}).saved_epoch == 3
    # nobody kept the weights of 0.7
    resumed = run_tiny(resume=True, changes={"early_stopping": 2}, epochs=50)
    assert resumed.epochs == 6
    assert_holds(resumed, sorted(judged.items())[-3][1])


def test_best_weights_that_are_damaged_are_told_and_the_last_ones_bundled(
    run_tiny: RunTiny, judged: Judged, capfd: pytest.CaptureFixture[str]
) -> None:
    first = run_tiny(changes={"early_stopping": 2, "epochs": 50})
    (first.run / "checkpoints" / "best.safetensors").write_bytes(b"damaged")
    not_ended(first.run)
    resumed = run_tiny(resume=True, quiet=False)
    assert "the last weights are kept in place of the best: the checkpoint can't be read" in " ".join(
        capfd.readouterr().err.split()
    )
    assert_holds(resumed, judged[min(value for value in judged if value > 0.4)])


def test_a_run_that_goes_on_to_a_higher_target_saves_its_last_step(run_tiny: RunTiny, judged: Judged) -> None:
    first = run_tiny(changes={"validate_every": 0.34}, target=0.3)
    # the step at which the first target was reached, then the one at which the second was: both within an epoch
    assert load_newest(first.run / "checkpoints")[1] == first.run / "checkpoints" / "step-000000001.safetensors"
    run_tiny(resume=True, target=0.65)
    assert load_newest(first.run / "checkpoints")[1] == first.run / "checkpoints" / "step-000000002.safetensors"


def test_accumulated_gradients_are_those_of_the_whole_batch(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients: list[list[torch.Tensor]] = []
    step = torch.optim.SGD.step

    def recording(self: torch.optim.SGD, *arguments: Any) -> Any:
        gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    # a network without batch norm, a loss with everything switched on
    changes = {
        "model": ModelConfig(name="timm/convnext_atto", arguments={"depths": [1] * 4, "dims": [8] * 4}),
        "data.size": 32,
        "data.store_size": 36,
        "optimizer.name": "sgd",
        "loss.label_smoothing": 0.1,
        "loss.class_weights": "balanced",
        "epochs": 1,
    }
    run_tiny("whole", changes)
    whole, gradients[:] = gradients[0], []
    run_tiny("divided", {**changes, "micro_batch_size": 4})
    for one, other in zip(whole, gradients[0], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_validations_come_as_often_as_asked_and_training_goes_on_as_before(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Engine._step

    def checking(self: Engine, *arguments: Any) -> None:
        # without a moving average it is the trained network itself that is put in eval mode
        assert self.state.model.training
        step(self, *arguments)

    monkeypatch.setattr(Engine, "_step", checking)
    # 18 training images, batches of 6: three steps an epoch
    result = run_tiny(changes={"validate_every": 0.34, "epochs": 2, "ema_decay": None})
    with (result.run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]
    result = run_tiny("seldom", {"validate_every": 2.0, "epochs": 3})
    with (result.run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["6", "9"]


def test_the_gradient_is_clipped_to_the_norm(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def recording(self: torch.optim.SGD, *arguments: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    sgd = {"optimizer.name": "sgd", "clip_grad_norm": 0.01}
    run_tiny(changes=sgd)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_cuda_is_resumed_bitwise(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    changes = {"deterministic": True, "precision": precision}
    unbroken = run_tiny("unbroken", changes, device="cuda")
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", changes, device="cuda")
    assert_same_weights(unbroken, run_tiny("killed", resume=True, device="cuda"))
