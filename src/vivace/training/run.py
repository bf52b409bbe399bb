"""A training run from a cache to a bundle: tune, build or resume, run the engine, measure, save."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from vivace.config import to_dict
from vivace.cpus import limit_threads, set_threads
from vivace.data.augmentation.own import OwnAugmentation
from vivace.data.caching.cache import Cache
from vivace.hardware import describe, device_name, keep_freed_memory, select_device
from vivace.models.own.given import OwnNetwork
from vivace.notices import worded
from vivace.training.completion import Complete
from vivace.training.execution import (
    OPTIONS,
    ExecutionConfig,
    measured_fields,
    trial_batch_size,
)
from vivace.training.finetuning.following import whole_network
from vivace.training.finetuning.stages import (
    Stage,
    begin_with,
    continue_from,
    first_stages,
    further_stage,
    keep_better,
    resume_last_stages,
)
from vivace.training.finish import finish
from vivace.training.folder.checkpoints import remove_all
from vivace.training.folder.runfolder import RunFolder, check_same_data
from vivace.training.loop.aim import LargerNetwork
from vivace.training.loop.arrays import prepare_data
from vivace.training.loop.engine import Engine
from vivace.training.loop.plan import Budget
from vivace.training.loop.session import Session
from vivace.training.planned import aim_for, announce, fitting_network, make_engine
from vivace.training.private.stage import private_stage
from vivace.training.private.telling import check_not_resumed
from vivace.training.recipes.balance import balance_lines
from vivace.training.recipes.expected import with_network
from vivace.training.recipes.named import DataFacts
from vivace.training.recipes.origin import known_images, origin_of
from vivace.training.recipes.recipe import Recipe
from vivace.training.record import facts_of, record_of, run_info, starting_weights
from vivace.training.recording.callbacks import Callback
from vivace.training.recording.curves import Curves
from vivace.training.recording.dispatch import Dispatcher
from vivace.training.recording.display import LiveDisplay
from vivace.training.result import TrainResult
from vivace.training.resume import adapt_counters, fitting, newest_state, restore, resumed_budget
from vivace.training.resumed import finished_result
from vivace.training.techniques.distill import Teacher
from vivace.training.tuning.tune import Receipt, plain_execution, receipt_path, stored_receipt
from vivace.training.tuning.tune import tune as run_trial

__all__ = ["run_training"]


def run_training(
    folder: RunFolder,
    recipe: Recipe,
    cache: Cache,
    *,
    source_name: str,
    data_facts: DataFacts,
    budget: Budget,
    goes_on: bool,
    resume: bool,
    device_choice: str,
    tune: bool,
    measure_test: bool,
    teacher: Teacher | None,
    augment: OwnAugmentation | None,
    network: OwnNetwork | None,
    complete: Complete | None,
    cache_dir: Path,
    display: LiveDisplay,
    callbacks: Sequence[Callback],
    clock: Callable[[], float],
) -> TrainResult:
    """Train as the recipe says, within the budget, and write the bundle into the run folder.

    goes_on: a length was asked for, so that a resumed run which has ended goes on; a budget says the same.
    """
    device = select_device(device_choice)
    keep_freed_memory()
    previous = folder.saved_facts() if resume else None
    origin = origin_of(recipe, cache, previous)
    data = prepare_data(cache, recipe, known_N=known_images(recipe, cache, origin))
    if not measure_test:
        data = data.without_test()
    facts = facts_of(cache, data, source_name)
    saved = None
    if previous is None:
        for line in balance_lines(recipe, data.train_labels_N, cache.classes, cache.label_sets):
            display.on_message(worded(line))
    else:
        check_same_data(previous["data"], facts)
        ended = finished_result(folder, recipe)
        # the epochs that a run has had are nothing more to do
        goes_on = goes_on and (ended is None or ended.epochs < recipe.epochs)
        goes_on = goes_on or budget.within_seconds is not None or budget.target is not None
        budget = resumed_budget(budget, previous["contract"])
        check_not_resumed(recipe, folder.path, is_finished=not goes_on and ended is not None)
        saved = newest_state(folder, device.type, display.on_message)
        if not goes_on and ended is not None:
            # a run that was begun with a time budget takes no epochs
            longer = "epochs" if budget.within_seconds is None else "time by `within`"
            line = f"{folder.path} has ended: nothing was trained or written. Give more {longer} to go on"
            display.on_message(worded(line))
            return ended
    dispatcher: Dispatcher | None = None
    seconds_before = spent = 0.0
    with _global_settings_restored(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        limit_threads()
        further: Stage | None = None
        fitted: Receipt | None = None
        # more than once only if another network fits the time, or a larger one, or more of it, is to reach the target
        while True:
            session = Session(
                recipe,
                data,
                device,
                cache_dir=cache_dir,
                load=saved is None,
                teacher=teacher,
                origin=origin,
                augment=augment,
                network=network,
            )
            recipe = session.recipe
            # a checkpoint was trained from what the run started with
            weights = session.start.record if saved is None else starting_weights(previous)
            stage = further
            if further is not None:
                continue_from(session, further)
            elif saved is not None:
                with fitting(folder):
                    resume_last_stages(session, saved, cache_dir=cache_dir)
            elif recipe.privacy.is_private:
                stage = private_stage(session, cache_dir=cache_dir, on_message=display.on_message)
            elif recipe.finetune.head:
                stage, recipe = first_stages(session, budget, clock, cache_dir=cache_dir, on_message=display.on_message)
            tunes = tune and not resume and recipe.epochs > 0 and session.part is None and further is None
            # what is the fastest for a network is so for one of the same make
            receipt = fitted or _receipt(
                session,
                recipe,
                budget,
                tune=tunes,
                cache_dir=cache_dir,
                used=clock(),
                on_message=lambda line: display.on_message(worded(line)),
            )
            execution = receipt.execution
            set_threads(execution.threads)
            if tunes and fitted is None:
                other = fitting_network(session, recipe, execution, budget, data_facts, used=clock())
                if other is not None:
                    (recipe, line), fitted = other, receipt
                    display.on_message(line)
                    continue
            session.recipe = recipe = _resolved(recipe, execution)
            # the trial has drawn random numbers: seed again
            torch.manual_seed(recipe.seed)
            state = session.state(execution)
            state.counters.seconds = spent
            if saved is not None:
                restore(state, saved, folder)
            if previous is None:
                folder.start(recipe, record_of(facts, budget, weights, network), describe(), to_dict(receipt))
                if session.start.line and stage is None:
                    display.on_message(session.start.line)
                if recipe.epochs:
                    display.on_message(f"execution: {receipt.summary()}")
            else:
                adapt_counters(state.counters, recipe, budget, folder.saved_recipe(), previous["contract"])
                # if the extension is interrupted, it is resumed up to its own end
                folder.record(recipe, record_of(facts, budget, weights, network))
            is_first = dispatcher is None
            if dispatcher is None:
                curves = Curves(folder.path, resumed_step=state.counters.step or None)
                dispatcher = Dispatcher([display, curves], callbacks, device=device)
                seconds_before = state.counters.total_seconds
            engine = make_engine(session, state, execution, budget, folder, dispatcher, clock, seconds_before)
            try:
                if is_first:
                    dispatcher.on_start(run_info(session, engine, folder, facts, budget))
                announce(engine, previous["contract"]["target"] if previous else None, dispatcher.on_message)
                with display:
                    if stage is not None:
                        begin_with(stage, engine)
                    engine.run()
                further = further_stage(session, engine, budget)
                if further is not None:
                    dispatcher.on_message(further.missed(budget.target))
                    recipe, saved, previous, spent = whole_network(recipe), None, None, _again(folder, engine)
                    continue
                keep_better(session, engine, stage, display.on_message)
                # the engine checks only from time to time
                engine.check_files()
                result = finish(session, engine, execution, folder, facts, budget, weights, stage, complete)
            except LargerNetwork as error:
                dispatcher.on_message(str(error))
                recipe, saved, previous = with_network(recipe, data_facts, error.choice.network), None, None
                spent = _again(folder, engine)
                continue
            except BaseException as error:
                dispatcher.on_error(error)
                raise
            dispatcher.on_end(result)
            return result


def _again(folder: RunFolder, engine: Engine) -> float:
    """Make room for a run that starts again in the same folder; returns the seconds that were trained so far."""
    # a checkpoint does not fit the recipe that is written next
    remove_all(folder.checkpoints)
    return engine.counters.seconds


@contextlib.contextmanager
def _global_settings_restored() -> Iterator[None]:
    """Restores the number of threads and the choice of kernels of the calling program."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn
    kernels = cudnn.deterministic, cudnn.benchmark
    try:
        yield
    finally:
        set_threads(threads)
        if deterministic != torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(deterministic)
        cudnn.deterministic, cudnn.benchmark = kernels


