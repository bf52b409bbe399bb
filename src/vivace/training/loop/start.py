"""The network that a run starts from, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError, ModelError
from vivace.files import sha256_of
from vivace.models.classes import Classes, fitted_weights, rows_of_classes
from vivace.models.own.given import OwnNetwork
from vivace.models.parts import scale_head
from vivace.models.pretrained import find_weights
from vivace.models.weights import load_weights, weights_file
from vivace.models.zoo import class_rows, create_model
from vivace.notices import warn
from vivace.training.recipes.origin import Origin
from vivace.training.recipes.recipe import Recipe

__all__ = ["Start", "check_start_size", "seen", "start_network"]


@dataclass(frozen=True)
class Start:
    """A network on the CPU, and what is said and recorded of its weights."""

    model: nn.Module
    record: Mapping[str, Any] = field(default_factory=dict)
    """kind, from, license …, as plain values; empty for random weights."""
    line: str | None = None
    """The same for a reader; None for random weights of a network of the zoo or of timm."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """What tells a network of the user's own from others of the same name."""


def start_network(
    recipe: Recipe,
    classes: Sequence[str],
    *,
    in_channels: int,
    size: int,
    load: bool,
    cache_dir: Path,
    origin: Origin | None = None,
    network: OwnNetwork | None = None,
) -> Start:
    """The recipe's network with the weights that it starts from: a run, a local file, published ones, else random ones.

    load: False for random ones, as for a run that continues from a checkpoint. origin: what `model.start_from` names.
    network: the user's own, which the recipe names. Raises ModelError for an unknown network, and weights that can't be
    had or do not fit.
    """
    num_classes = len(classes)
    file = recipe.model.weights if load else None
    # a local file comes first; published weights would only be overwritten
    source = find_weights(recipe.model.name) if recipe.model.pretrained and load and not file else None
    if network is not None:
        begun = origin if load else None
        return _own(network, recipe, classes, in_channels=in_channels, size=size, file=file, origin=begun)
    model = create_model(
        recipe.model.name,
        num_classes,
        in_channels=in_channels,
        size=size,
        pretrained=source or False,
        cache_dir=cache_dir,
        **recipe.model.arguments,
    )
    if origin is not None and load:
        return _continued(model, recipe, origin, classes, in_channels=in_channels, size=size)
    if file:
        record, line = _load_file(model, file, num_classes)
        return Start(model, record, line)
    if source is None:
        return Start(model)
    published = source.num_classes()
    head = "" if published == num_classes else f"; a new head for {num_classes} classes in place of {published:,}"
    return Start(model, source.record(), source.line() + head)


def _continued(
    model: nn.Module, recipe: Recipe, origin: Origin, classes: Sequence[str], *, in_channels: int, size: int
) -> Start:
    """The network with the weights of the origin, its head fitted to the classes by their names."""
    info = origin.bundle.info
    if recipe.model.name != info.architecture.name:
        raise ModelError(
            f"the run to start from has another network: got {recipe.model.name!r}, {recipe.model.start_from} has "
            f"{info.architecture.name!r}. Leave `model` out."
        )
    rows = class_rows(recipe.model.name, len(classes), in_channels=in_channels, size=size, **recipe.model.arguments)
    return _with_weights_of(origin, model, recipe, classes, rows)


def _with_weights_of(
    origin: Origin, model: nn.Module, recipe: Recipe, classes: Sequence[str], rows: frozenset[str]
) -> Start:
    """The network with the weights of the origin. rows: names of the tensors with a row for each class."""
    info, trained = origin.bundle.info, origin.weights()
    model.load_state_dict(fitted_weights(trained, model.state_dict(), rows, before=info.classes, now=classes))
    if info.temperature is not None:
        # back to the logits that training ended with: calibrated ones are not where its loss is lowest
        scale_head(model, info.temperature)
    found = Classes.of(info.classes, classes)
    place = recipe.model.start_from
    if not found.kept:
        warn(f"no class of the data is known to {place}: a new head is trained for all of them")
    earlier = {key: str(info.starting_weights[key]) for key in ("license",) if key in info.starting_weights}
    record = {"kind": "run", "from": Path(str(place)).name, "sha256": origin.sha256, "classes": found.line(), **earlier}
    return Start(model, record, f"starting from {place}: {found.line()}")


def _load_file(model: nn.Module, file: str, num_classes: int) -> tuple[dict[str, str], str]:
    """Load a local file into the network, in place: what is recorded and said of it."""
    left_out = load_weights(model, file)
    path = weights_file(file)
    head = f"; a new head for {num_classes} classes: {left_out[0]} has another shape" if left_out else ""
    return {"kind": "file", "from": path.name, "sha256": sha256_of(path)}, f"starting weights: {file}{head}"


def _own(
    network: OwnNetwork,
    recipe: Recipe,
    classes: Sequence[str],
    *,
    in_channels: int,
    size: int,
    file: str | None,
    origin: Origin | None,
) -> Start:
    """A network of the user's own; an instance starts with its weights, unless there is a run or a file."""
    build = partial(network.build, in_channels=in_channels, size=size, arguments=recipe.model.arguments)
    model = build(len(classes))
    shapes = [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()]
    # a stored trial is that of the same code
    fingerprint = {"own": [network.sha256, repr(model), shapes]}
    if origin is not None:
        rows = rows_of_classes(model.state_dict(), build(len(classes) + 1).state_dict())
        start = _with_weights_of(origin, model, recipe, classes, rows)
        return replace(start, line=network.line(weights=start.line), fingerprint=fingerprint)
    if file:
        record, line = _load_file(model, file, len(classes))
        return Start(model, record, network.line(weights=line), fingerprint)
    record = {"kind": "instance"} if network.kind == "instance" else {}
    return Start(model, record, network.line(), fingerprint)


def seen(recipe: Recipe, preprocess: Preprocess) -> Preprocess:
    """The preprocessing of the trained network; in training, views of `preprocess` are downscaled to it."""
    size = recipe.model.size or preprocess.size
    if size > preprocess.size:
        raise ConfigError(
            f"model.size is larger than data.size: got {size} and {preprocess.size} px. Leave model.size out, or set "
            f"data.size={size}."
        )
    return preprocess.resized(size)


def check_start_size(
    model: nn.Module, normalize: nn.Module, recipe: Recipe, *, channels: int, device: torch.device
) -> None:
    """Raise ConfigError if the images that progressive resizing begins with are too small for the network."""
    start = recipe.augment.start_size
    if start is None:
        return
    model.eval()
    try:
        with torch.no_grad():
            model(normalize(torch.zeros(2, channels, start, start, device=device)))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"augment.start_size is too small for {recipe.model.name}: got {start} "
            f"({str(error).splitlines()[0]}). Set a larger one, or augment.start_size=null."
        ) from None
