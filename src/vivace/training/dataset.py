"""How a run opens its data: the source, the size and channels of the input, the cache (no torch here)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vivace.bars import CountingBar
from vivace.bundle import load_bundle
from vivace.config import override
from vivace.data.caching.cache import Cache, open_cache
from vivace.data.caching.kept import source_in_cache
from vivace.data.caching.stored import Pixels
from vivace.data.config import DataConfig
from vivace.data.place import AnyData, Data
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import BundleError, DataError, VivaceError, first_line
from vivace.models.pretrained import pretrained_stats
from vivace.notices import warn
from vivace.training.folder.finding import run_to_resume, runs_of
from vivace.training.folder.runfolder import RunFolder
from vivace.training.recipes.facts import measure_facts
from vivace.training.recipes.named import DEFAULT_RECIPE, read_recipe, resolve_recipe
from vivace.training.recipes.recipe import Recipe

if TYPE_CHECKING:
    from vivace.training.techniques.distill import Teacher

__all__ = ["all_grey", "as_told", "open_run_cache", "open_run_source", "stored_as", "with_sizes"]

# fields of a recipe's data that say how they are opened, as those of `Data` do
TOLD = ("multi_label", "pixels")
# images per read
BLOCK = 256


def open_run_source(
    data: AnyData, run: str | Path | None, resume: bool, cache_dir: Path, *, quiet: bool = True
) -> DataSource:
    """The data source; if it can't be opened, the cached images that the run to be resumed began with.

    quiet: no progress is shown of an object that has to be read.
    """
    try:
        with CountingBar("reading", quiet=quiet) as bar:
            return open_source(data, cache_dir=cache_dir, progress=bar.progress)
    except DataError as error:
        if not resume or Data.of(data).is_object:
            raise
        # names that runs on these data may have, for a folder, a manifest or an archive
        path = Path(str(data))
        names = (path.name, path.stem, path.name.split(".")[0])
        runs = Path("runs")
        if run is None and not runs_of(runs, names):
            raise
        place = Path(run) if run is not None else run_to_resume(runs, names)
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
                "data, or start a new run with another `run`."
            ) from None
        warn(f"the data can't be opened any more: {cause}")
        return source


def with_sizes(recipe: Recipe, side: int, source: DataSource) -> Recipe:
    """The recipe with size, store_size, channels and the network's name filled in.

    With weights to start from also with their statistics: a resumed run is to see the same pixels.
    """
    data = _with_stats(recipe, _pixels_of(recipe, source), channels=recipe.data.channels or source.channels)
    size = data.size
    if size is None:
        size = 32 if side <= 40 else 64 if side <= 80 else 128
    crops = recipe.augment.random_resized_crop is not None
    # squash and pad keep the whole image: no margin for crops
    store_size = data.store_size or (round(1.15 * size) if crops and data.fit == "crop" else size)
    name = recipe.model.name
    if name == "auto":
        name = "fast_cnn" if size <= 64 else "fast_photo"
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            data,
            size=size,
            store_size=store_size,
            channels=data.channels or _told_channels(source),
            pixels=_pixels_of(recipe, source),
        ),
        model=dataclasses.replace(recipe.model, name=name),
    )


def _with_stats(recipe: Recipe, pixels: str | None, *, channels: int | None) -> DataConfig:
    """How images are read, with what the weights that it starts from ask for where the recipe does not say."""
    data, model = recipe.data, recipe.model
    if not model.pretrained and not model.weights:
        return data
    if model.weights and (preprocess := _of_bundle(Path(model.weights))) is not None:
        # the size is the data's: weights of a bundle are often for other images
        mean, std, interpolation, size = preprocess.mean, preprocess.std, preprocess.interpolation, data.size
    else:
        if (stats := pretrained_stats(model.name)) is None:
            return data
        mean, std, size, interpolation = stats
        size = data.size or (size if model.pretrained else None)
    # images of other scales have statistics of their own
    if data.mean is None and len(mean) == (channels or 3) and pixels in (None, "uint8"):
        data = dataclasses.replace(data, mean=mean, std=std)
    return dataclasses.replace(data, size=size, interpolation=data.interpolation or interpolation)


def _of_bundle(path: Path) -> Preprocess | None:
    """What the images of a bundle looked like; None if the path is no bundle's or run's folder."""
    if not path.is_dir():
        return None
    try:
        return load_bundle(path).preprocess
    except BundleError:
        # what is wrong with it is said when its weights are read
        return None


def _told_channels(source: DataSource) -> int | None:
    # for pictures in files, only the pixels can tell whether they are grey
    return None if source.channels == 3 and source.pixels == "uint8" else source.channels


def _pixels_of(recipe: Recipe, source: DataSource) -> Literal["uint8", "uint16", "float32"] | None:
    # what goes without saying is not written into recipes
    return recipe.data.pixels or (None if source.pixels == "uint8" else source.pixels)


def stored_as(
    source: DataSource,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    size: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Preprocess:
    """The Preprocess with which `train` stores the images of a source by default.

    size: side of the input, px. changes: fields of the recipe.
    """
    facts = measure_facts(source)
    facts = facts if size is None else dataclasses.replace(facts, side=size)
    resolved = override(resolve_recipe(recipe, facts), {**({"data.size": size} if size else {}), **(changes or {})})
    return _preprocess(with_sizes(resolved, facts.side, source))


def open_run_cache(
    source: DataSource,
    recipe: Recipe,
    *,
    teacher: Teacher | None,
    cache_dir: Path,
    num_workers: int | None,
    quiet: bool,
    fingerprint: str | None,
) -> tuple[Recipe, Cache]:
    """The recipe with its channels, and the cache: with one channel if all training images are grey.

    A network trained on grey images in three channels is undefined on colours, even on a slight tint. Pretrained
    networks and teachers keep their channels. fingerprint: of the data that a resumed run began with.
    """
    open_as = partial(
        _open_cache, source, cache_dir=cache_dir, num_workers=num_workers, quiet=quiet, fingerprint=fingerprint
    )
    cache = open_as(recipe)
    if recipe.data.channels is not None or cache.preprocess.is_raw:
        return recipe, cache
    told = dataclasses.replace(recipe.data, channels=3)
    if all_grey(cache.splits["train"].images_NHWC):
        grey = _of_grey(recipe.data)
        if recipe.model.has_learnt or recipe.distill.teacher or teacher or grey is None:
            warn(
                "all training images are grey: what the network answers to images in colour means nothing. Give it "
                "grey ones"
            )
        else:
            told = grey
            warn("all training images are grey: colours will not be looked at. `data.channels=3` keeps them")
    recipe = dataclasses.replace(recipe, data=told)
    return recipe, cache if told.channels == 3 else open_as(recipe)


def _of_grey(data: DataConfig) -> DataConfig | None:
    """The same for one channel; None: it has statistics of three, which differ."""
    statistics = {"mean": data.mean, "std": data.std}
    if any(values is not None and len(set(values)) > 1 for values in statistics.values()):
        return None
    ones: dict[str, Any] = {name: None if values is None else values[:1] for name, values in statistics.items()}
    return dataclasses.replace(data, channels=1, **ones)


def _open_cache(
    source: DataSource,
    recipe: Recipe,
    *,
    cache_dir: Path,
    num_workers: int | None,
    quiet: bool,
    fingerprint: str | None,
) -> Cache:
    with CountingBar("decoding", quiet=quiet) as bar:
        return open_cache(
            source,
            _preprocess(recipe),
            cache_dir=cache_dir,
            on_bad_image=recipe.data.on_bad_image,
            allow_leaks=recipe.data.allow_leaks,
            num_workers=num_workers,
            fingerprint=fingerprint,
            progress=bar.progress,
        )


def _preprocess(recipe: Recipe) -> Preprocess:
    data = recipe.data
    assert data.size is not None
    assert data.store_size is not None
    channels = data.channels or 3
    return Preprocess(
        size=data.size,
        store_size=data.store_size,
        channels=channels,
        pixels=data.pixels or "uint8",
        fit=data.fit,
        interpolation=data.interpolation or "bicubic",
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        max_pixels=data.max_pixels,
    )


def all_grey(images_NHWC: Pixels) -> bool:
    """Whether all pixels of images [N, H, W, 3] are grey; stops at the first block with a colour."""
    for start in range(0, len(images_NHWC), BLOCK):
        block = np.asarray(images_NHWC[start : start + BLOCK])
        if (block[..., :1] != block[..., 1:]).any():
            return False
    return len(images_NHWC) > 0


def as_told(data: AnyData, recipe: Recipe, changes: dict[str, Any], resumed: str | Path | None) -> AnyData:
    """The data, opened as the recipe or the changes to it say; what the data say themselves is a change to it.

    resumed: the folder of the run that goes on, whose recipe says what the caller does not.
    """
    given, saved, is_changed = Data.of(data), None, False
    if resumed is not None:
        with contextlib.suppress(VivaceError):
            saved = read_recipe(Path(resumed) / "recipe.yaml")
    for name in TOLD:
        field, asked = f"data.{name}", getattr(recipe.data, name)
        asked = changes.get(field, asked)
        if asked is None and isinstance(saved, Recipe):
            asked = getattr(saved.data, name)
        # a text is that of the command line, whose type the recipe checks
        asked = (
            {"true": True, "false": False, "null": None}.get(asked.lower(), asked) if isinstance(asked, str) else asked
        )
        own = getattr(given, name)
        if own is not None:
            changes[field] = own
        elif asked is not None:
            given, is_changed = _with_option(given, {name: asked}), True
    return given if is_changed else data


def _with_option(data: Data, option: dict[str, Any]) -> Data:
    return dataclasses.replace(data, **option)
