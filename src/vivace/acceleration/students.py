"""Smaller networks that may replace a model: how one is described, and its training by distillation from the model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, Literal

import torch

from vivace.bundle import Bundle, load_bundle
from vivace.data.place import AnyData
from vivace.errors import BundleError, Interrupted
from vivace.runtimes.loading import Classifier
from vivace.training.train import train

__all__ = ["RACE_SHARE", "Student", "epoch_multiplier", "saved_bundle", "train_student"]

# fraction of its epochs that a student is trained for in the race
RACE_SHARE = 0.25
# with few training images a student gets more epochs, since distillation profits from long training (arXiv:2106.05237):
# at most this factor, and until it has seen this many images
MAX_EPOCH_MULTIPLIER, MANY_IMAGES = 2.5, 1_000_000


@dataclass(frozen=True, kw_only=True)
class Student:
    """A smaller network and how it is to be trained."""

    name: str
    bundle: Bundle
    """Untrained, for timing; a pruned one has the weights that are left."""
    flops: float
    """Operations for one image, as a fraction of the model's."""
    epochs: int
    changes: Mapping[str, Any]
    """Changes to the recipe with which it is trained: `finetune` from published weights, otherwise `fast`."""
    starts_from: Literal["model", "published", "random"]
    """Weights that its training starts from: the model's, published ones, or random ones."""


def epoch_multiplier(student: Student, num_train: int) -> float:
    """Factor for a student's epochs without a time budget."""
    if student.starts_from == "published":
        # a few epochs are enough, and each takes long
        return 1.0
    return min(MAX_EPOCH_MULTIPLIER, max(1.0, MANY_IMAGES / (student.epochs * num_train)))


def train_student(
    student: Student,
    teacher: Bundle,
    data: AnyData,
    run: Path,
    *,
    share: float = 1.0,
    within_seconds: float | None = None,
    answers: Classifier | None = None,
    cache_dir: Path | None = None,
    on_bad_image: str = "auto",
) -> Bundle:
    """The student, trained on the training images of its teacher. The test split is not used.

    run: folder of the training run; an interrupted one continues, a finished one is reused. share: fraction or multiple
    of its epochs, without a time budget. answers: a fast variant of the teacher. Raises what `train` raises.
    """
    done = saved_bundle(run / "bundle")
    if done is not None:
        return done
    # augmented images have the teacher's input size, for it is less accurate on smaller ones
    info, preprocess, own = teacher.info, teacher.preprocess, student.bundle.preprocess
    given = info.recipe.get("data", {})
    changes = {
        "model.name": student.bundle.info.architecture.name,
        "model.size": own.size if own.size < preprocess.size else None,
        "data.size": preprocess.size,
        "data.store_size": preprocess.store_size,
        "data.channels": preprocess.channels,
        "data.fit": preprocess.fit,
        "data.interpolation": preprocess.interpolation,
        "data.max_pixels": preprocess.max_pixels,
        # published weights have their own; the teacher normalises the same pixels by those of its bundle
        "data.mean": own.mean,
        "data.std": own.std,
        "data.on_bad_image": on_bad_image,
        "data.allow_leaks": given.get("allow_leaks", False),
        # the same images are held out as for the teacher
        **({"data.val_fraction": given["val_fraction"]} if "val_fraction" in given else {}),
        "seed": info.recipe.get("seed", 0),
        "distill.teacher": str(teacher.folder),
        "loss.label_smoothing": 0.0,
        # the teacher's predictions are better targets
        "loss.self_distillation": 0.0,
        **student.changes,
    }
    threads = torch.get_num_threads()
    try:
        result = train(
            data,
            # by name: the default one depends on the data and on what the changes say of weights
            "finetune" if student.starts_from == "published" else "fast",
            overrides=changes,
            epochs=max(1, round(share * student.epochs)) if within_seconds is None else None,
            within=within_seconds,
            run=run,
            resume=any((run / "checkpoints").glob("*.safetensors")),
            cache_dir=cache_dir,
            measure_test=False,
            teacher=answers,
            quiet=True,
        )
    except Interrupted as error:
        # the user started a search, not this training
        raise Interrupted(
            f"stopped by {Signals(error.signal_number).name} while {student.name} was trained; the same command "
            "continues from there",
            signal_number=error.signal_number,
        ) from None
    finally:
        torch.set_num_threads(threads)
    return load_bundle(result.bundle)


def saved_bundle(folder: Path) -> Bundle | None:
    """The bundle in a folder of the search's own; None if there is none, or one that was changed, which is removed."""
    if not folder.exists():
        return None
    try:
        return load_bundle(folder)
    except BundleError:
        # it is in the search's own folder, so it can be rebuilt; a bundle that was changed is not reused
        shutil.rmtree(folder, ignore_errors=True)
        return None
