"""What is recorded and told of a run as it goes: after a step, and of a validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivace.training.loop.plan import Plan
from vivace.training.loop.state import Counters, TrainState
from vivace.training.loop.validation import Validation
from vivace.training.recording.callbacks import StepInfo, ValidationInfo

__all__ = ["AFTER", "score_of", "step_info", "validation_info", "validation_row"]

# in a row of the history: the seconds of the loop when that validation had ended
AFTER = "seconds_after"


def step_info(state: TrainState, plan: Plan, *, epoch: float, images_per_second: float) -> StepInfo:
    """The state after a step, for callbacks."""
    counters = state.counters
    return StepInfo(
        step=counters.step,
        epoch=epoch,
        progress=counters.progress,
        lr=state.optimizer.param_groups[0]["lr"],
        train_loss=counters.loss_sum / counters.count if counters.count else None,
        train_top1=counters.correct_sum / counters.count if counters.count else None,
        images_per_second=images_per_second,
        seconds_left=plan.seconds_left(counters),
    )


def validation_row(state: TrainState, validation: Validation, steps_per_epoch: int) -> dict[str, Any]:
    """The row that a validation adds to the history, from the sums since the one before it."""
    counters = state.counters
    trained = "top1" if validation.map is None else "label_accuracy"
    last = counters.history[-1] if counters.history else {"seconds": 0.0}
    # without the last validation: where images are attacked, that may take as long as an epoch
    train_seconds = counters.seconds - last.get(AFTER, last["seconds"])
    return {
        "epoch": round(counters.step / steps_per_epoch, 4),
        "step": counters.step,
        "progress": counters.progress,
        "seconds": counters.seconds,
        "lr": state.optimizer.param_groups[0]["lr"],
        "train_loss": counters.loss_sum / max(counters.count, 1),
        f"train_{trained}": counters.correct_sum / max(counters.count, 1),
        "val_loss": validation.loss,
        **validation.scores(),
        **({} if validation.robust is None else {"num_overfits": counters.num_overfits}),
        "images_per_second": counters.count / max(train_seconds, 1e-9),
    }


def score_of(row: Mapping[str, Any]) -> float:
    """What a validation is judged by: top-1 accuracy, or of sets of labels the mean average precision."""
    return float(row["val_map"] if "val_map" in row else row["val_top1"])


def validation_info(counters: Counters, forecast_top1: float | None) -> ValidationInfo:
    """The newest validation, for callbacks, with the accuracy that is expected at the end of the run."""
    rows = tuple({key: value for key, value in row.items() if key != AFTER} for row in counters.history)
    best, last = max(rows, key=score_of), rows[-1]
    if "val_map" in last:
        found = {"best_val_map": best["val_map"], "forecast_map": forecast_top1}
    else:
        found = {"best_val_top1": best["val_top1"], "forecast_top1": forecast_top1}
    return ValidationInfo(
        **last,
        **found,
        best_step=best["step"],
        history=rows,
    )
