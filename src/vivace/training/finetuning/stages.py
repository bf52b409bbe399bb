"""The stages of fine-tuning: each leaves a network that can be used, and a later one is kept only if it is better.

(1) The head, solved on features of the frozen network. (2) The last stages, trained by the training loop on maps of the
frozen front. (3) Instead of these, the whole network, where the budget has room for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vivace.errors import CheckpointError, ConfigError
from vivace.notices import warn
from vivace.training.finetuning.features import FrozenFeatures
from vivace.training.finetuning.following import begin_last, cut_of, what_follows, whole_network
from vivace.training.finetuning.last_stages import LastStages
from vivace.training.finetuning.solving import HEAD_ALONE, WHOLE_NETWORK, Stage, solve_head
from vivace.training.folder.checkpoints import load_checkpoint, save_checkpoint
from vivace.training.loop.engine import Engine
from vivace.training.loop.plan import Budget
from vivace.training.loop.progress import score_of
from vivace.training.loop.restored import MALFORMED, check_weights
from vivace.training.loop.session import Session
from vivace.training.loop.validation import Trained, Validation
from vivace.training.recipes.recipe import Recipe

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
LAST_STAGES = "the last stages"


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
    stage = solve_head(session, features, budget.target, seconds_left=left, on_message=on_message)
    reached = budget.target is not None and stage.trained.validation.score >= budget.target
    # otherwise there was no time for the features of all images
    is_whole = ("train", "plain") in features.known
    if reached or not is_whole:
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
    """Give the network back the weights of the stage before the loop if validation is worse after it.

    Accuracies that differ by less than noise are no reason, unless the loss is no better either.

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
    losses = [row.get("val_loss", math.nan) for row in (history[0], history[-1])]
    # images too few to tell the accuracies apart may still agree with their losses, which tell more of each image
    if before - after <= _noise(before, after, session.data.num_val) and losses[1] < losses[0]:
        on_message(
            f"{told}, which {session.data.num_val:,} images can't tell apart, and the validation loss fell from "
            f"{losses[0]:.3g} to {losses[1]:.3g}: the latter is kept"
        )
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
