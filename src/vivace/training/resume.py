"""What a resumed run takes from its folder; nothing may change but how long it runs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vivace.errors import CheckpointError
from vivace.training.folder.checkpoints import load_newest
from vivace.training.folder.runfolder import RunFolder
from vivace.training.loop.plan import Budget
from vivace.training.loop.progress import score_of
from vivace.training.loop.restored import MALFORMED, check_tree, try_step
from vivace.training.loop.state import Counters, TrainState
from vivace.training.recipes.recipe import Recipe

__all__ = ["adapt_counters", "fitting", "newest_state", "restore", "resumed_budget"]


def resumed_budget(asked: Budget, saved: Mapping[str, Any]) -> Budget:
    """The budget that the run began with, replaced by what is given now."""
    return Budget(
        within_seconds=asked.within_seconds or saved["within_seconds"],
        target=asked.target or saved["target"],
        planned=asked.planned and saved.get("planned") is True,
    )


def newest_state(
    folder: RunFolder, device_type: str, on_message: Callable[[str], None] = lambda message: None
) -> dict[str, Any] | None:
    """The tree of the newest intact checkpoint, or None for a run that was stopped before its first checkpoint.

    Raises CheckpointError if there are checkpoints but none is intact, or if the run began on another kind of device.
    """
    tree, _, damaged = load_newest(folder.checkpoints)
    for message in damaged:
        on_message(message)
    if tree is None and damaged:
        raise CheckpointError(
            f"no sound checkpoint is left in {folder.checkpoints}: {len(damaged)} can't be used, the newest because "
            f"{damaged[0]} Start a new run with another `run`."
        )
    began_on = None if tree is None else tree.get("device")
    if tree is not None and began_on != device_type:
        raise CheckpointError(
            f"the run can't be resumed on another device: it began on {began_on!s:.40}, now {device_type}. "
            f"Give `device='{began_on!s:.40}'`, or start a new run with another `run`."
        )
    return tree


@contextlib.contextmanager
def fitting(folder: RunFolder) -> Iterator[None]:
    """Turns what a checkpoint that does not fit the run raises in the block into a CheckpointError."""
    try:
        yield
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint does not fit the run: {folder.checkpoints} ({type(error).__name__}: {reason}). Start a "
            "new run with another `run`."
        ) from None


def restore(state: TrainState, tree: dict[str, Any], folder: RunFolder) -> None:
    """Load a checkpoint's tree, in place. Raises CheckpointError if it does not fit this network and optimizer."""
    with fitting(folder):
        check_tree(tree, state.state_dict())
        state.load_state_dict(tree | {"optimizer": copy.deepcopy(tree["optimizer"])})
        try_step(state.optimizer)
        state.load_state_dict(tree)


def adapt_counters(
    counters: Counters, recipe: Recipe, budget: Budget, saved_recipe: Recipe, saved_budget: Mapping[str, Any]
) -> None:
    """Adapt the counters of a checkpoint to the new length of the run, in place.

    Raises CheckpointError if the run is already longer.
    """
    epochs_done = counters.epoch + (counters.batch > 0)
    if budget.within_seconds is None and recipe.epochs < min(epochs_done, saved_recipe.epochs):
        raise CheckpointError(
            f"the run can't be made shorter than it is: it is in epoch {epochs_done}, got epochs {recipe.epochs}. "
            "Give more epochs, or leave `epochs` out."
        )
    if (recipe.epochs, recipe.early_stopping) != (saved_recipe.epochs, saved_recipe.early_stopping):
        counters.stopped_early = False
    if budget.within_seconds is not None and budget.within_seconds != saved_budget["within_seconds"]:
        # the schedule continues at the fraction of the new time budget that is used up
        counters.progress = min(1.0, counters.total_seconds / budget.within_seconds)
    if budget.target is not None and budget.target != saved_budget["target"]:
        reached = bool(counters.history) and score_of(counters.history[-1]) >= budget.target
        counters.target_seconds = counters.total_seconds if reached else None
