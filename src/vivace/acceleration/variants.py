"""Networks that compete: the model's own, and smaller ones that were trained to take its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vivace.acceleration.candidates import Builder, Candidate
from vivace.acceleration.splits import Images, Splits, open_splits
from vivace.bundle import Bundle
from vivace.compression.layers import GivenBack, rank_layers
from vivace.data.place import AnyData
from vivace.errors import DataError
from vivace.exporting.parity import PLAIN
from vivace.runtimes import load_runtime

__all__ = ["Variant", "open_variant", "rank_layers_of"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network with the images at its own size, and what builds its forms."""

    name: str
    """As candidates call it; empty for the model's own."""
    bundle: Bundle
    splits: Splits
    builder: Builder

    def probs(self, candidate: Candidate | None, images: Images) -> np.ndarray:
        """probs_NK of one of its forms, or of the plain network in float32, on images."""
        form = PLAIN if candidate is None else (candidate.runtime, candidate.precision)
        bundle = self.bundle if candidate is None else self.builder.build(candidate)
        return images.probs(load_runtime(form[0], bundle, device=torch.device("cpu"), precision=form[1]))


def rank_layers_of(variant: Variant, candidate: Candidate, images: Images) -> list[GivenBack]:
    """Layers of a network's int8 form that are worth their return to float, the best first; see `rank_layers`."""
    return rank_layers(
        variant.builder.int8_graph(candidate),
        images.pixels(),
        variant.probs(None, images),
        precision=candidate.precision,
    )


def open_variant(
    name: str,
    bundle: Bundle,
    data: AnyData,
    work: Path,
    *,
    cache_dir: Path | None,
    on_bad_image: str,
    like: Splits | None = None,
    num_calibrate: int | None = None,
) -> Variant:
    """A variant whose splits hold the images that those of `like` hold. work: folder for what is built of it.

    num_calibrate: so many images to calibrate int8 forms on; None: all that are for it.
    Raises what `open_splits` raises, and DataError if the images are not the same ones.
    """
    splits = open_splits(bundle, data, cache_dir=cache_dir, on_bad_image=on_bad_image)
    if like is not None:
        for own, other in ((splits.select, like.select), (splits.certify, like.certify)):
            if not (np.array_equal(own.rows, other.rows) and np.array_equal(own.labels, other.labels)):
                raise DataError(
                    f"{name} would be compared on other images: {splits.data} changed meanwhile. Run again."
                )
    calibrate = splits.calibrate if num_calibrate is None else splits.calibrate.some(num_calibrate)
    return Variant(name=name, bundle=bundle, splits=splits, builder=Builder(bundle, work, calibrate.pixels))
