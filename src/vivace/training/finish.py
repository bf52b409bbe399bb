"""The end of a run: from a trained network to metrics, bundle, result and warnings."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from torch import nn

from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.config import to_dict
from vivace.data.filesizes import image_sizes
from vivace.data.labelsets import class_counts
from vivace.errors import NonFiniteError, TrainingError
from vivace.files import write_json
from vivace.hardware import describe, process_seconds
from vivace.metrics.measured import Measured
from vivace.models.zoo import complete_arguments, forward_flops
from vivace.notices import recorded_warnings, warn
from vivace.training.completion import Complete, Finished, written_report
from vivace.training.execution import ExecutionConfig, without_own_kernels
from vivace.training.finetuning.stages import Stage
from vivace.training.folder.runfolder import RunFolder
from vivace.training.loop.engine import Engine
from vivace.training.loop.overfitting import robust_of
from vivace.training.loop.plan import Budget
from vivace.training.loop.session import Session
from vivace.training.outcome import Outcome, outcome_warnings
from vivace.training.private.stage import PrivateStage
from vivace.training.private.telling import public_facts, warn_of_leaks
from vivace.training.record import PATHS, record_of
from vivace.training.result import TrainResult
from vivace.training.uncertainty import name_of_images, validated_answers, with_thresholds
from vivace.uncertainty.scores import Answers
from vivace.uncertainty.validated import Validated

__all__ = ["finish"]

# validation images on which that graph is compared with PyTorch
NUM_COMPARED = 256


def finish(
    session: Session,
    engine: Engine,
    execution: ExecutionConfig,
    folder: RunFolder,
    facts: dict[str, Any],
    budget: Budget,
    weights: Mapping[str, Any],
    stage: Stage | None = None,
    complete: Complete | None = None,
) -> TrainResult:
    """Calibrate and evaluate the trained network, write its bundle, and warn about problems of the run.

    weights: what the run started from, as `Start.record` has it. stage: what came before the loop; the bundle of a
    private one says what was spent, and holds nothing else that is of its training images. complete: adds a graph to
    the bundle of a network of the user's own, and writes the report; both after what they need is saved: if they fail,
    no training is lost.
    Raises NonFiniteError for predictions that are NaN or Inf, TrainingError if a file can't be written.
    """
    data, recipe, counters = session.data, session.recipe, engine.counters
    model, temperature = engine.state.averaged_model, None
    if recipe.calibrate:
        model, temperature = session.calibrated(model, execution)
    metrics, thresholds, answers, validated = _metrics(session, model, execution)
    spent = stage.spent if isinstance(stage, PrivateStage) else None
    calibrated = seen = None
    if spent is None:
        probs_NK, val_labels_N = answers["val"]
        seen = Validated.of(probs_NK, variant=f"eager {execution.precision}", images=name_of_images(session))
        calibrated = with_thresholds(session, engine, model, execution, budget, validated, val_labels_N, temperature)
    else:
        metrics["privacy"] = spent.metrics()
        digests_N = data.cache.splits["train"].digests_N[data.train_indices]
        warn_of_leaks(
            spent,
            num_held_out=None if data.val_indices is None else data.num_val,
            num_copies=int(np.unique(digests_N, return_counts=True)[1].max()),
        )
    info = BundleInfo(
        architecture=Architecture(
            name=recipe.model.name,
            num_classes=session.num_classes,
            in_channels=session.seen.channels,
            size=session.seen.size,
            arguments=complete_arguments(recipe.model.name, recipe.model.arguments),
        ),
        classes=tuple(data.cache.classes),
        preprocess=session.seen,
        precision=execution.precision,
        metrics=metrics,
        recipe=to_dict(recipe),
        environment=describe(),
        # bundles are shared: the paths of the data are private
        data=public_facts(facts) if spent else {name: value for name, value in facts.items() if name not in PATHS},
        temperature=temperature,
        starting_weights=weights,
        network=_own_network(session, model),
        task="single_label" if session.task.label_sets_MK is None else "multi_label",
        thresholds=thresholds,
    )
    with _disk_for(folder.bundle):
        trained_on = None if spent else data.cache.splits["train"].digests_N[data.train_indices]
        if session.origin is not None and trained_on is not None:
            trained_on = session.origin.with_earlier(trained_on)
        bundle = save_bundle(
            folder.bundle,
            model,
            info,
            trained_on=trained_on,
            calibrated=calibrated,
            validated=seen,
            network=session.network,
        )
        no_graph = None
        if session.network is not None and complete is not None:
            no_graph = complete.graph(bundle, *_compared_images(session))
    total_seconds = engine.plan.clock()
    score = session.task.score
    outcome = _outcome(session, engine, budget, metrics["val"][score], total_seconds)
    for message in outcome_warnings(outcome):
        warn(message)
    result = TrainResult(
        bundle=folder.bundle,
        run=folder.path,
        val_top1=metrics["val"].get("top1", math.nan),
        test_top1=metrics["test"].get("top1") if "test" in metrics else None,
        val_map=metrics["val"].get("map"),
        test_map=metrics["test"].get("map") if "test" in metrics else None,
        epochs=outcome.epochs,
        train_seconds=counters.seconds,
        total_seconds=total_seconds,
        num_images_seen=counters.num_images_seen,
        saved_epoch=engine.saved_epoch,
        stopped_early=engine.stopped_early,
        target_reached=None if budget.target is None else outcome.target_reached,
        target_seconds=counters.target_seconds,
        within_seconds=budget.within_seconds,
        temperature=temperature,
        epsilon=None if spent is None else spent.epsilon,
        delta=None if spent is None else spent.delta,
        no_graph=no_graph,
        robust=robust_of(recipe, counters, engine.saved_epoch),
        metrics=metrics,
        warnings=recorded_warnings(),
    )
    for name, value in (
        ("run.json", {**record_of(facts, budget, weights, session.network), "warnings": list(result.warnings)}),
        ("result.json", {name: value for name, value in result.to_dict().items() if name != "report"}),
    ):
        with _disk_for(folder.path / name):
            write_json(folder.path / name, value)
    report = written_report(complete, partial(_finished, session, folder, bundle, answers))
    return dataclasses.replace(result, report=report, warnings=recorded_warnings())


def _finished(
    session: Session, folder: RunFolder, bundle: Bundle, answers: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Finished:
    cache = session.data.cache
    measured = {name: _measured(session, name, *found) for name, found in answers.items()}
    folders = cache.source.folders
    return Finished(run=folder.path, bundle=bundle, measured=measured, audit=cache.audit, folders=folders)


def _measured(session: Session, name: str, probs_NK: np.ndarray, labels_N: np.ndarray) -> Measured:
    """The answers to a split, with the names of the images, and their pixels as they are in the cache."""
    data, sets = session.data, session.data.cache.label_sets
    held_out = name == "val" and data.val_indices is not None
    split_name = "train" if held_out else name
    split = data.cache.splits[split_name]
    rows = data.val_indices if held_out and data.val_indices is not None else np.arange(len(split.labels_N))
    names = [split.names[row] for row in rows]
    return Measured(
        split="held out" if held_out else name,
        probs_NK=probs_NK,
        labels_N=labels_N,
        names=names,
        images=lambda some: data.preprocess.view(np.asarray(split.images_NHWC[rows[some]])),
        hits_NK=None if sets is None else sets[labels_N],
        sizes=partial(image_sizes, data.cache.source.splits[split_name], names),
    )


def _own_network(session: Session, model: nn.Module) -> dict[str, Any]:
    """What a bundle records of a network of the user's own; nothing of others."""
    if session.network is None:
        return {}
    record = session.network.record()
    # what can't be counted is left out
    with contextlib.suppress(Exception):
        record["operations"] = forward_flops(model, in_channels=session.seen.channels, size=session.seen.size)
    return record


