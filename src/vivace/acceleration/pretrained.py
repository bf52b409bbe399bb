"""A bundle from a network's name and pretrained weights, to be accelerated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.caching.cache import open_cache
from vivace.data.describe import notes_of
from vivace.data.place import AnyData
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import ConfigError, DataError, printable
from vivace.files import sha256_of
from vivace.hardware import describe
from vivace.models.pretrained import WeightsSource, find_weights
from vivace.models.weights import load_weights, weights_file
from vivace.models.zoo import complete_arguments, create_model, pretrained_stats
from vivace.notices import warn

__all__ = ["bundle_from"]

# for networks of timm whose configuration does not say
CROP_SHARE = 0.875
PLAIN_SIZE = 224


def bundle_from(
    name: str,
    data: AnyData,
    folder: Path,
    *,
    weights: str | Path | None = None,
    size: int | None = None,
    cache_dir: Path | None = None,
    on_bad_image: str = "auto",
    on_message: Callable[[str], None] = lambda message: print(printable(message), file=sys.stderr),
) -> Bundle:
    """Write a bundle of the network `name` into `folder`, for the classes of `data`, in their order.

    name: of the zoo, or timm/NAME. weights: a local state dict; None: published ones, from the first source that
    `find_weights` finds, which is told to `on_message`. Pixels are normalised as the published weights require; for a
    network without any, with mean and deviation 0.5. size: side of the input, px; None: that of the published weights.
    Raises ModelError for weights that don't fit or can't be loaded, ConfigError if the number of the network's classes
    differs from the data's, DataError for data without a val or test split, and what opening the data raises.
    """
    source = open_source(data, cache_dir=cache_dir)
    for line in notes_of(source):
        warn(line)
    if weights is None and not name.startswith("timm/"):
        raise ConfigError(f"there are no published weights for {name}. Give `weights`: a file.")
    published = None if weights is not None else find_weights(name)
    stats = pretrained_stats(name)
    size = size or (stats[2] if stats else PLAIN_SIZE)
    mean, std = (stats[0], stats[1]) if stats and source.channels == 3 else ((0.5,) * source.channels,) * 2
    preprocess = Preprocess(
        size=size,
        store_size=round(size / CROP_SHARE),
        channels=source.channels,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=stats[3] if stats else "bicubic",
    )
    # only classes with readable images count
    cache = open_cache(source, preprocess, cache_dir=cache_dir, on_bad_image=on_bad_image, allow_leaks=False)
    if not {"val", "test"} & set(cache.splits):
        raise DataError(
            f"all images of {source.name} may have been trained on: it has no val and no test split, and a file of "
            "weights does not say what it was trained on. Give data with one of these splits."
        )
    num_classes = len(cache.classes)
    if published is not None:
        _check_published(published, num_classes)
    model = create_model(
        name,
        num_classes,
        in_channels=preprocess.channels,
        size=size,
        pretrained=published or False,
        cache_dir=cache_dir,
    ).eval()
    if published is not None:
        on_message(published.line())
        starting = published.record()
    else:
        assert weights is not None
        left_out = load_weights(model, weights)
        if left_out:
            raise ConfigError(
                f"the weights are for other classes: {weights} has no {left_out[0]} for the {num_classes} of "
                f"{source.name}. Train it on them first: vivace train {data} --model {name} --weights {weights}"
            )
        path = weights_file(weights)
        starting = {"kind": "file", "from": path.name, "sha256": sha256_of(path)}
    architecture = Architecture(
        name=name,
        num_classes=num_classes,
        in_channels=preprocess.channels,
        size=size,
        arguments=complete_arguments(name, {}),
    )
    info = BundleInfo(
        architecture=architecture,
        classes=tuple(cache.classes),
        preprocess=preprocess,
        environment=describe(),
        starting_weights=starting,
    )
    return save_bundle(folder, model, info)


def _check_published(source: WeightsSource, num_classes: int) -> None:
    """Raises ConfigError unless the published weights are for as many classes as the data has."""
    published = source.num_classes()
    if published and published != num_classes:
        raise ConfigError(
            f"the published weights of {source.network} are for {published:,} classes, and the data has {num_classes}. "
            f"Train it on the data first: vivace train DATA --model {source.network} --pretrained"
        )
