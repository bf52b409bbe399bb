"""The networks of a search: the model's own, and smaller ones that were trained to replace it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vivace.acceleration.candidates import Builder, Candidate
from vivace.acceleration.splits import Images, Splits, open_splits
from vivace.bundle import Bundle
from vivace.compression.layers import LayerGroup, rank_layers
from vivace.data.place import AnyData
from vivace.errors import DataError
from vivace.runtimes.loading import load_reference, load_runtime

__all__ = ["Network", "open_network", "rank_layers_of"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network, the images at its input size, and the builder of its variants."""

    name: str
    """`Candidate.network`; empty for the model's own."""
    bundle: Bundle
    splits: Splits
    builder: Builder

    def probs(self, candidate: Candidate | None, images: Images) -> np.ndarray:
        """probs_NK of one of its variants on images; None: of the plain network in float32 (`load_reference`)."""
        if candidate is None:
            return images.probs(load_reference(self.bundle))
        bundle, cpu = self.builder.build(candidate), torch.device("cpu")
        return images.probs(load_runtime(candidate.runtime, bundle, device=cpu, precision=candidate.precision))


def rank_layers_of(network: Network, candidate: Candidate, images: Images) -> list[LayerGroup]:
    """Layers of a network's int8 variant that are worth reverting to float, the best first; see `rank_layers`."""
    return rank_layers(
        network.builder.int8_graph(candidate),
        images.pixels(),
        network.probs(None, images),
        precision=candidate.precision,
        multi_label=network.bundle.info.multi_label,
    )


def open_network(
    name: str,
    bundle: Bundle,
    data: AnyData,
    work: Path,
    *,
    cache_dir: Path | None,
    on_bad_image: str,
    like: Splits | None = None,
    num_calibrate: int | None = None,
) -> Network:
    """A network with its images. work: folder for its variants.

    like: splits that must have the same images. num_calibrate: number of calibration images; None: all of them.
    Raises what `open_splits` raises, and DataError if the images differ from those of `like`.
    """
    splits = open_splits(bundle, data, cache_dir=cache_dir, on_bad_image=on_bad_image)
    if like is not None:
        for own, other in ((splits.select, like.select), (splits.certify, like.certify)):
            if not (np.array_equal(own.rows, other.rows) and np.array_equal(own.labels, other.labels)):
                raise DataError(
                    f"{name} would be compared on other images: {splits.data} changed during the search. Run it again."
                )
    calibrate = splits.calibrate if num_calibrate is None else splits.calibrate.some(num_calibrate)
    return Network(name=name, bundle=bundle, splits=splits, builder=Builder(bundle, work, calibrate.pixels))
