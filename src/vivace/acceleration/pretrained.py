"""A bundle from a network's name and pretrained weights, to be accelerated."""

from __future__ import annotations

from pathlib import Path

from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.caching.cache import open_cache
from vivace.data.describe import notes_of
from vivace.data.place import AnyData
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import ConfigError, DataError
from vivace.hardware import describe
from vivace.models.zoo import complete_arguments, create_model, load_weights, pretrained_stats
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
) -> Bundle:
    """Write a bundle of the network `name` into `folder`, for the classes of `data`, in their order.

    name: of the zoo, or timm/NAME. weights: a local state dict; None: those that timm publishes for the name. Pixels
    are normalised as the published weights require; for a network without any, with mean and deviation 0.5. size: side
    of the input, px; None: that of the published weights.
    Raises ModelError for weights that don't fit or can't be loaded, ConfigError if the number of the network's classes
    differs from the data's, DataError for data without a val or test split, and what opening the data raises.
    """
    source = open_source(data, cache_dir=cache_dir)
    for line in notes_of(source):
        warn(line)
    stats = pretrained_stats(name)
    size = size or (stats[2] if stats else PLAIN_SIZE)
    mean, std = (stats[0], stats[1]) if stats and source.channels == 3 else ((0.5,) * source.channels,) * 2
    preprocess = Preprocess(
        size=size,
        store_size=round(size / CROP_SHARE),
        channels=source.channels,
        mean=tuple(mean),
        std=tuple(std),
    )
    # only classes with readable images count
    cache = open_cache(source, preprocess, cache_dir=cache_dir, on_bad_image=on_bad_image, allow_leaks=False)
    if not {"val", "test"} & set(cache.splits):
        raise DataError(
            f"all images of {source.name} may have been trained on: it has no val and no test split, and a file of "
            "weights does not say what it was trained on. Give data with one of these splits."
        )
    num_classes = len(cache.classes)
    if weights is None:
        _check_published(name, num_classes)
    model = create_model(
        name, num_classes, in_channels=preprocess.channels, size=size, pretrained=weights is None
    ).eval()
    if weights is not None:
        left_out = load_weights(model, weights)
        if left_out:
            raise ConfigError(
                f"the weights are for other classes: {weights} has no {left_out[0]} for the {num_classes} of "
                f"{source.name}. Train it on them first: vivace train {data} --model {name} --weights {weights}"
            )
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
    )
    return save_bundle(folder, model, info)


def _check_published(name: str, num_classes: int) -> None:
    """Raises ConfigError unless timm publishes weights for as many classes as the data has."""
    if not name.startswith("timm/"):
        raise ConfigError(f"there are no published weights for {name}. Give `weights`: a file.")
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=True)
    published = getattr(config, "num_classes", None)
    if published is not None and published != num_classes:
        raise ConfigError(
            f"the published weights of {name} are for {published:,} classes, and the data has {num_classes}. "
            f"Train it on the data first: vivace train DATA --model {name} --pretrained"
        )
