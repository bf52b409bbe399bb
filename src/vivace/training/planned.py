"""The engine that trains a session within its budget, and what is said of its plan."""

from __future__ import annotations

from collections.abc import Callable

from vivace.measure import time_call
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
from vivace.training.recipes.expected import most_accurate, network_of, networks_for, top1_of, with_network
from vivace.training.recipes.named import DataFacts
from vivace.training.recipes.recipe import Recipe
from vivace.training.recording.dispatch import Dispatcher

__all__ = ["aim_for", "announce", "fitting_network", "make_engine"]

# time to write the bundle and exit on a slow disk, and for the graph of a network of the user's own
SAVE_SECONDS, GRAPH_SECONDS = 0.7, 5.0
# steps that tell how fast this machine is now: a quarter of a batch each, the first one not counted
TIMED_PART, NUM_TIMED = 4, 2
# of a time budget, what is left for validations and saving
RESERVED = 0.05
# points of progress at which the size of growing images is asked for
NUM_SIZES = 20


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


def fitting_network(
    session: Session, recipe: Recipe, execution: ExecutionConfig, budget: Budget, facts: DataFacts, *, used: float
) -> tuple[Recipe, str] | None:
    """The recipe with the network of `fast` that is expected to be the most accurate in the time, and why.

    None: it has that network, or nothing is known of it. The table by which the recipe was chosen knows the processor,
    but neither how busy it is nor how fast its memory is: so a step is timed. used: seconds of the time budget.
    """
    known = recipe.name == "fast" and session.device.type == "cpu" and session.network is None
    network = network_of(recipe)
    if budget.within_seconds is None or not known or len(networks_for(network)) < 2:
        return None
    left = (1 - RESERVED) * budget.within_seconds - used
    count = -(-recipe.batch_size // TIMED_PART)
    step = session.trial_step(execution, count)
    time_call(step, session.device)
    step_ms = min(time_call(step, session.device) for _ in range(NUM_TIMED))
    sizes = [session.augment.size_at((index + 0.5) / NUM_SIZES) for index in range(NUM_SIZES)]
    # a step of small images takes so much of one of the final size
    growing = sum((size / session.seen.size) ** 2 for size in sizes) / NUM_SIZES
    epoch_seconds = len(session.data.train_indices) / count * step_ms / 1e3 * growing
    length = left / epoch_seconds / recipe.epochs
    if length <= 0:
        return None
    better, longer = most_accurate(network, length)
    changed = recipe if better is network else with_network(recipe, facts, better)
    # a network that was asked for is kept
    if changed.model == recipe.model:
        return None
    here, there = (100 * top1_of(one.logit(long)) for one, long in ((network, length), (better, longer)))
    return changed, (
        f"network: {better.name}. At the speed measured just now the time is for {length * recipe.epochs:.2g} epochs "
        f"of {network.name}: {here:.0f} % where these were measured, {there:.0f} % with {better.name}"
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