def _receipt(
    session: Session,
    recipe: Recipe,
    budget: Budget,
    *,
    tune: bool,
    cache_dir: Path,
    used: float,
    on_message: Callable[[str], None],
) -> Receipt:
    """The trial's report; used: seconds of the time budget."""
    device = session.device
    if not tune:
        # the recipe of a resumed run is resolved: plain_execution reads it
        return Receipt(execution=plain_execution(recipe), source="off")
    names = {
        "device": device_name(device),
        "torch": torch.__version__,
        "model": {**to_dict(recipe.model), **session.start.fingerprint},
        "size": session.data.preprocess.size,
        "channels": session.data.preprocess.channels,
        "batch": trial_batch_size(recipe),
        "augment": to_dict(recipe.augment),
        "optimizer": to_dict(recipe.optimizer),
        "fixed": [getattr(recipe, name) for name in measured_fields()],
        "micro_batch": recipe.micro_batch_size,
        # whether compiling is worth its cost depends on the length of the run, to an order of magnitude
        "magnitude": round(math.log10(max(1, recipe.epochs) * len(session.data.train_indices))),
    }
    path, aim = receipt_path(cache_dir, names), aim_for(session, budget)
    return stored_receipt(path) or run_trial(
        recipe,
        session.trial_step,
        device=device,
        expected_steps=recipe.epochs * len(session.batches) if aim is None else aim.first_steps(),
        planned_seconds=None if budget.within_seconds is None else max(0.0, budget.within_seconds - used),
        path=path,
        on_message=on_message,
    )


def _resolved(recipe: Recipe, execution: ExecutionConfig) -> Recipe:
    return dataclasses.replace(recipe, **{option.field: getattr(execution, option.field) for option in OPTIONS})
