"""vivace.train: from data and a recipe to a bundle, a run folder and a TrainResult."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from vivace.cachedir import default_cache_dir
from vivace.config import override, parse_duration
from vivace.data.audit import write_left_out
from vivace.data.augmentation.own import OwnAugmentation
from vivace.data.describe import report
from vivace.data.place import AnyData, Data
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import ConfigError
from vivace.hardware import has_nvidia_driver, process_seconds
from vivace.notices import collected_warnings, warn
from vivace.systems import possible_name
from vivace.training.ahead import import_timm, import_torch
from vivace.training.dataset import as_told, open_run_cache, open_run_source, with_sizes
from vivace.training.folder.continuing import says_how_to_resume
from vivace.training.folder.finding import new_run_path, run_to_resume
from vivace.training.folder.runfolder import RunFolder, check_run_place
from vivace.training.own import own_errors, passed_network, resumed_network
from vivace.training.recipes.balance import check_class_names
from vivace.training.recipes.choices import check_device_name, check_names, check_target
from vivace.training.recipes.expected import is_planned, seconds_for
from vivace.training.recipes.facts import measure_facts
from vivace.training.recipes.implied import unused_options, with_implied, with_starting_weights
from vivace.training.recipes.keywords import TrainKeywords, check_keywords, data_opened_with, recipe_changes
from vivace.training.recipes.named import DEFAULT_RECIPE, DataFacts, chosen_recipe, read_recipe, reason, resolve_recipe
from vivace.training.recipes.origin import with_origin
from vivace.training.recipes.privacy import check_private_run
from vivace.training.recipes.raw import adapted_to_raw
from vivace.training.recipes.recipe import Recipe
from vivace.training.recording.callbacks import Callback, check_callbacks
from vivace.training.recording.display import LiveDisplay
from vivace.training.recording.trackers.choose import make_trackers, parse_trackers
from vivace.training.result import TrainResult
from vivace.training.resumed import resumed_recipe
from vivace.training.stopped import says_what_is_left

if TYPE_CHECKING:
    from vivace.models.own.given import OwnNetwork
    from vivace.training.completion import Complete
    from vivace.training.techniques.distill import Teacher

__all__ = ["TrainResult", "planned_recipe", "train"]


@collected_warnings()
def train(
    data: AnyData,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    *,
    epochs: int | None = None,
    within: str | float | None = None,
    target: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    tune: bool = True,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
    cache: bool = True,
    measure_test: bool = True,
    from_scratch: bool = False,
    teacher: Teacher | None = None,
    augment: Callable[[Any], Any] | None = None,
    callbacks: Sequence[Callback] = (),
    track: str | Sequence[str] = (),
    quiet: bool = False,
    clock: Callable[[], float] | None = None,
    complete: Complete | None = None,
    **keywords: Unpack[TrainKeywords],
) -> TrainResult:
    """Train a classifier on `data` and write its bundle.

    data: the name of a data set, a folder of class folders, a folder with train/ and val/ or test/, a manifest
    (.csv, .jsonl, .parquet) or an archive; an object that holds images, such as a torch Dataset, arrays or a frame (all
    of them: `vivace.Data.where`); or a `vivace.Data`, which says how one is opened. recipe: a name, a YAML file or a
    Recipe. keywords: the options of `vivace train` for the network and the images, by name: batch_size, lr, model,
    size, on_bad_image … model: the name of a network, or one of your own: a class or function that makes a
    torch.nn.Module, an instance, or "FILE.py:NAME".
    overrides: any field of the recipe, such as {"schedule.name": "cosine"}. The budget is `epochs`, `within`
    (wall-clock, such as "10m", from the call to the saved bundle) and `target` (validation accuracy, (0, 1]) at which
    it stops; without `epochs`, `fast` is planned to reach it soon. measure_test: look at the
    test split, once, at the end. from_scratch: start from random weights, even where the recipe "auto" would start from
    pretrained ones. quiet: nothing is shown but warnings, which `TrainResult.warnings` has too, and what
    DATA was understood to be if anything was left out of it. cache: False for a data set whose items are random:
    training images are read anew for each epoch. teacher: a faster variant of the network that
    `distill.teacher` names, which answers in its place: pixels, uint8 [B, size, size, C] at the size of its bundle, →
    probabilities, float32 [B, K]. augment: an augmentation of your own, called with each batch of training images after
    those of the recipe and before mixup and cutmix: images_BCHW, uint8 tensor on the 0..255 scale, on the run's device,
    at the network's size → as many of the same shape, uint8, or float32 on that scale. torch's, numpy's and Python's
    global random numbers are seeded before each call, so that resumed runs are bitwise the same, unless it remembers
    something between calls; a resumed run needs it again. callbacks: `vivace.Callback` objects, which are told of
    steps, validations and checkpoints, and may end the run. track: experiment trackers to report to,
    by name: "mlflow", "wandb", "trackio" ("tensorboard" is always written). complete: what is done at the end of
    the run by packages above this one; `vivace.train` gives it.

    Raises the errors of vivace.errors: InputError before any work, TrainingError and Interrupted during it.
    """
    if clock is None:
        began = process_seconds()
        clock = lambda: process_seconds() - began  # noqa: E731
    within_seconds = None if within is None else parse_duration(within)
    if epochs is not None and within_seconds is not None:
        raise ConfigError(f"two budgets: got epochs {epochs} and within {within!r}. Give one of them.")
    check_target(target)
    check_keywords(keywords, PARAMETERS)
    # before another thread imports torch, as the user's code does
    network = passed_network(keywords.get("model"), resume=resume)
    if network is not None:
        # a resumed run goes on by the name that it began with
        keywords["model"] = None if resume else network.name
    changes = recipe_changes(keywords, overrides)
    if from_scratch and changes.get("model.start_from"):
        raise ConfigError("`from_scratch` can't go with `start_from`: got both. Leave one of them out.")
    if not resume:
        recipe, changes = with_origin(recipe, changes)
    recipe, changes = with_starting_weights(recipe, changes, from_scratch=from_scratch)
    own = None if augment is None else OwnAugmentation(augment)
    if own is not None:
        changes["augment.own"] = own.name
    data = data_opened_with(data, keywords)
    if cache is not True:
        data = dataclasses.replace(Data.of(data), cache=cache)
    if epochs is not None:
        changes["epochs"] = epochs
    callbacks, trackers = check_callbacks(callbacks), parse_trackers(track)
    if run == "":
        raise ConfigError("run is an empty text: got ''. Name a folder, '.' for this one.")
    if run is not None and not resume:
        check_run_place(Path(run), data)
    # a misspelling is refused before the data are opened
    check_device_name(device)
    recipe = read_recipe(recipe)
    # our own recipes name no network that does not exist
    named = recipe if isinstance(recipe, Recipe) else Recipe()
    check_names(
        changes.get("model.name", named.model.name),
        changes.get("optimizer.name", named.optimizer.name),
        own=None if network is None else network.name,
    )
    cache_path = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    # importing torch is one thread: decoding, in processes, overlaps with it
    data = as_told(data, named, changes, run if resume else None)
    importing = threading.Thread(target=import_torch, daemon=True)
    if Data.of(data).is_object:
        # its code may import torch too, and two threads that import it at once could see partial modules
        source = open_run_source(data, run, resume, cache_path, quiet=quiet)
        importing.start()
    else:
        importing.start()
        source = open_run_source(data, run, resume, cache_path)
    # a GPU is fast enough for the larger network with any time budget
    on_cpu = device == "cpu" or (device == "auto" and not has_nvidia_driver())
    facts = measure_facts(source)
    if source.anew and not resume:
        # the head and the last stages are fitted on features that are computed once
        changes.setdefault("finetune.head", False)
    chosen = None
    if recipe == "auto" and not resume:
        # enlarged images remain small ones
        sized = min(_at_size(facts, changes), facts, key=lambda facts: facts.side)
        recipe, chosen = chosen_recipe(sized), reason(sized, asked=sized is not facts)
    # a resumed run is planned if it was before
    planned = "epochs" not in changes if resume else target is not None and is_planned(recipe, changes)
    # how long a network of the user's own takes to a target, nobody knows; what accuracy is expected when is known of
    # one class an image alone
    planned = planned and network is None and source.label_sets is None
    if on_cpu:
        seconds = [within_seconds, seconds_for(target, facts) if planned and target is not None else None]
        facts = dataclasses.replace(facts, seconds=min((s for s in seconds if s is not None), default=None))
    folder, resolved, network = _open_run(source, recipe, changes, run, resume, facts, own, network)
    if resolved.model.name.startswith("timm/"):
        first = importing
        importing = threading.Thread(target=import_timm, args=(first,), daemon=True)
        importing.start()
    try:
        check_private_run(resolved, within=within_seconds, target=target, resume=resume)
        report(source, resolved.data.val_fraction, quiet=quiet)
        is_open = within_seconds is not None or (planned and not resume)
        display = LiveDisplay(epochs="?" if is_open else str(resolved.epochs), quiet=quiet)
        if chosen is not None:
            display.on_message(f"recipe: {chosen}")
        if network is not None and resolved.name == "finetune" and not resume:
            warn("finetune trains all of a network of your own, with AdamW: its head is not solved, no stage is frozen")
        if source.anew and resolved.name == "finetune" and not resume:
            warn("finetune trains all of the network: images that are read anew have no features to solve its head on")
        for name in unused_options(resolved, changes, timed=within_seconds is not None):
            warn(f"{name} is not used: the head alone is trained. Give `epochs` or `within` to train the network too")
        began_with = folder.saved_facts()["data"]["fingerprint"] if resume else None
        resolved, decoded = open_run_cache(
            source,
            resolved,
            teacher=teacher,
            cache_dir=cache_path,
            num_workers=num_workers,
            quiet=quiet,
            fingerprint=began_with,
        )
        if decoded.audit.quarantined:
            # not before: it names the file, and a run that is refused leaves none
            folder.when_begun.append(partial(write_left_out, decoded.audit, folder.path / "left_out.csv"))
        if "data.val_fraction" in changes and "val" in decoded.splits:
            num_val = len(decoded.splits["val"].labels_N)
            warn(f"val_fraction is not used: the data has a validation split, of {num_val:,} images")
        # before other imports of torch: two threads that import it at once could see partial modules
        importing.join()
        from vivace.training.loop.plan import Budget
        from vivace.training.run import run_training

        place = None if network is None else network.given or network.shown
        is_private = resolved.privacy.is_private
        left = says_what_is_left(folder.path, is_private=is_private)
        how = says_how_to_resume(data, folder.path, network=place, is_private=is_private)
        with how, left, own_errors(network):
            return run_training(
                folder,
                resolved,
                decoded,
                source_name=source.name,
                data_facts=facts,
                budget=Budget(within_seconds=within_seconds, target=target, planned=planned),
                goes_on=epochs is not None,
                resume=resume,
                device_choice=device,
                tune=tune,
                measure_test=measure_test,
                teacher=teacher,
                augment=own,
                network=network,
                complete=complete,
                cache_dir=cache_path,
                display=display,
                callbacks=(*make_trackers(trackers, on_message=display.on_message), *callbacks),
                clock=clock,
            )
    finally:
        folder.discard_if_unused()
        folder.release()


# beside the keywords
PARAMETERS = tuple(name for name in inspect.signature(train).parameters if name != "keywords")


def _open_run(
    source: DataSource,
    recipe: str | Path | Recipe,
    changes: dict[str, Any],
    run: str | Path | None,
    resume: bool,
    facts: DataFacts,
    own: OwnAugmentation | None,
    network: OwnNetwork | None,
) -> tuple[RunFolder, Recipe, OwnNetwork | None]:
    """The locked run folder, the recipe with the changes and everything about the data resolved, the network."""
    runs = Path("runs")
    if resume:
        folder = RunFolder(Path(run) if run else run_to_resume(runs, [source.name]), resume=True)
        try:
            network = resumed_network(folder, network)
            if network is not None:
                changes["model.name"] = network.name
            resumed = resumed_recipe(folder, recipe, changes, facts)
            _check_given(resumed, own)
            return folder, resumed, network
        except BaseException:
            folder.release()
            raise
    resolved = _resolved(source, recipe, changes, facts)
    check_class_names(resolved.loss.class_weights, source.classes)
    _check_given(resolved, own)
    path = Path(run) if run else new_run_path(runs, possible_name(f"{source.name}-{resolved.name}"))
    return RunFolder(path, resume=False), resolved, network


def _check_given(recipe: Recipe, own: OwnAugmentation | None) -> None:
    """Raise ConfigError for a recipe that names an augmentation of the user's, where none is given."""
    if recipe.augment.own is not None and own is None:
        raise ConfigError(
            f"the recipe has an augmentation of yours: got none, it names {recipe.augment.own!r:.200}. Give that "
            "function by `vivace.train(..., augment=function)`, or set augment.own=null in a new run."
        )


def _resolved(source: DataSource, recipe: str | Path | Recipe, changes: dict[str, Any], facts: DataFacts) -> Recipe:
    """The recipe with the changes applied and everything about the data resolved."""
    facts = _at_size(facts, changes)
    resolved = resolve_recipe(recipe, facts)
    resolved, lines = adapted_to_raw(
        with_sizes(override(resolved, with_implied(resolved, changes)), facts.side, source)
    )
    for line in lines:
        warn(line)
    return resolved


def _at_size(facts: DataFacts, changes: Mapping[str, Any]) -> DataFacts:
    """The facts at the size that is asked for, if one is: photos that are made small are small images."""
    size = override(Recipe(), {"data.size": changes.get("data.size")}).data.size
    return facts if size is None else dataclasses.replace(facts, side=size)


def planned_recipe(
    data: AnyData, recipe: str | Path | Recipe, changes: dict[str, Any], *, cache_dir: Path | None = None
) -> Recipe:
    """The recipe of `train` without a time budget, before its trial: what that decides is still "auto"."""
    source = open_source(data, cache_dir=cache_dir or default_cache_dir())
    return _resolved(source, recipe, changes, measure_facts(source))
