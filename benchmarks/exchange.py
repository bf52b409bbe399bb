"""The folder that hands a network and its images to the sides of `infer.py` (peers/inference.py reads it)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from peers.inference import Exchange
from vivace.acceleration.splits import Images, Splits, open_splits
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.files import write_json
from vivace.models.zoo import create_model

__all__ = ["SPLITS", "random_bundle", "view_for", "write_exchange", "write_random_exchange"]

SPLITS = ("calibrate", "select", "certify")
NUM_TIMED = 64
NUM_RANDOM = 64
# of what is copied at a time: photos of 224 px, 10,000 of them, are 1.5 GB
CHUNK = 256


def random_bundle(folder: Path, name: str, *, size: int, num_classes: int = 1000, seed: int = 0) -> Bundle:
    """A bundle with random weights: as fast as a trained one, with meaningless answers."""
    torch.manual_seed(seed)
    info = BundleInfo(
        architecture=Architecture(name=name, num_classes=num_classes, size=size),
        classes=tuple(str(number) for number in range(num_classes)),
        preprocess=Preprocess(size=size, store_size=size),
    )
    return save_bundle(folder, create_model(name, num_classes, size=size), info)


def write_exchange(
    folder: Path, bundle: Bundle, splits: Splits, *, batch: int, max_drop: float, num_certify: int | None = None
) -> Exchange:
    """The images of a search's three splits, and some of those to select on, to be timed on.

    num_certify: of the images to certify on, evenly spread; None: all.
    """
    folder.mkdir(parents=True)
    images = {name: getattr(splits, name) for name in SPLITS}
    if num_certify is not None:
        images["certify"] = splits.certify.some(num_certify)
    images["timed"] = splits.select.some(max(NUM_TIMED, batch))
    for name, some in images.items():
        _write_images(folder / f"{name}.npy", some)
        np.save(folder / f"{name}-labels.npy", some.labels)
    return _with_facts(folder, bundle, max_drop)


def write_random_exchange(folder: Path, bundle: Bundle, *, batch: int, seed: int = 0) -> Exchange:
    """Noise for images, to calibrate and to time on."""
    folder.mkdir(parents=True)
    size = bundle.preprocess.size
    rng = np.random.default_rng(seed)
    for name in ("calibrate", "timed"):
        shape = (max(NUM_RANDOM, batch), size, size, bundle.preprocess.channels)
        np.save(folder / f"{name}.npy", rng.integers(0, 256, shape, dtype=np.uint8))
    return _with_facts(folder, bundle, 0.0)


def view_for(
    exchange: Exchange, folder: Path, returned: Bundle, bundle: Bundle, data: Path, **opening: str
) -> Exchange:
    """The exchange for a bundle that came of `bundle`: the same, or one with the same images as it sees them.

    opening: as `open_splits` takes it. Raises ValueError if the images turn out to be others.
    """
    if returned.preprocess == bundle.preprocess:
        return exchange
    splits = open_splits(returned, data, **opening)
    count = len(exchange.labels("certify"))
    seen = write_exchange(
        folder, returned, splits, batch=len(exchange.labels("timed")), max_drop=0.0, num_certify=count
    )
    if not np.array_equal(seen.labels("certify"), exchange.labels("certify")):
        raise ValueError(f"{returned.folder} divides the data otherwise than {bundle.folder}")
    return seen


def _write_images(path: Path, images: Images) -> None:
    size, channels = images.preprocess.size, images.preprocess.channels
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(images), size, size, channels))
    start = 0
    for batch_NHWC in images.batches(CHUNK):
        written[start : start + len(batch_NHWC)] = batch_NHWC
        start += len(batch_NHWC)
    written.flush()


def _with_facts(folder: Path, bundle: Bundle, max_drop: float) -> Exchange:
    preprocess = bundle.preprocess
    kinds = {type(module).__name__ for module in bundle.build_model().modules()}
    write_json(
        folder / "facts.json",
        {
            "bundle": str(bundle.folder.resolve()),
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "size": preprocess.size,
            "channels": preprocess.channels,
            "num_classes": len(bundle.classes),
            "attention": any("Attention" in kind for kind in kinds),
            # points
            "max_drop": max_drop,
        },
    )
    return Exchange(folder)
