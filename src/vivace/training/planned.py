"""The engine that trains a session within its budget, and what is said of its plan."""

from __future__ import annotations

from collections.abc import Callable

from vivace.training.execution import ExecutionConfig, without_own_kernels
from vivace.training.folder.runfolder import RunFolder
from vivace.training.loop.aim import Aim, aim_of
from vivace.training.loop.arrays import FileWatch
from vivace.training.loop.engine import Engine
from vivace.training.loop.overfitting import num_probe_passes, prober
from vivace.training.loop.plan import Budget, Plan
from vivace.training.loop.session import Session
from vivace.training.loop.state import TrainState
from vivace.training.loop.statistics import NUM_IMAGES_LAST
from vivace.training.recording.dispatch import Dispatcher

__all__ = ["aim_for", "announce", "make_engine"]

# time to write the bundle and exit on a slow disk, and for the graph of a network of the user's own
SAVE_SECONDS, GRAPH_SECONDS = 0.7, 5.0


def aim_for(session: Session, budget: Budget) -> Aim | None:
    """What the run's length is planned by; None: its epochs or its time budget alone decide."""
    if budget.target is None or not budget.planned:
        return None
    return aim_of(
        session.recipe,
        budget.target,
        steps_per_epoch=len(session.batches),
        batch_size=session.recipe.batch_size,
        num_val=session.data.num_val,
        # with a time budget the network was chosen for it
        may_grow=budget.within_seconds is None,
    )


def announce(engine: Engine, target_before: float | None, on_message: Callable[[str], None]) -> None:
    """Report the plan of a run with a target; a resumed run with another target than before plans anew."""
    plan, counters = engine.plan, engine.counters
    if plan.aim is None:
        return
    if counters.step and plan.target != target_before:
        message = plan.replan(counters)
    else:
        message = plan.aim.told(plan.total_steps(counters), plan.steps_per_epoch)
    if message is not None:
        on_message(message)


def make_engine(
    session: Session,
    state: TrainState,
    execution: ExecutionConfig,
    budget: Budget,
    folder: RunFolder,
    callbacks: Dispatcher,
    clock: Callable[[], float],
    seconds_before: float,
) -> Engine:
    """The engine of a session, with the plan of its budget. seconds_before: those before a resume."""
    data, recipe = session.data, session.recipe
    is_long_enough = session.part is not None and session.part.epochs is not None
    plan = Plan(
        epochs=recipe.epochs,
        steps_per_epoch=len(session.batches),
        schedule=recipe.schedule,
        within_seconds=None if is_long_enough else budget.within_seconds,
        target=budget.target,
        aim=aim_for(session, budget),
        clock=lambda: seconds_before + clock(),
    )
    probe = prober(session, execution.precision)
    if plan.within_seconds is not None and recipe.epochs:
        seconds = session.pass_seconds(state.averaged_model, without_own_kernels(execution))
        # the last validation, and the metrics of the bundle on validation and test
        passes = 2 + data.num_test / max(data.num_val, 1)
        if session.settler(execution) is not None:
            # before the last validation, batch-norm statistics are estimated from these training images
            passes += min(NUM_IMAGES_LAST, len(data.train_indices)) / max(data.num_val, 1)
        # the probe of the last validation
        passes += num_probe_passes(recipe) / max(data.num_val, 1)
        plan.reserve_seconds = seconds * passes + SAVE_SECONDS + (GRAPH_SECONDS if session.network else 0)
    return Engine(
        recipe=recipe,
        state=state,
        stepper=session.stepper(state, execution, callbacks.on_message),
        batches=session.batches,
        names=data.cache.splits["train"].names,
        validate=session.validator(execution),
        settle=session.settler(execution),
        probe=probe,
        plan=plan,
        checkpoints=folder.checkpoints,
        callbacks=callbacks,
        check_files=FileWatch(data.cache),
        head=frozenset(session.head),
        parts=session.late_frozen,
    )
