"""The stages of fine-tuning before the training loop: each leaves a network that can be used.

(1) The head, solved on features of the frozen network. The training loop, which trains the whole network, follows where
the budget has room for it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vivace.metrics.accuracy import topk_accuracy
from vivace.notices import warn
from vivace.training.finetuning.features import FrozenFeatures
from vivace.training.finetuning.head import fit_head
from vivace.training.loop.engine import Engine
from vivace.training.loop.plan import Budget
from vivace.training.loop.session import Session
from vivace.training.loop.validation import Trained, Validation
from vivace.training.recipes.recipe import FinetuneConfig, Recipe
from vivace.training.techniques.losses import class_weights
from vivace.training.tuning.tune import plain_execution

__all__ = ["HeadStage", "first_stages", "keep_better"]

# what follows the features in a run: the head, its validation, the bundle
SECONDS_AFTER = 4.0
# a second view must fit into what is left this many times
MARGIN = 1.3
# the whole network is trained where a time budget leaves room for so many epochs
MIN_EPOCHS = 2
EPOCHS = 8
# with less left nothing is timed, which takes seconds itself
MIN_SECONDS = 20.0
NUM_TIMED = 8


@dataclass(frozen=True, kw_only=True)
class HeadStage:
    """What the stage of the head ended with."""

    trained: Trained
    answers: Callable[[nn.Module, str], tuple[Tensor, Tensor]]
    """As `Session.answers`."""
    weights: Mapping[str, Tensor]
    """A copy of the state dict."""


def first_stages(
    session: Session,
    budget: Budget,
    clock: Callable[[], float],
    *,
    cache_dir: Path,
    on_message: Callable[[str], None],
) -> tuple[HeadStage | None, Recipe]:
    """(what the stage of the head ended with, the recipe with the epochs that follow), also set in the session.

    clock: seconds of the time budget that are used. None for a network without a head that can be solved, with a
    warning.
    """
    if session.start.line:
        on_message(session.start.line)

    def left() -> float:
        return math.inf if budget.within_seconds is None else budget.within_seconds - clock()

    stage = _solve_head(session, cache_dir=cache_dir, seconds_left=left, on_message=on_message)
    session.recipe = _with_whole_network(session, stage, left, on_message)
    return stage, session.recipe


def _solve_head(
    session: Session,
    *,
    cache_dir: Path,
    seconds_left: Callable[[], float],
    on_message: Callable[[str], None],
) -> HeadStage | None:
    """Solve the head of the session's network in place; afterwards the session validates by the frozen features.

    seconds_left: of the time budget; infinite without one. None, with a warning, where the network has no head that can
    be solved.
    """
    began = time.monotonic()
    try:
        features = FrozenFeatures(session.model, session.normalize, session.data, session.device, cache_dir)
    except ValueError as error:
        warn(f"the head of {session.recipe.model.name} can't be solved on its features: {error}")
        return None
    count = len(session.data.train_indices)
    on_message(f"features of {count:,} training images by the frozen network ({features.runtime})")
    views = [features.of("train")]
    seconds_per_view = features.seconds
    features.of("val")
    test_seconds = session.data.num_test * seconds_per_view / count
    left = seconds_left() - SECONDS_AFTER - test_seconds
    # where mirrored images are other images, such as digits, the recipe does not flip them
    mirrors = session.recipe.finetune.views > 1 and session.recipe.augment.flip != "none"
    if mirrors and left > MARGIN * seconds_per_view:
        views.append(features.of("train", mirrored=True))
    head = fit_head(
        torch.cat(views),
        features.labels("train").repeat(len(views)),
        session.num_classes,
        images_N=torch.arange(count).repeat(len(views)),
        class_weights_K=_class_weights(session),
        seed=session.recipe.seed,
    )
    layer = session.model.get_submodule(features.head_name)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(head.weight_KD)
        layer.bias.copy_(head.bias_K)
    session.answers = features.logits
    logits, labels = features.logits(session.model, "val")
    validation = Validation(
        loss=float(nn.functional.cross_entropy(logits, labels)), top1=topk_accuracy(logits, labels, k=1)
    )
    rate = features.num_images / max(features.seconds, 1e-9)
    on_message(
        f"the head: logistic regression on {layer.in_features:,} features, {len(views)} "
        f"{'view' if len(views) == 1 else 'views'} of each image, {rate:,.0f} img/s"
    )
    return HeadStage(
        trained=Trained(
            validation=validation,
            loss=head.loss,
            top1=head.top1,
            num_images=count * len(views),
            seconds=time.monotonic() - began,
        ),
        answers=features.logits,
        weights={name: tensor.clone() for name, tensor in session.model.state_dict().items()},
    )


def _class_weights(session: Session) -> Tensor | None:
    """Those of the recipe; where it balances classes by sampling, weights do the same."""
    if not session.recipe.data.balanced_sampling:
        return session.weights_K
    return class_weights(session.data.cache.splits["train"].labels_N[session.data.train_indices], session.num_classes)


def _with_whole_network(
    session: Session, stage: HeadStage | None, left: Callable[[], float], on_message: Callable[[str], None]
) -> Recipe:
    """The recipe with the epochs that follow the stage of the head.

    Without a time budget these are the recipe's own. With one there are some if there is time for MIN_EPOCHS, by a step
    that is timed; how long they last is the plan's matter.
    """
    recipe = session.recipe
    if stage is None:
        # the loop has to train the head too
        return dataclasses.replace(recipe, epochs=max(recipe.epochs, EPOCHS), finetune=FinetuneConfig())
    if math.isinf(left()):
        session.answers = session.answers if recipe.epochs == 0 else None
        return recipe
    if left() < MIN_SECONDS:
        return dataclasses.replace(recipe, epochs=0)
    seconds = _seconds_per_image(session) * len(session.data.train_indices)
    if left() < MIN_EPOCHS * seconds:
        on_message(
            f"the whole network is not trained: an epoch takes about {seconds:,.0f} s, and {left():,.0f} s are left"
        )
        return dataclasses.replace(recipe, epochs=0)
    session.answers = None
    return dataclasses.replace(recipe, epochs=max(recipe.epochs, EPOCHS))


def _seconds_per_image(session: Session) -> float:
    """Of a training step of the whole network, roughly: a small step, on a copy, after one to warm up."""
    step = session.trial_step(plain_execution(session.recipe), NUM_TIMED)
    step()
    began = time.monotonic()
    step()
    return (time.monotonic() - began) / min(NUM_TIMED, session.recipe.batch_size)


def keep_better(session: Session, engine: Engine, stage: HeadStage, on_message: Callable[[str], None]) -> None:
    """Give the network back the weights of the stage if training it as a whole has not improved validation."""
    later = engine.counters.history[-1]
    if later["step"] == 0 or later["val_top1"] >= stage.trained.validation.top1:
        return
    before, after = (100 * top1 for top1 in (stage.trained.validation.top1, later["val_top1"]))
    on_message(f"the head alone is kept: {before:.1f} % on validation, {after:.1f} % after training the whole network")
    engine.state.averaged_model.load_state_dict(stage.weights)
    engine.saved_epoch = 0.0
    session.answers = stage.answers
