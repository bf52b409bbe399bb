"""The stages of fine-tuning: each leaves a network that can be used, and a later one is kept only if it is better.

(1) The head, solved on features of the frozen network. (2) The last stages, trained by the training loop on maps of the
frozen front. (3) Instead of these, the whole network, where the budget has room for it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivace.data.labelsets import class_counts
from vivace.errors import CheckpointError, ConfigError
from vivace.notices import warn
from vivace.training.finetuning.features import FrozenFeatures
from vivace.training.finetuning.following import begin_last, cut_of, what_follows, whole_network
from vivace.training.finetuning.head import fit_head
from vivace.training.finetuning.last_stages import LastStages
from vivace.training.folder.checkpoints import load_checkpoint, save_checkpoint
from vivace.training.loop.engine import Engine
from vivace.training.loop.plan import Budget
from vivace.training.loop.progress import score_of
from vivace.training.loop.restored import MALFORMED, check_weights
from vivace.training.loop.session import Session
from vivace.training.loop.validation import Trained, Validation
from vivace.training.recipes.recipe import Recipe
from vivace.training.techniques.losses import class_weights
from vivace.training.techniques.tasks import positive_weights

__all__ = [
    "Stage",
    "begin_with",
    "continue_from",
    "first_stages",
    "further_stage",
    "keep_better",
    "resume_last_stages",
]

# the weights after the stage before the loop, beside the checkpoints of a run
BEFORE = "before.safetensors"
# standard deviations of a normal variable
ONE_IN_TEN = 1.28
HEAD_ALONE, LAST_STAGES, WHOLE_NETWORK = "the head alone", "the last stages", "the whole network"

# what follows the features in a run: the head, its validation, the bundle
SECONDS_AFTER = 4.0
# a second view must fit into what is left this many times
MARGIN = 1.3


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage before the training loop ended with."""

    name: str
    trained: Trained
    answers: Callable[[nn.Module, str], tuple[Tensor, Tensor]]
    """As `Session.answers`."""
    weights: Mapping[str, Tensor]
    """A copy of the state dict."""

    def missed(self, target: float | None) -> str:
        """That it missed the target, and what comes next."""
        reached = self.trained.validation.score
        return f"{self.name} have {reached:.4g} on validation, the target is {target:g}: training {WHOLE_NETWORK}"


def first_stages(
    session: Session,
    budget: Budget,
    clock: Callable[[], float],
    *,
    cache_dir: Path,
    on_message: Callable[[str], None],
) -> tuple[Stage | None, Recipe]:
    """(what the stage of the head ended with, the recipe with the epochs that follow), also set in the session.

    clock: seconds of the time budget that are used. None for a network without a head that can be solved, with a
    warning. The session trains its last stages afterwards, or its whole network, whichever the recipe and the budget
    say.
    """
    if session.start.line:
        on_message(session.start.line)

    def left() -> float:
        return math.inf if budget.within_seconds is None else budget.within_seconds - clock()

    features = _features(session, cache_dir)
    if features is None:
        # the loop has to train the head too
        session.recipe = whole_network(session.recipe, with_head=False)
        return None, session.recipe
    stage = _solve_head(session, features, seconds_left=left, on_message=on_message)
    if budget.target is not None and stage.trained.validation.score >= budget.target:
        # nothing is left to be trained
        session.recipe = dataclasses.replace(session.recipe, epochs=0)
        return stage, session.recipe
    session.recipe = what_follows(session, features, left, on_message)
    return stage, session.recipe


def resume_last_stages(session: Session, saved: Mapping[str, Any], *, cache_dir: Path) -> None:
    """Prepare a session for going on with last stages, from the tree of a checkpoint; nothing for other runs.

    Raises CheckpointError where they can't be trained here.
    """
    finetune = session.recipe.finetune
    if not finetune.head or finetune.trains != "last":
        return
    weights = saved["model"]
    check_weights(weights, session.model.state_dict())
    # the front's maps are not in a checkpoint: they are computed anew
    session.model.load_state_dict(weights)
    features = _features(session, cache_dir)
    if features is None or features.cut is None:
        raise ValueError(f"the network has no cut after {finetune.cut}")
    part = LastStages(session, features)
    part.add_views(finetune.views)
    begin_last(session, part)


def _features(session: Session, cache_dir: Path) -> FrozenFeatures | None:
    """The frozen network, cut if its last stages may be trained; None, with a warning, where no head can be solved."""
    try:
        return FrozenFeatures(
            session.model,
            session.normalize,
            session.data,
            session.device,
            cache_dir,
            cut=cut_of(session, cache_dir),
            runtime=session.recipe.finetune.runtime,
        )
    except ValueError as error:
        if session.recipe.finetune.trains == "last":
            raise ConfigError(
                f"finetune.trains=last needs a head that can be solved, and that of {session.recipe.model.name} can't "
                f"be: {error}. Set finetune.trains=whole."
            ) from None
        warn(f"the head of {session.recipe.model.name} can't be solved on its features: {error}")
        return None


