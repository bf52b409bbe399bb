"""vivace.train: from data and a recipe to a bundle, a run folder and a TrainResult."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vivace.cachedir import default_cache_dir
from vivace.config import from_dict, override, to_dict
from vivace.data.audit import write_left_out
from vivace.data.cache import Cache, open_cache
from vivace.data.describe import report
from vivace.data.kept import source_in_cache
from vivace.data.place import AnyData
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import ConfigError, DataError, first_line
from vivace.hardware import has_nvidia_driver, process_seconds
from vivace.notices import collected_warnings, warn
from vivace.training.display import LiveDisplay, counting_bar
from vivace.training.facts import measure_facts
from vivace.training.implied import with_implied
from vivace.training.recipe import Recipe
from vivace.training.recipes import DataFacts, resolve_recipe
from vivace.training.result import TrainResult
from vivace.training.runfolder import RunFolder, check_run_place, check_same_recipe, new_run_path, newest_run, runs_of

if TYPE_CHECKING:
    from vivace.training.distill import Teacher

__all__ = ["TrainResult", "parse_duration", "train"]

DEFAULT_RECIPE = "fast"


def parse_duration(text: str | float) -> float:
    """Seconds of "90s", "10m", "1.5h" or a plain number of seconds. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", str(text))
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"--within is no duration: got {text!r}. Write 90s, 10m or 1.5h.")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


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
    measure_test: bool = True,
    teacher: Teacher | None = None,
    quiet: bool = False,
    clock: Callable[[], float] | None = None,
) -> TrainResult:
    """Train a classifier on `data` and write its bundle.

    data: a data set's name, a folder of class folders, a folder with train/ and val/ or test/, a manifest
    (.csv, .jsonl, .parquet) or an archive, or a `vivace.Data` of one, which says how it is opened. recipe: a name, a
    YAML file or a Recipe. overrides: dotted fields of the recipe, such as {"optimizer.lr": 0.1}. The contract is
    `epochs`, `within` (wall-clock, such as "10m", from the call to the saved bundle) and `target` (validation accuracy,
    (0, 1]) at which it stops. measure_test: look at the test split, once, at the end. quiet: nothing is shown but
    warnings, which `TrainResult.warnings` has too, and what DATA was understood to be if anything was left out of it.
    teacher: a faster form of the network that `distill.teacher` names, which answers in its place: pixels, uint8
    [B, size, size, C] at the size of its bundle, → probabilities, float32 [B, K].

    Raises the errors of vivace.errors: InputError before any work, TrainingError and Interrupted during it.
    """
    if clock is None:
        began = process_seconds()
        clock = lambda: process_seconds() - began  # noqa: E731
    within_seconds = None if within is None else parse_duration(within)
    if epochs is not None and within_seconds is not None:
        raise ConfigError(f"two contracts: got epochs {epochs} and within {within!r}. Give one of them.")
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target is out of range: got {target!r}. Give an accuracy in (0, 1].")
    changes = dict(overrides or {})
    if epochs is not None:
        changes["epochs"] = epochs
    if run == "":
        raise ConfigError("run is an empty text: got ''. Name a folder, '.' for this one.")
    if run is not None and not resume:
        check_run_place(Path(run), data)
    # decoding is processes and files, importing torch is one thread: they overlap
    importing = threading.Thread(target=_import_torch, daemon=True)
    importing.start()

    cache_path = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    source = _open_source(data, run, resume, cache_path)
    # a GPU has time for the larger network in any contract
    on_cpu = device == "cpu" or (device == "auto" and not has_nvidia_driver())
    folder, resolved = _open_run(source, recipe, changes, run, resume, within_seconds if on_cpu else None)
    report(source, resolved.data.val_fraction, quiet=quiet)
    display = LiveDisplay(epochs=str(resolved.epochs) if within_seconds is None else "?", quiet=quiet)
    try:
        began_with = folder.saved_facts()["data"]["fingerprint"] if resume else None
        cache = _open_cache(source, resolved, cache_path, num_workers, quiet, began_with)
        if cache.audit.quarantined:
            write_left_out(cache.audit, folder.claim("left_out.csv"))
        if "data.val_fraction" in changes and "val" in cache.splits:
            num_val = len(cache.splits["val"].labels_N)
            warn(f"val_fraction is not used: the data has a validation split, of {num_val:,} images")
        # two threads that import modules which import each other may see half of one
        importing.join()
        from vivace.training.session import Contract, run_training

        return run_training(
            folder,
            resolved,
            cache,
            source_name=source.name,
            contract=Contract(within_seconds=within_seconds, target=target),
            resume=resume,
            device_choice=device,
            tune=tune,
            measure_test=measure_test,
            teacher=teacher,
            cache_dir=cache_path,
            display=display,
            clock=clock,
        )
    finally:
        folder.discard_if_unused()
        folder.release()


def _import_torch() -> None:
    # torch's optimizers import its compiler when the first one is made, which takes as long as torch itself
    import torch._dynamo  # noqa: F401


