"""The network that a run starts from, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError
from vivace.files import sha256_of
from vivace.models.pretrained import find_weights
from vivace.models.weights import load_weights, weights_file
from vivace.models.zoo import create_model
from vivace.training.recipes.recipe import Recipe

__all__ = ["Start", "check_start_size", "seen", "start_network"]


@dataclass(frozen=True)
class Start:
    """A network on the CPU, and what is said and recorded of its weights."""

    model: nn.Module
    record: Mapping[str, Any] = field(default_factory=dict)
    """kind, from, license …, as plain values; empty for random weights."""
    line: str | None = None
    """The same for a reader; None for random weights."""


def start_network(
    recipe: Recipe, num_classes: int, *, in_channels: int, size: int, load: bool, cache_dir: Path
) -> Start:
    """The recipe's network with the weights that it starts from: a local file, published ones, else random ones.

    load: False for random ones, as for a run that continues from a checkpoint. Raises ModelError for an unknown
    network, and weights that can't be had or do not fit.
    """
    file = recipe.model.weights if load else None
    # a local file comes first; published weights would only be overwritten
    source = find_weights(recipe.model.name) if recipe.model.pretrained and load and not file else None
    model = create_model(
        recipe.model.name,
        num_classes,
        in_channels=in_channels,
        size=size,
        pretrained=source or False,
        cache_dir=cache_dir,
        **recipe.model.arguments,
    )
    if file:
        left_out = load_weights(model, file)
        path = weights_file(file)
        head = f"; a new head for {num_classes} classes: {left_out[0]} has another shape" if left_out else ""
        record = {"kind": "file", "from": path.name, "sha256": sha256_of(path)}
        return Start(model, record, f"starting weights: {file}{head}")
    if source is None:
        return Start(model)
    published = source.num_classes()
    head = "" if published == num_classes else f"; a new head for {num_classes} classes in place of {published:,}"
    return Start(model, source.record(), source.line() + head)


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
