"""Smaller networks that may replace a model, and their training by distillation from it.

There are three kinds: the pruned model, and the model for smaller images, which both start from its weights; and
networks of the zoo, which are trained from scratch and designed for speed, also for smaller images.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import nn

from vivace.acceleration.splits import Splits
from vivace.bundle import Architecture, Bundle, BundleInfo, load_bundle, save_bundle
from vivace.compression.prune import prune
from vivace.data.place import AnyData
from vivace.errors import BundleError, Interrupted, MissingExtra, ModelError, first_line
from vivace.models.narrowing import narrowed_layers
from vivace.models.normalize import Normalize
from vivace.models.parts import scale_head
from vivace.models.zoo import complete_arguments, create_model, forward_flops
from vivace.runtimes.loading import Classifier
from vivace.training.train import train

__all__ = ["Student", "epoch_multiplier", "propose", "train_student"]

# of the time that the layers of the whole network take
PRUNED_SHARES = (0.6, 0.4, 0.25)
# sizes of smaller images that the least pruned network is tried with; the others are tried with one
PRUNED_SIDES = 2
# a network of the zoo is tried if it needs at most this fraction of the model's operations
LESS_FLOPS = 0.7
# sides of smaller images as fractions of the model's own, rounded to multiples that suit strides, px
SMALLER_SIDES, SIDE_STEP, MIN_SIDE = (1.0, 0.75, 0.57, 0.43), 32, 64
MAX_ZOO = 3
# a network that starts from weights needs fewer epochs and a lower learning rate
FINE_TUNE_LR, FINE_TUNE_EPOCHS = 0.01, 12
SCRATCH_EPOCHS = 24
# weight of distillation from scratch: with labels weighted equally a student can become better than its teacher
SCRATCH_WEIGHT = 0.5
# name of the model itself, trained with fake quantization
FOR_INT8 = "trained for int8"
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
    """Changes to the recipe `fast`, with which it is trained."""


def propose(
    bundle: Bundle,
    splits: Splits,
    folder: Path,
    *,
    fake_quant: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
) -> list[Student]:
    """Students of a bundle, with their untrained bundles below `folder`. A kind that it does not suit gives a message.

    splits: its calibration images decide which channels are pruned. fake_quant: for a model that loses too much
    accuracy in int8: it becomes one of the students itself, and all of them are trained with fake quantization.
    """
    students: list[Student] = []
    flops = _flops(bundle)
    kinds: dict[str, Callable[[], list[Student]]] = {
        "pruned": lambda: _pruned(bundle, splits, folder, flops),
        "for smaller images": lambda: _for_smaller_images(bundle, students, folder, flops),
        "of the zoo": lambda: _of_the_zoo(bundle, folder, flops),
    }
    for kind, make in kinds.items():
        try:
            students += make()
        except (MissingExtra, ModelError, RuntimeError) as error:
            on_message(f"no students {kind}: {first_line(error)}")
    if fake_quant:
        own = _saved(folder / FOR_INT8) or save_bundle(folder / FOR_INT8, _as_trained(bundle), _untrained(bundle.info))
        students = [_fine_tuned(FOR_INT8, own, flops), *students]
        students = [dataclasses.replace(s, changes={**s.changes, "fake_quant": True}) for s in students]
    return students


def _as_trained(bundle: Bundle) -> nn.Module:
    """The network as it was before its logits were calibrated: for distillation, and to start students from."""
    model = bundle.build_model()
    if bundle.info.temperature is not None:
        scale_head(model, bundle.info.temperature)
    return model


def _untrained(info: BundleInfo) -> BundleInfo:
    return dataclasses.replace(info, metrics={}, temperature=None)


def _pruned(bundle: Bundle, splits: Splits, folder: Path, flops: float) -> list[Student]:
    model = _as_trained(bundle)
    preprocess, architecture = bundle.preprocess, bundle.info.architecture
    names = {share: f"pruned to {share:.0%}" for share in PRUNED_SHARES}
    missing = [share for share, name in names.items() if _saved(folder / name) is None]
    if missing:
        normalize = Normalize(preprocess.mean, preprocess.std)
        found = prune(model, normalize, splits.calibrate.pixels(), splits.calibrate.labels, list(PRUNED_SHARES))
        whole = {key: value for key, value in architecture.arguments.items() if key != "narrowed"}
        plain = _network(dataclasses.replace(architecture, arguments=whole))
        for share, pruned in found.items():
            arguments = {**architecture.arguments, "narrowed": narrowed_layers(pruned.model, plain)}
            info = dataclasses.replace(
                _untrained(bundle.info), architecture=dataclasses.replace(architecture, arguments=arguments)
            )
            save_bundle(folder / names[share], pruned.model, info)
    found_again = {name: _saved(folder / name) for name in names.values()}
    return [_fine_tuned(name, saved, flops) for name, saved in found_again.items() if saved is not None]


def _fine_tuned(name: str, saved: Bundle, teacher_flops: float) -> Student:
    """A student that starts from the weights in `saved`."""
    changes = {
        "model.weights": str(saved.folder / "model.safetensors"),
        "model.arguments": dict(saved.info.architecture.arguments),
        "optimizer.lr": FINE_TUNE_LR,
        # these settings of the recipe are for training from scratch
        "focus.share": 1.0,
        "freeze_after": (),
        "augment.start_size": None,
    }
    return Student(
        name=name, bundle=saved, flops=_flops(saved) / teacher_flops, epochs=FINE_TUNE_EPOCHS, changes=changes
    )


def _for_smaller_images(bundle: Bundle, pruned: Sequence[Student], folder: Path, flops: float) -> list[Student]:
    """The model and its pruned versions, the widest first, for smaller images, with their weights.

    Raises RuntimeError if the weights fit one size only, as position embeddings do.
    """
    smaller = [side for side in _sides(bundle.info.architecture.size) if side < bundle.info.architecture.size]
    students = []
    for title, source, sides in [
        ("", bundle, smaller),
        *(
            (f"{student.name}, ", student.bundle, smaller[: 1 if index else PRUNED_SIDES])
            for index, student in enumerate(pruned)
        ),
    ]:
        for side in sides:
            name = f"{title}{side} px"
            saved = _saved(folder / name)
            if saved is None:
                info = _resized(source.info, side)
                model = _network(info.architecture)
                model.load_state_dict(_as_trained(source).state_dict())
                saved = save_bundle(folder / name, model, info)
            students.append(_fine_tuned(name, saved, flops))
    return students


def _resized(info: BundleInfo, side: int) -> BundleInfo:
    """The bundle's description for images of another side, stored larger by the same factor."""
    architecture = dataclasses.replace(info.architecture, size=side)
    return dataclasses.replace(_untrained(info), architecture=architecture, preprocess=info.preprocess.resized(side))


