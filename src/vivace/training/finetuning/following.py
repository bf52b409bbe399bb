"""What the training loop trains after the head of a network is solved: nothing, its last stages, or all of it."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vivace.errors import ConfigError
from vivace.hardware import supported_precisions
from vivace.models.cut import Cut, find_cut
from vivace.training.execution import plain_values
from vivace.training.finetuning.features import FrozenFeatures, memory_for_maps
from vivace.training.finetuning.last_stages import LastStages
from vivace.training.loop.session import Session
from vivace.training.recipes.recipe import FinetuneConfig, Recipe
from vivace.training.tuning.tune import plain_execution

__all__ = ["begin_last", "cut_of", "what_follows", "whole_network"]

# the whole network is trained where a time budget leaves room for so many epochs, or, of many images, for so many steps
MIN_EPOCHS, WHOLE_STEPS = 6, 300
# the last stages are trained where it leaves room for so many epochs and so many steps: the first steps harm the solved
# head, later ones make up for it
MIN_PASSES, MIN_STEPS = 1.0, 40
# beyond this many times the recipe's own epochs they only learn their maps by heart: the run ends before its budget
MAX_LENGTH = 5
# epochs of the whole network with a time budget, or without a head that can be solved; the budget decides how many
EPOCHS = 8
# with less left nothing is timed, which takes seconds itself
MIN_SECONDS = 8.0
# the bundle and the last validation, s
SECONDS_AFTER = 3.0
NUM_TIMED = 8
# of the time that is left, the part for views beyond those of the head
VIEWS_FRACTION = 0.3
# maps are kept as bf16
BYTES_PER_VALUE = 2
# of the free disk, the part that maps may take
MAX_DISK_FRACTION = 0.25
# the head's answers are divided by this before its network is trained: the solved one is surer than the softened
# targets are, and would be pulled down first
SOFTER = 2.5


def cut_of(session: Session, cache_dir: Path) -> Cut | None:
    """Where the network is cut if its last stages may be trained; None: they are not, or it can't be.

    Raises ConfigError where the recipe asks for last stages that can't be trained.
    """
    recipe = session.recipe
    if recipe.finetune.trains == "whole" or recipe.epochs == 0:
        return None
    reason = _reason_against(session)
    if reason is None:
        data = session.data
        count = recipe.finetune.views * len(data.train_indices) + data.num_val + data.num_test
        num_bytes = memory_for_maps() + MAX_DISK_FRACTION * _free_disk(cache_dir)
        cut = find_cut(
            session.model,
            session.sample_images(2),
            after=recipe.finetune.cut,
            max_values=int(num_bytes / BYTES_PER_VALUE / count),
        )
        if cut is not None:
            return cut
        where = "" if recipe.finetune.cut is None else f" after {recipe.finetune.cut}"
        reason = f"{recipe.model.name} can't be cut in two{where}, or what its front gives does not fit into memory"
    if recipe.finetune.trains == "last" or recipe.finetune.cut is not None:
        raise ConfigError(
            f"the last stages can't be trained: {reason}. Set finetune.trains=whole and leave finetune.cut out, or set "
            "epochs=0 for the head alone."
        )
    return None


def _reason_against(session: Session) -> str | None:
    """Why last stages can't be trained on maps; None: they can."""
    recipe = session.recipe
    if session.device.type != "cpu":
        return f"a {session.device.type} device trains the whole network"
    if recipe.distill.teacher is not None:
        return "a teacher answers to images, not to maps"
    if recipe.fake_quant:
        return "the whole network has to learn to be rounded"
    return None


