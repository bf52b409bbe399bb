"""The thresholds that a run leaves in its bundle, from the answers to its validation images."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from vivace.models.features import LastFeatures
from vivace.training.execution import ExecutionConfig, without_own_kernels
from vivace.training.loop.engine import Engine
from vivace.training.loop.plan import Budget
from vivace.training.loop.session import Session
from vivace.uncertainty.calibrate import calibrate
from vivace.uncertainty.generated import NUM_GENERATED, generated_images
from vivace.uncertainty.record import Calibrated
from vivace.uncertainty.scores import Answers, energy

__all__ = ["name_of_images", "validated_answers", "with_thresholds"]

# generated images of each kind, beside the validation images: all kinds together take no more than these do
SHARE = 0.25


def name_of_images(session: Session) -> str:
    """What the validation images are called."""
    return "held-out images" if session.data.val_indices is not None else "validation images"


def validated_answers(session: Session, model: nn.Module, execution: ExecutionConfig) -> tuple[Answers, np.ndarray]:
    """(the answers to the validation images, labels_N)."""
    features = LastFeatures(model, session.num_classes)
    try:
        with features.taken() as batches:
            logits_NK, labels_N = session.logits_of_split(model, execution, "val")
    finally:
        features.remove()
    return _answers(session, logits_NK, batches), labels_N.numpy()


def with_thresholds(
    session: Session,
    engine: Engine,
    model: nn.Module,
    execution: ExecutionConfig,
    budget: Budget,
    validated: Answers,
    labels_N: np.ndarray,
    temperature: float | None,
) -> Calibrated | None:
    """The thresholds of a network; None with sets of labels, or too few validation images.

    Answers to generated images cost a pass over as many as there are validation images at most; of a time budget that
    has no room for them fewer kinds are made.
    """
    if session.task.label_sets_MK is not None:
        return None
    chose = {
        "the temperature": temperature is not None,
        "the saved epoch": session.recipe.keeps_best,
        "the end of training": budget.target is not None,
        "the stage of training that was kept": session.recipe.finetune.head,
    }
    return calibrate(
        validated,
        labels_N,
        _generated(session, engine, model, without_own_kernels(execution), budget),
        variant=f"eager {execution.precision}",
        images=name_of_images(session),
        also_chose=[what for what, holds in chose.items() if holds],
    )


def _generated(
    session: Session, engine: Engine, model: nn.Module, execution: ExecutionConfig, budget: Budget
) -> dict[str, Answers]:
    """Name → answers to generated images like the validation images."""
    data = session.data
    rows = np.arange(len(data.val_labels_N)) if data.val_indices is None else data.val_indices
    count = min(NUM_GENERATED, max(1, round(SHARE * len(rows))))
    some = np.sort(np.random.default_rng(0).permutation(rows)[:count])
    found: dict[str, Answers] = {}
    for name, images_NHWC in generated_images(np.asarray(data.val_images_NHWC[some])).items():
        began = engine.plan.clock()
        features = LastFeatures(model, session.num_classes)
        try:
            with features.taken() as batches:
                logits_NK, _ = session.logits(model, execution, images_NHWC, np.zeros(count, np.int64), None)
        finally:
            features.remove()
        found[name] = _answers(session, logits_NK, batches)
        now = engine.plan.clock()
        if budget.within_seconds is not None and 2 * now - began > budget.within_seconds:
            break
    return found


def _answers(session: Session, logits_NK: torch.Tensor, batches: list[torch.Tensor | None]) -> Answers:
    features_ND = LastFeatures.joined(batches, len(logits_NK))
    return Answers(
        session.task.probs(logits_NK).numpy(),
        energy(logits_NK.numpy()),
        None if features_ND is None else features_ND.numpy(),
    )
