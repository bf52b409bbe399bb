"""The best validation of a run, by a metric of choice: its weights are kept, and a run without a better one ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vivace.errors import CheckpointError
from vivace.training.folder.checkpoints import load_checkpoint, save_checkpoint
from vivace.training.loop.restored import MALFORMED, check_weights
from vivace.training.loop.state import TrainState
from vivace.training.recipes.recipe import Recipe

__all__ = ["MONITORS", "Best", "Monitor"]


@dataclass(frozen=True)
class Monitor:
    """A metric of validations that a run can be judged by."""

    column: str
    """Of the history."""
    name: str
    """For a reader."""
    sign: int = 1
    """-1: the lower, the better."""

    @property
    def improved(self) -> str:
        """What a better one has done."""
        return "risen" if self.sign > 0 else "fallen"


MONITORS = {
    "top1": Monitor("val_top1", "top-1 accuracy"),
    "loss": Monitor("val_loss", "validation loss", -1),
    "macro_f1": Monitor("val_macro_f1", "macro F1"),
    "balanced_accuracy": Monitor("val_balanced_accuracy", "balanced accuracy"),
    "robust": Monitor("val_robust", "robust accuracy"),
}
# of sets of labels, in place of top1
MAP = Monitor("val_map", "mAP")


class Best:
    """Judges each validation by the recipe's `monitor`; where the recipe `keeps_best`, has the best weights in a file.

    What it knows is in the counters and the history of the state, so that a resumed run judges as the unbroken one.
    """

    def __init__(self, recipe: Recipe, state: TrainState, path: Path, on_message: Callable[[str], None]) -> None:
        self._patience, self._monitor = recipe.early_stopping, MONITORS[recipe.monitor]
        self._state, self._path, self._on_message = state, path, on_message
        self._keeps = recipe.keeps_best
        if self._keeps and not path.exists():
            # earlier validations may have been better, but their weights were not kept
            state.counters.best_value = None

    def judge(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Judge the newest validation; in the counters, the run is stopped when there was no better one for long.

        weights: those that were validated; None: those of the averaged network.
        """
        counters = self._state.counters
        row, monitor = counters.history[-1], self._watched()
        value = row[monitor.column]
        if counters.best_value is None or monitor.sign * value > monitor.sign * counters.best_value:
            counters.best_value, counters.best_step = value, row["step"]
            if self._keeps:
                weights = self._state.averaged_model.state_dict() if weights is None else weights
                save_checkpoint(self._path, {"step": row["step"], "model": dict(weights)})
        elif (reason := self.reason()) is not None:
            self._on_message(reason)
            counters.stopped_early = True

    def reason(self) -> str | None:
        """Why the run ends, or has ended, early; None: the newest validations are no reason to."""
        counters = self._state.counters
        if self._patience is None or counters.best_value is None:
            return None
        if sum(row["step"] > counters.best_step for row in counters.history) < self._patience:
            return None
        number = "1 validation" if self._patience == 1 else f"{self._patience} validations"
        return (
            f"stopped early after epoch {round(counters.history[-1]['epoch'], 2):g}: {self._watched().name} has not "
            f"{self._watched().improved} for {number}"
        )

    def _watched(self) -> Monitor:
        """What the newest validation is judged by."""
        return self._monitor if self._monitor.column in self._state.counters.history[-1] else MAP

    def restore(self) -> float | None:
        """Give the averaged network the best weights, in place; returns their epoch. None: they can't be read."""
        state = self._state
        try:
            best = load_checkpoint(self._path)
            check_weights(best["model"], state.averaged_model.state_dict())
        except (CheckpointError, *MALFORMED) as error:
            self._on_message(f"the last weights are kept in place of the best: {error}")
            return None
        state.averaged_model.load_state_dict(best["model"])
        steps = (best.get("step"), state.counters.best_step)
        epochs = [row["epoch"] for step in steps for row in state.counters.history if row["step"] == step]
        return float(epochs[0]) if epochs else None