def _open_source(data: AnyData, run: str | Path | None, resume: bool, cache_dir: Path) -> DataSource:
    """The data source, or that of the images which the run to be resumed began with: files may be gone by then."""
    try:
        return open_source(data, cache_dir=cache_dir)
    except DataError as error:
        if not resume:
            raise
        # what a run of these data is called by, whether they were a folder, a manifest or an archive
        path = Path(str(data))
        names = (path.name, path.stem, path.name.split(".")[0])
        place = Path(run) if run is not None else next(iter(runs_of(Path("runs"), names)), None)
        if place is None:
            raise
        folder = RunFolder(place, resume=True)
        try:
            facts, recipe = folder.saved_facts()["data"], folder.saved_recipe()
        finally:
            folder.release()
        if facts["name"] not in names:
            raise
        source = source_in_cache(facts["fingerprint"], _preprocess(recipe), cache_dir)
        cause = first_line(error).partition(". ")[0][:250]
        if source is None:
            raise DataError(
                f"{cause}; nor are the images that the run began with whole in the cache: {cache_dir}. Restore the "
                "data, or start a new run with another --run."
            ) from None
        warn(f"the data can't be opened any more: {cause}")
        return source


def _open_run(
    source: DataSource,
    recipe: str | Path | Recipe,
    changes: dict[str, Any],
    run: str | Path | None,
    resume: bool,
    seconds: float | None,
) -> tuple[RunFolder, Recipe]:
    """The locked run folder, and the recipe with the changes made and everything about the data resolved."""
    runs = Path("runs")
    facts = dataclasses.replace(measure_facts(source), seconds=seconds)
    if resume:
        folder = RunFolder(Path(run) if run else newest_run(runs, source.name), resume=True)
        try:
            return folder, _resumed_recipe(folder, recipe, changes, facts)
        except BaseException:
            folder.release()
            raise
    size = override(Recipe(), {"data.size": changes.get("data.size")}).data.size
    if size is not None:
        facts = dataclasses.replace(facts, side=size)
    resolved = resolve_recipe(recipe, facts)
    resolved = _with_sizes(override(resolved, with_implied(resolved, changes)), facts.side, source)
    folder = RunFolder(Path(run) if run else new_run_path(runs, f"{source.name}-{resolved.name}"), resume=False)
    return folder, resolved


def _resumed_recipe(
    folder: RunFolder, recipe: str | Path | Recipe, changes: Mapping[str, Any], facts: DataFacts
) -> Recipe:
    """The run's own recipe with the changes that a resumed run may have. Raises CheckpointError for others."""
    saved = folder.saved_recipe()
    if recipe != DEFAULT_RECIPE:
        # the network follows from the contract that the run began with
        began_with = folder.saved_facts()["contract"]["within_seconds"]
        asked = resolve_recipe(recipe, dataclasses.replace(facts, seconds=began_with))
        if isinstance(recipe, str) and recipe == asked.name:
            asked = dataclasses.replace(saved, name=recipe)
        check_same_recipe(saved, from_dict(Recipe, _merged(to_dict(saved), to_dict(asked))))
    within = folder.saved_facts()["contract"]["within_seconds"]
    if within is not None and "epochs" in changes:
        raise ConfigError(
            f"two contracts: the run was begun within {within:g} s, and got epochs {changes['epochs']!r}. "
            "Leave --epochs out, or start a new run with another --run."
        )
    asked = override(saved, changes)
    check_same_recipe(saved, asked)
    return asked


def _merged(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """`saved` with all that `asked` states: what is None or "auto" there was decided when the run began."""
    merged = dict(saved)
    for key, value in asked.items():
        if isinstance(value, Mapping) and isinstance(saved.get(key), Mapping):
            merged[key] = _merged(saved[key], value)
        elif value is not None and value != "auto":
            merged[key] = value
    return merged


def _with_sizes(recipe: Recipe, side: int, source: DataSource) -> Recipe:
    """The recipe with size, store_size, channels and the network's name filled in."""
    data = recipe.data
    size = data.size
    if size is None and recipe.model.pretrained:
        from vivace.models.zoo import pretrained_stats

        stats = pretrained_stats(recipe.model.name)
        size = stats[2] if stats else None
    if size is None:
        size = 32 if side <= 40 else 64 if side <= 80 else 128
    crops = recipe.augment.random_resized_crop is not None
    # of a whole image nothing may be cut off
    store_size = data.store_size or (round(1.15 * size) if crops and data.fit == "crop" else size)
    name = recipe.model.name
    if name == "auto":
        name = "fast_cnn" if size <= 64 else "fast_photo"
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(data, size=size, store_size=store_size, channels=data.channels or source.channels),
        model=dataclasses.replace(recipe.model, name=name),
    )


def stored_as(source: DataSource, recipe: str | Path | Recipe = DEFAULT_RECIPE, size: int | None = None) -> Preprocess:
    """How `train` stores the images of a source by default; size: side of the network's input, px."""
    facts = measure_facts(source)
    facts = facts if size is None else dataclasses.replace(facts, side=size)
    resolved = override(resolve_recipe(recipe, facts), {"data.size": size} if size else {})
    return _preprocess(_with_sizes(resolved, facts.side, source))


def _preprocess(recipe: Recipe) -> Preprocess:
    data = recipe.data
    assert data.size is not None
    assert data.store_size is not None
    channels: Literal[1, 3] = data.channels or 3
    return Preprocess(
        size=data.size,
        store_size=data.store_size,
        channels=channels,
        fit=data.fit,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        max_pixels=data.max_pixels,
    )


def _open_cache(
    source: DataSource,
    recipe: Recipe,
    cache_dir: Path,
    num_workers: int | None,
    quiet: bool,
    fingerprint: str | None,
) -> Cache:
    progress, close = counting_bar("decoding", quiet=quiet)
    try:
        return open_cache(
            source,
            _preprocess(recipe),
            cache_dir=cache_dir,
            on_bad_image=recipe.data.on_bad_image,
            allow_leaks=recipe.data.allow_leaks,
            num_workers=num_workers,
            fingerprint=fingerprint,
            progress=progress,
        )
    finally:
        close()