def _compared_images(session: Session) -> tuple[np.ndarray, str]:
    """Validation images at the network's size, uint8 [N, size, size, C], evenly spread, and what they are called."""
    data = session.data
    rows = np.arange(len(data.val_labels_N)) if data.val_indices is None else data.val_indices
    some = np.sort(rows[np.unique(np.linspace(0, len(rows) - 1, min(NUM_COMPARED, len(rows))).astype(int))])
    images, size = data.preprocess.view(np.asarray(data.val_images_NHWC[some])), session.seen.size
    # of a network for smaller images their middle
    margin = (images.shape[1] - size) // 2
    middle = images[:, margin : margin + size, margin : margin + size]
    return np.ascontiguousarray(middle), "validation images"


def _metrics(
    session: Session, model: nn.Module, execution: ExecutionConfig
) -> tuple[dict[str, Any], tuple[float, ...], dict[str, tuple[np.ndarray, np.ndarray]], Answers]:
    """(metrics of the bundle on validation and, if there is one, on test; thresholds of labels; probs_NK and labels_N;
    all that was answered to validation images).

    The thresholds are chosen on validation, whose F1 and exact match are therefore a little too high.
    """
    metrics: dict[str, Any] = {}
    thresholds: tuple[float, ...] = ()
    answers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    execution = without_own_kernels(execution)
    validated, labels_N = validated_answers(session, model, execution)
    for split in ("val", *(["test"] if session.data.num_test else [])):
        probs, labels = validated.probs_NK, labels_N
        if split == "test":
            probs, labels = session.split_probs(model, execution, split)
        if not np.isfinite(probs).all():
            # finite on validation images, but out of range of the precision on these
            raise NonFiniteError(f"the network's answers to {split} images are NaN or Inf. Lower `optimizer.lr`.")
        if split == "val":
            thresholds = session.task.thresholds(probs, labels)
        metrics[split] = dict(session.task.summary(probs, labels, session.data.cache.classes, thresholds))
        answers[split] = probs, labels
    return metrics, thresholds, answers, validated