def _free_disk(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def whole_network(recipe: Recipe, *, with_head: bool = True) -> Recipe:
    """The recipe that trains the whole network, at least EPOCHS long; the head is solved before, or trained with it."""
    finetune = dataclasses.replace(recipe.finetune, trains="whole", cut=None) if with_head else FinetuneConfig()
    return dataclasses.replace(recipe, epochs=max(recipe.epochs, EPOCHS), finetune=finetune)


def what_follows(
    session: Session, features: FrozenFeatures, left: Callable[[], float], on_message: Callable[[str], None]
) -> Recipe:
    """The recipe with the epochs that follow the head, for which the session is prepared.

    Without a time budget these are the recipe's own. With one there are some if there is time for them, by steps that
    are timed; how long they last is the plan's matter. left: seconds of the budget; infinite without one.
    """
    recipe = session.recipe
    if recipe.epochs == 0:
        return recipe
    part = LastStages(session, features) if features.cut is not None else None
    if math.isinf(left()):
        if part is None:
            return _train_whole(session, recipe)
        return _train_last(session, part, recipe.finetune.views, on_message)
    if left() < MIN_SECONDS:
        on_message(f"the head alone is trained: {max(0.0, left()):,.0f} s are left of the time budget")
        return dataclasses.replace(recipe, epochs=0)
    num_images = len(session.data.train_indices)
    of_part = math.inf if part is None else _seconds_per_image(session, part)
    of_whole = math.inf
    if recipe.finetune.trains != "last" and (part is None or _may_suffice(left(), session, of_part, part)):
        of_whole = _seconds_per_image(session)
    if left() > _least_of_whole(session) * of_whole:
        return _train_whole(session, whole_network(recipe))
    seconds = left() - SECONDS_AFTER
    least = _least(MIN_PASSES, session)
    if part is not None and seconds > least * of_part:
        per_view = num_images / features.images_per_second
        views = min(recipe.finetune.views, part.num_views_of_head + int(VIEWS_FRACTION * seconds / per_view))
        if seconds > MAX_LENGTH * recipe.epochs * num_images * of_part:
            part.epochs = MAX_LENGTH * recipe.epochs
            on_message(f"the run ends before its time budget, after {part.epochs} epochs: more would only repeat them")
        return _train_last(session, part, views, on_message)
    what = "the whole network is" if part is None else "the last stages are"
    needed = _least_of_whole(session) * of_whole if part is None else least * of_part
    needed += SECONDS_AFTER
    on_message(
        f"{what} not trained: that takes about {needed:,.0f} s, and {left():,.0f} s are left. Give a longer `within`"
    )
    return dataclasses.replace(recipe, epochs=0)


def _least(epochs: float, session: Session) -> float:
    """Images that a stage has to be trained on at least."""
    count = len(session.data.train_indices)
    return max(epochs * count, MIN_STEPS * min(session.recipe.batch_size, count))


def _least_of_whole(session: Session) -> float:
    """Images that the whole network has to be trained on at least: of few images some epochs, of many some steps."""
    return min(_least(MIN_EPOCHS, session), WHOLE_STEPS * session.recipe.batch_size)


def _may_suffice(seconds: float, session: Session, of_part: float, part: LastStages) -> bool:
    """Whether a time budget may have room for the whole network, whose step is timed then, which takes seconds.

    It takes about as many times as long as it has operations.
    """
    return seconds > _least_of_whole(session) * of_part / part.cut.fraction / 2


def _train_whole(session: Session, recipe: Recipe) -> Recipe:
    session.answers = None
    return dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, trains="whole"))


def _train_last(session: Session, part: LastStages, views: int, on_message: Callable[[str], None]) -> Recipe:
    """The recipe that trains the last stages on maps of `views` views, for which the session is prepared."""
    recipe = _computed_as(session)
    part.add_views(views)
    _soften(session.model, part.features.head_name)
    begin_last(session, part)
    on_message(
        f"training the last stages ({100 * part.cut.fraction:.0f} % of the operations, after {part.cut.name}) on "
        f"{part.num_views} views of each image; accuracy falls at first"
    )
    if session.own_augmentation is not None:
        on_message(
            f"your augmentation is applied once, to {part.num_crops} of these views; finetune.trains=whole applies it "
            "in every batch"
        )
    finetune = dataclasses.replace(
        recipe.finetune, trains="last", cut=part.cut.name, views=part.num_views, runtime=part.features.library
    )
    return dataclasses.replace(recipe, epochs=part.epochs or recipe.epochs, finetune=finetune)


def begin_last(session: Session, part: LastStages) -> None:
    """Let the session train the part: the weights of the front are frozen."""
    for name in part.cut.units[: part.cut.index]:
        session.model.get_submodule(name).requires_grad_(False)
    session.part, session.answers = part, part.logits


def _computed_as(session: Session) -> Recipe:
    """The recipe with what is open about how a step is computed decided, without a trial."""
    recipe, chosen = session.recipe, plain_values(session.recipe)
    if recipe.precision == "auto" and "bf16" in supported_precisions(session.device):
        chosen["precision"] = "bf16"
    if recipe.channels_last == "auto":
        chosen["channels_last"] = True
    return dataclasses.replace(recipe, **{name: value for name, value in chosen.items() if name != "threads"})


@torch.no_grad()
def _soften(model: nn.Module, head_name: str) -> None:
    layer = model.get_submodule(head_name)
    assert isinstance(layer, nn.Linear)
    layer.weight.div_(SOFTER)
    layer.bias.div_(SOFTER)


def _seconds_per_image(session: Session, part: LastStages | None = None) -> float:
    """Of a training step, roughly: a small step, on a copy, after one to warm up."""
    if part is not None:
        part.add_views(part.num_views_of_head)
    # of the last stages a whole batch: a small one takes nearly as long
    count = NUM_TIMED if part is None else session.recipe.batch_size
    before, session.part = session.part, part
    try:
        step = session.trial_step(plain_execution(_computed_as(session)), count)
        step()
        began = time.monotonic()
        step()
        return (time.monotonic() - began) / min(count, session.recipe.batch_size, len(session.data.train_indices))
    finally:
        session.part = before
