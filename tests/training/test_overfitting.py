"""Catastrophic overfitting of adversarial training: when it is noticed, where the run goes back to, what is said."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from killing import unbroken_and_resumed
from same_weights import assert_same_weights, bundle_weights

from vivace.cli.train import robust_lines
from vivace.training import planned
from vivace.training.loop.overfitting import has_collapsed
from vivace.training.loop.state import TrainState
from vivace.training.loop.validation import Robustness
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]
ATTACK = {"attack.eps": 8, "monitor": "robust", "epochs": 4, "checkpoint_minutes": 1e-9}


def fake_probe(
    monkeypatch: pytest.MonkeyPatch, newest: Callable[[TrainState], float], *, more: float = 0.1
) -> list[dict[str, Any]]:
    """The probe says what `newest` says, that much more of the average, and gives the weights of the average."""
    seen: list[dict[str, Any]] = []

    def probe(state: TrainState) -> Robustness:
        weights = {name: tensor.clone() for name, tensor in state.averaged_model.state_dict().items()}
        seen.append(weights)
        value = newest(state)
        return Robustness(value + more, value, 512)

    monkeypatch.setattr(planned, "prober", lambda session, precision: probe)
    return seen


def told(values: list[float]) -> Callable[[TrainState], float]:
    following: Iterator[float] = iter(values)
    return lambda state: next(following)


@pytest.mark.parametrize(
    ("now", "best", "num_images", "expected"),
    [
        (0.02, 0.40, 512, True),
        (0.30, 0.40, 512, False),
        (0.19, 0.40, 512, True),
        (0.21, 0.40, 512, False),
        # nothing has been learnt yet
        (0.0, 0.005, 512, False),
        # too few images to tell
        (0.0, 0.40, 6, False),
        (0.0, 0.80, 20, True),
        (1 / 6, 3 / 6, 6, False),
        (0.0, 0.0, 512, False),
    ],
)
def test_a_collapse_is_told_from_chance(now: float, best: float, num_images: int, expected: bool) -> None:
    assert has_collapsed(now, best, num_images) is expected


def test_the_run_goes_back_to_its_last_sound_state_and_says_so(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [0.3, 0.4, 0.02, 0.41, 0.42]
    seen = fake_probe(monkeypatch, told(values))
    result = run_tiny(changes=ATTACK, quiet=False)
    line = (
        "catastrophic overfitting by step 9: robust accuracy fell from 40.0 % to 2.0 %; back to step 6 with noise "
        "3 × eps, step 0.75 × eps (try 1 of 3)"
    )
    err = capsys.readouterr().err
    assert line in err
    assert err.count("robust ≤ 12.0 %") == 1
    assert result.epochs == 4
    with (result.run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_robust_newest"]) for row in rows] == [0.3, 0.4, 0.41, 0.42]
    assert [int(row["num_overfits"]) for row in rows] == [0, 0, 1, 1]
    assert result.robust is not None
    assert (result.robust.accuracy, result.robust.num_overfits) == (pytest.approx(0.52), 1)
    warning = (
        "the run went back once after catastrophic overfitting, each time with 1.5 × the noise and 0.75 × the step of "
        "its attack. Set attack.noise higher, or `optimizer.lr` lower."
    )
    assert warning in result.warnings
    assert json.loads((result.run / "result.json").read_text())["robust"]["num_overfits"] == 1
    assert (
        TrainResult.read(json.loads((result.run / "result.json").read_text()), run=result.run).robust == result.robust
    )
    # the same steps again, with another attack: other weights
    assert any(not torch.equal(seen[2][name], seen[3][name]) for name in seen[2])


def test_the_best_weights_are_those_of_the_best_probe(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_probe(monkeypatch, told([0.3, 0.42, 0.35, 0.30]))
    result = run_tiny(changes=ATTACK)
    stored = bundle_weights(result)
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in stored.items())
    assert result.saved_epoch == 2
    assert result.robust is not None
    assert result.robust.accuracy == pytest.approx(0.52)


def test_a_run_that_overfits_again_and_again_ends_with_its_best_weights(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = fake_probe(monkeypatch, told([0.4, 0.01, 0.02, 0.03]))
    result = run_tiny(changes={**ATTACK, "attack.max_rollbacks": 2}, quiet=False)
    err = capsys.readouterr().err
    assert "(try 2 of 2)" in err
    assert "to 3.0 %; it was the last of 2 tries: the run ends with its best weights" in err
    assert all(torch.equal(tensor, seen[0][name]) for name, tensor in bundle_weights(result).items())
    assert result.saved_epoch == 1


def test_a_run_that_is_not_watched_goes_on(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_probe(monkeypatch, told([0.4, 0.01, 0.02, 0.03]))
    result = run_tiny(changes={**ATTACK, "attack.max_rollbacks": 0})
    assert result.epochs == 4
    assert result.robust is not None
    assert (result.saved_epoch, result.robust.num_overfits) == (1, 0)


@pytest.mark.parametrize("step", [5, 8, 11])
def test_a_resumed_run_goes_back_as_the_unbroken_one(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed before the collapse, in the epoch that collapses, and after the way back."""

    def newest(state: TrainState) -> float:
        counters = state.counters
        return 0.01 if counters.step == 9 and counters.num_overfits == 0 else 0.3 + counters.step / 1000

    fake_probe(monkeypatch, newest)
    unbroken, resumed = unbroken_and_resumed(run_tiny, monkeypatch, ATTACK, step)
    assert unbroken.robust is not None
    assert unbroken.robust.num_overfits == 1
    assert unbroken.robust == resumed.robust
    assert_same_weights(unbroken, resumed)


def test_a_real_adversarial_run_resumes_to_the_last_bit(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken, resumed = unbroken_and_resumed(run_tiny, monkeypatch, ATTACK, 5)
    assert_same_weights(unbroken, resumed)
    assert unbroken.robust == resumed.robust


def test_a_network_that_is_not_robust_is_reported(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_probe(monkeypatch, told([0.0] * 4), more=0.0)
    result = run_tiny(changes=ATTACK)
    assert any(line.startswith("the network is not robust: PGD left 0 of 512 held-out") for line in result.warnings)
    ((name, text), (_, how)) = robust_lines(result)
    assert (name, text) == (
        "robust, at most",
        "0.00 % [0.00, 0.74] of 512 images: by PGD of 10 steps, linf:8/255; an upper bound",
    )
    assert how == f"vivace evaluate {result.run} DATA --attack linf:8/255 measures the robustness"