def _outcome(session: Session, engine: Engine, budget: Budget, score: float, total_seconds: float) -> Outcome:
    data, counters = session.data, engine.counters
    val_labels_N = data.val_labels_N if data.val_indices is None else data.val_labels_N[data.val_indices]
    sets = data.cache.label_sets
    counts_K = class_counts(val_labels_N, session.num_classes, sets)
    return Outcome(
        epochs=session.batches.epochs_of(counters.step),
        num_train=len(data.train_indices),
        num_images_seen=counters.num_images_seen,
        score=score,
        multi_label=sets is not None,
        chance=float(counts_K[counts_K > 0].mean() / data.num_val) if sets is not None and counts_K.any() else None,
        num_right=round(score * data.num_val),
        num_val=data.num_val,
        num_val_commonest=int(counts_K.max()),
        commonest=data.cache.classes[int(counts_K.argmax())],
        within_seconds=budget.within_seconds,
        total_seconds=total_seconds,
        train_seconds=counters.seconds,
        # a run that was resumed began in another process
        cpu_seconds=None if total_seconds > process_seconds() + 1 else sum(os.times()[:4]),
        target=budget.target,
        # by the saved bundle: in another precision it may fall short by an image of what the last validation saw
        target_reached=counters.target_seconds is not None and budget.target is not None and score >= budget.target,
        target_seen=counters.target_seconds is not None,
        num_rollbacks=counters.num_rollbacks,
        lr_scale=counters.lr_scale,
        num_overfits=counters.num_overfits,
        robust=robust_of(session.recipe, counters, engine.saved_epoch),
    )


@contextlib.contextmanager
def _disk_for(path: Path) -> Iterator[None]:
    """Turns a failure to write `path` into a TrainingError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"the result could not be written: {path} ({getattr(error, 'strerror', None) or error}). "
            "The training is saved: free some space and go on with `resume=True`."
        ) from error