def _solve_head(
    session: Session,
    features: FrozenFeatures,
    *,
    seconds_left: Callable[[], float],
    on_message: Callable[[str], None],
) -> Stage:
    """Solve the head of the session's network in place; afterwards the session validates by the frozen features.

    seconds_left: of the time budget; infinite without one.
    """
    began = time.monotonic()
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
        views.append(features.of("train", "mirrored"))
    elif mirrors:
        on_message(f"mirror images are left out: they take {seconds_per_view:,.1f} s, and too little time is left")
    if session.recipe.loss.focal_gamma:
        on_message("the head is solved by cross-entropy: focal loss is that of the epochs")
    head = fit_head(
        torch.cat(views),
        features.labels("train").repeat(len(views)),
        session.num_classes,
        images_N=torch.arange(count).repeat(len(views)),
        class_weights_K=_class_weights(session),
        label_sets_MK=session.task.label_sets_MK,
        positive_weights_K=_positive_weights(session),
        seed=session.recipe.seed,
        seconds=max(1.0, seconds_left() - SECONDS_AFTER),
    )
    layer = session.model.get_submodule(features.head_name)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(head.weight_KD)
        layer.bias.copy_(head.bias_K)
    session.answers = features.logits
    logits, labels = features.logits(session.model, "val")
    validation = Validation.of(logits, labels, session.task)
    regression = "logistic regression" if session.task.label_sets_MK is None else "a logistic regression for each label"
    score = f"{100 * validation.score:.1f} %" + ("" if validation.map is None else " mAP")
    on_message(
        f"the head: {regression} on {layer.in_features:,} features, {len(views)} "
        f"{'view' if len(views) == 1 else 'views'} of each image, {features.images_per_second:,.0f} img/s; "
        f"{score} on validation"
    )
    return Stage(
        name=HEAD_ALONE,
        trained=Trained(
            validation=validation,
            loss=head.loss,
            score=head.top1,
            num_images=count * len(views),
            seconds=time.monotonic() - began,
        ),
        answers=features.logits,
        weights={name: tensor.clone() for name, tensor in session.model.state_dict().items()},
    )


def _class_weights(session: Session) -> Tensor | None:
    """Those of the recipe; where it balances classes by sampling, weights do the same."""
    if not session.recipe.data.balanced_sampling or session.task.label_sets_MK is not None:
        return session.weights_K
    balanced_K = class_weights(session.data.train_labels_N, session.num_classes)
    return balanced_K if session.weights_K is None else balanced_K * session.weights_K.cpu()


def _positive_weights(session: Session) -> Tensor | None:
    """Those of the recipe for labels, where images have sets of them."""
    sets = session.data.cache.label_sets
    if sets is None or session.recipe.loss.class_weights != "balanced":
        return None
    labels_N = session.data.train_labels_N
    return positive_weights(class_counts(labels_N, session.num_classes, sets), len(labels_N))


def begin_with(stage: Stage, engine: Engine) -> None:
    """Record the stage in the run, before its loop; its weights are kept beside the checkpoints."""
    engine.record(stage.trained, stage.weights)
    if engine.recipe.epochs > 0:
        save_checkpoint(engine.checkpoints / BEFORE, {"name": stage.name, "model": dict(stage.weights)})


def further_stage(session: Session, engine: Engine, budget: Budget) -> Stage | None:
    """What a run of last stages ended with, if it missed its target and the whole network is to be trained from there.

    None with a time budget, which has decided what is trained.
    """
    missed = budget.target is not None and engine.counters.target_seconds is None
    if session.part is None or not missed or budget.within_seconds is not None or engine.counters.stopped_early:
        return None
    row = engine.counters.history[-1]
    return Stage(
        name=LAST_STAGES,
        trained=Trained(
            validation=Validation.of_row(row),
            loss=row["train_loss"],
            score=row[f"train_{session.task.train_score}"],
            num_images=engine.counters.num_images_seen,
            seconds=0.0,
        ),
        answers=session.part.logits,
        weights={name: tensor.clone() for name, tensor in engine.state.averaged_model.state_dict().items()},
    )


def continue_from(session: Session, stage: Stage) -> None:
    """Let a session that trains its whole network start from the weights of a stage."""
    session.model.load_state_dict(stage.weights)


def _noise(before: float, after: float, num_images: int) -> float:
    """The loss of accuracy that chance alone exceeds in a case of ten, as if both were measured on different images."""
    mean = (before + after) / 2
    return ONE_IN_TEN * math.sqrt(2 * mean * (1 - mean) / num_images)


def keep_better(session: Session, engine: Engine, stage: Stage | None, on_message: Callable[[str], None]) -> None:
    """Give the network back the weights of the stage before the loop if validation is worse after it, beyond noise.

    stage: None in a run that was resumed, which reads them from beside its checkpoints. With early stopping the best
    weights of all were restored, those of the stage among them.
    """
    if engine.recipe.early_stopping is not None:
        return
    history = engine.counters.history
    if not history or history[0]["step"] != 0 or history[-1]["step"] == 0:
        return
    before, after = (score_of(row) for row in (history[0], history[-1]))
    if after >= before:
        return
    trained = WHOLE_NETWORK if session.part is None else LAST_STAGES
    told = f"{100 * before:.1f} % on validation, {100 * after:.1f} % after training {trained}"
    if before - after <= _noise(before, after, session.data.num_val):
        on_message(f"{told}, which {session.data.num_val:,} images can't tell apart: the latter is kept")
        return
    network = engine.state.averaged_model
    try:
        saved = load_checkpoint(engine.checkpoints / BEFORE) if stage is None else {}
        name, weights = (saved["name"], saved["model"]) if stage is None else (stage.name, stage.weights)
        check_weights(weights, network.state_dict())
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            raise ValueError("they are NaN or Inf")
    except (CheckpointError, *MALFORMED) as error:
        on_message(f"the last weights are kept, although those before the loop were better: {told}; {error}")
        return
    on_message(f"{name if name in (HEAD_ALONE, LAST_STAGES) else 'what came before'} is kept: {told}")
    network.load_state_dict(weights)
    engine.saved_epoch = 0.0
    if session.part is None:
        session.answers = None if stage is None else stage.answers