def _network(architecture: Architecture) -> nn.Module:
    return create_model(
        architecture.name,
        architecture.num_classes,
        in_channels=architecture.in_channels,
        size=architecture.size,
        **architecture.arguments,
    )


def _flops(bundle: Bundle) -> float:
    own = bundle.info.architecture
    return forward_flops(bundle.build_model(), in_channels=own.in_channels, size=own.size)


def _of_the_zoo(bundle: Bundle, folder: Path, flops: float) -> list[Student]:
    own = bundle.info.architecture
    students = []
    for name, size, arguments in _drawn(own):
        architecture = dataclasses.replace(own, name=name, size=size, arguments=complete_arguments(name, arguments))
        model = _network(architecture)
        share = forward_flops(model, in_channels=own.in_channels, size=size) / flops
        if share > LESS_FLOPS:
            continue
        info = dataclasses.replace(_resized(bundle.info, size), architecture=architecture)
        width = f", width {'-'.join(map(str, arguments['widths']))}" if "widths" in arguments else ""
        title = f"{name} {size} px{width}"
        saved = _saved(folder / title) or save_bundle(folder / title, model, info)
        students.append(
            Student(
                name=title,
                bundle=saved,
                flops=share,
                epochs=SCRATCH_EPOCHS,
                changes={"model.arguments": arguments, "distill.weight": SCRATCH_WEIGHT},
            )
        )
    # if there are too many, the one at the model's own size is dropped
    return students[-MAX_ZOO:]


def _drawn(own: Architecture) -> list[tuple[str, int, dict[str, Any]]]:
    """Networks of the zoo for a model's image size and smaller ones: (name, size, arguments), the larger first."""
    if own.size > MIN_SIDE:
        # ReLU: of its activations the only one whose time is negligible beside an int8 convolution
        return [("fast_photo", side, {"activation": "relu"}) for side in _sides(own.size)]
    return [
        ("fast_cnn", own.size, {"widths": list(widths), "depth": [depth] * 3, "activation": "relu", "stride": 2})
        for widths, depth in (((64, 192, 256), 2), ((64, 128, 256), 2), ((48, 96, 192), 1))
    ]


def _sides(size: int) -> list[int]:
    """The model's image side and smaller ones, px, the larger first."""
    rounded = {SIDE_STEP * round(share * size / SIDE_STEP) for share in SMALLER_SIDES}
    return sorted({side for side in rounded if MIN_SIDE <= side <= size} | {size}, reverse=True)


def epoch_multiplier(student: Student, num_train: int) -> float:
    """Factor for a student's epochs without a time budget."""
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
    done = _saved(run / "bundle")
    if done is not None:
        return done
    # augmented images have the teacher's input size, for it is less accurate on smaller ones
    info, preprocess = teacher.info, teacher.preprocess
    size = student.bundle.preprocess.size
    given = info.recipe.get("data", {})
    changes = {
        "model.name": student.bundle.info.architecture.name,
        "model.size": size if size < preprocess.size else None,
        "data.size": preprocess.size,
        "data.store_size": preprocess.store_size,
        "data.channels": preprocess.channels,
        "data.fit": preprocess.fit,
        "data.interpolation": preprocess.interpolation,
        "data.max_pixels": preprocess.max_pixels,
        "data.mean": preprocess.mean,
        "data.std": preprocess.std,
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


def _saved(folder: Path) -> Bundle | None:
    if not folder.exists():
        return None
    try:
        return load_bundle(folder)
    except BundleError:
        # it is in the search's own folder, so it can be rebuilt; a bundle that was changed is not reused
        shutil.rmtree(folder, ignore_errors=True)
        return None
