"""Proposes smaller networks that may replace a model.

There are four kinds: the pruned model, and the model for smaller images, which both start from its weights; for photos,
networks that start from published weights, if such are on this machine; and networks of the zoo, which are trained from
scratch and designed for speed. The last two are also proposed for smaller images.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import nn

from vivace.acceleration.splits import Splits
from vivace.acceleration.students import Student, saved_bundle
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.compression.prune import prune
from vivace.errors import MissingExtra, ModelError, first_line
from vivace.models.narrowing import narrowed_layers
from vivace.models.normalize import Normalize
from vivace.models.packaged import PACKAGED
from vivace.models.parts import scale_head
from vivace.models.pretrained import WeightsSource, available_without_download
from vivace.models.zoo import complete_arguments, create_model, forward_flops

__all__ = ["propose"]

# of the time that the layers of the whole network take
PRUNED_SHARES = (0.6, 0.4, 0.25)
# sizes of smaller images that the least pruned network is tried with; the others are tried with one
PRUNED_SIDES = 2
# another network is tried if it needs at most this fraction of the model's operations
LESS_FLOPS = 0.7
# sides of smaller images as fractions of the model's own, rounded to multiples that suit strides, px
SMALLER_SIDES, SIDE_STEP, MIN_SIDE = (1.0, 0.75, 0.57, 0.43), 32, 64
MAX_ZOO = 3
# networks whose published weights are used if they are on this machine, the first with several sizes
PUBLISHED = tuple(f"timm/{row.network}" for row in PACKAGED)
PUBLISHED_SIDES, MAX_PUBLISHED = 2, 3
# px: the weights were trained on larger images, and know little of smaller ones; above, a step takes too long, since
# the gradients of depthwise convolutions do
MIN_PUBLISHED_SIDE, MAX_PUBLISHED_SIDE = 96, 160
# a network that starts from weights needs fewer epochs and a lower learning rate
FINE_TUNE_LR, FINE_TUNE_EPOCHS = 0.01, 12
SCRATCH_EPOCHS, PUBLISHED_EPOCHS = 24, 8
# weight of distillation for what does not start from the model's weights: with labels weighted equally a student can
# become better than its teacher
EQUAL_WEIGHT = 0.5
# name of the model itself, trained with fake quantization
FOR_INT8 = "trained for int8"


def propose(
    bundle: Bundle,
    splits: Splits,
    folder: Path,
    *,
    fake_quant: bool = False,
    cache_dir: Path | None = None,
    on_message: Callable[[str], None] = lambda message: None,
) -> list[Student]:
    """Students of a bundle, with their untrained bundles below `folder`, the kinds in turn.

    A kind that it does not suit gives a message.

    splits: its calibration images decide which channels are pruned. fake_quant: for a model that loses too much
    accuracy in int8: it becomes one of the students itself, and all of them are trained with fake quantization.
    cache_dir: holds published weights of packages as safetensors; None: the default one. Nothing is downloaded.
    """
    made: dict[str, list[Student]] = {}
    own = bundle.info.architecture.is_own
    flops = _flops_of_own(bundle) if own else _flops(bundle)
    if flops is None:
        on_message("no smaller networks: the bundle does not say how many operations its network has")
        return []
    kinds: dict[str, Callable[[], list[Student]]] = {
        "pruned": lambda: _pruned(bundle, splits, folder, flops),
        "for smaller images": lambda: _for_smaller_images(bundle, made.get("pruned", []), folder, flops),
        "from published weights": lambda: _from_published_weights(bundle, folder, flops, cache_dir, on_message),
        "of the zoo": lambda: _of_the_zoo(bundle, folder, flops),
    }
    if own:
        on_message(
            "no students pruned or for smaller images: the network is your own, and a search has its graph alone"
        )
        kinds = {kind: make for kind, make in kinds.items() if kind in ("from published weights", "of the zoo")}
    for kind, make in kinds.items():
        try:
            made[kind] = make()
        except (MissingExtra, ModelError, RuntimeError) as error:
            on_message(f"no students {kind}: {first_line(error)}")
    # of each kind the first, then the second …: in a short time only the first ones are built and timed
    students = [student for turn in zip_longest(*made.values()) for student in turn if student is not None]
    if fake_quant and not own:
        itself = saved_bundle(folder / FOR_INT8) or save_bundle(
            folder / FOR_INT8, _as_trained(bundle), _untrained(bundle.info)
        )
        students = [_fine_tuned(FOR_INT8, itself, flops), *students]
    if fake_quant:
        students = [dataclasses.replace(s, changes={**s.changes, "fake_quant": True}) for s in students]
    return students


def _as_trained(bundle: Bundle) -> nn.Module:
    """The network as it was before its logits were calibrated: for distillation, and to start students from."""
    model = bundle.build_model()
    if bundle.info.temperature is not None:
        scale_head(model, bundle.info.temperature)
    return model


def _untrained(info: BundleInfo) -> BundleInfo:
    # a network of the user's own is replaced by another one
    return dataclasses.replace(info, metrics={}, temperature=None, network={})


def _pruned(bundle: Bundle, splits: Splits, folder: Path, flops: float) -> list[Student]:
    model = _as_trained(bundle)
    preprocess, architecture = bundle.preprocess, bundle.info.architecture
    names = {share: f"pruned to {share:.0%}" for share in PRUNED_SHARES}
    missing = [share for share, name in names.items() if saved_bundle(folder / name) is None]
    if missing:
        normalize = Normalize(preprocess.mean, preprocess.std, white=preprocess.white)
        found = prune(model, normalize, splits.calibrate.pixels(), splits.calibrate.labels, list(PRUNED_SHARES))
        whole = {key: value for key, value in architecture.arguments.items() if key != "narrowed"}
        plain = _network(dataclasses.replace(architecture, arguments=whole))
        for share, pruned in found.items():
            arguments = {**architecture.arguments, "narrowed": narrowed_layers(pruned.model, plain)}
            info = dataclasses.replace(
                _untrained(bundle.info), architecture=dataclasses.replace(architecture, arguments=arguments)
            )
            save_bundle(folder / names[share], pruned.model, info)
    found_again = {name: saved_bundle(folder / name) for name in names.values()}
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
        name=name,
        bundle=saved,
        flops=_flops(saved) / teacher_flops,
        epochs=FINE_TUNE_EPOCHS,
        changes=changes,
        starts_from="model",
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
            saved = saved_bundle(folder / name)
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


def _flops_of_own(bundle: Bundle) -> float | None:
    """As the bundle says; None if it does not."""
    return bundle.info.network.get("operations")


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
        saved = saved_bundle(folder / title) or save_bundle(folder / title, model, info)
        students.append(
            Student(
                name=title,
                bundle=saved,
                flops=share,
                epochs=SCRATCH_EPOCHS,
                changes={"model.arguments": arguments, "distill.weight": EQUAL_WEIGHT},
                starts_from="random",
            )
        )
    # if there are too many, the one at the model's own size is dropped
    return students[-MAX_ZOO:]


def _from_published_weights(
    bundle: Bundle, folder: Path, flops: float, cache_dir: Path | None, on_message: Callable[[str], None]
) -> list[Student]:
    """Networks whose published weights are on this machine, with a new head; none for small or grey images.

    The first network with several sizes, the others with one: they train more slowly, and are hardly more accurate.
    """
    own = bundle.info.architecture
    if own.in_channels != 3 or own.size <= MIN_SIDE:
        return []
    students: list[Student] = []
    too_large = []
    for network in PUBLISHED:
        # a model that is such a network itself is proposed for smaller images with the weights that it has now
        source = None if _architecture(network) == _architecture(own.name) else available_without_download(network)
        if source is None or len(students) >= MAX_PUBLISHED:
            continue
        model = create_model(source.network, own.num_classes, size=own.size, pretrained=source, cache_dir=cache_dir)
        # operations are counted without values
        blank = copy.deepcopy(model).to("meta")
        shares = {side: forward_flops(blank, in_channels=3, size=side) / flops for side in _sides(own.size)}
        sides = [side for side, share in shares.items() if share <= LESS_FLOPS and side >= MIN_PUBLISHED_SIDE]
        too_large += [side for side in sides if side > MAX_PUBLISHED_SIDE]
        sides = [side for side in sides if side <= MAX_PUBLISHED_SIDE]
        for side in sides[: 1 if students else PUBLISHED_SIDES]:
            title = f"{_architecture(network)} {side} px"
            saved = saved_bundle(folder / title) or save_bundle(
                folder / title, model, _with_weights_of(source, _resized(bundle.info, side))
            )
            students.append(
                Student(
                    name=title,
                    bundle=saved,
                    flops=shares[side],
                    epochs=PUBLISHED_EPOCHS,
                    changes={"distill.weight": EQUAL_WEIGHT},
                    starts_from="published",
                )
            )
    if too_large:
        on_message(
            f"no students from published weights at {max(too_large)} px: above {MAX_PUBLISHED_SIDE} px the gradients "
            "of their depthwise convolutions take too long"
        )
    return students


def _architecture(network: str) -> str:
    """timm's name of a network without the tag of its weights; a name of the zoo as it is."""
    return network.removeprefix("timm/").partition(".")[0]


def _with_weights_of(source: WeightsSource, info: BundleInfo) -> BundleInfo:
    """The description with a network of published weights, and pixels normalised as these were trained."""
    stats = source.input_stats()
    return dataclasses.replace(
        info,
        architecture=dataclasses.replace(info.architecture, name=source.network, arguments={}),
        # sizes and interpolation are the model's: the teacher sees the same stored pixels
        preprocess=dataclasses.replace(info.preprocess, mean=stats.mean, std=stats.std),
        starting_weights=source.record(),
    )


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
