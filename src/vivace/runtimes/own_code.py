"""A bundle of a network of the user's own together with its code, which was passed with the call."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import BundleError, ConfigError, MissingExtra
from vivace.models.own.given import own_network
from vivace.notices import warn
from vivace.runtimes.loading import load_reference

__all__ = ["with_code"]

NUM_COMPARED = 4
# of a probability in float32, in another order of sums
TOLERANCE = 1e-3


def with_code(bundle: Bundle, model: Any) -> Bundle:
    """The bundle with the code of its network, which is built, filled, and compared with the graph in the bundle.

    model: as `train` takes it: a class, a function, an instance, or "FILE.py:NAME".
    Raises ConfigError for a bundle whose network is none of the user's own, and for what is the name of a network;
    ModelError for code that can't be used; BundleError if the weights do not fit it, or if it computes something else.
    """
    architecture = bundle.info.architecture
    if not architecture.is_own:
        raise ConfigError(
            f"`model` would be ignored: got {_shown(model)}, and {bundle.folder} has a network of ours or of timm, "
            f"{architecture.name}. Leave it out."
        )
    network = own_network(model)
    if network is None:
        raise ConfigError(
            f"`model` is no code: got {_shown(model)}. Give the class or function that made the network, an instance, "
            "or 'FILE.py:NAME'."
        )
    found = dataclasses.replace(bundle, network=network)
    shown = architecture.name.removeprefix("own/")
    before = bundle.info.network.get("sha256")
    changed = before is not None and network.sha256 is not None and before != network.sha256
    difference = _difference(found)
    if difference is not None and not difference <= TOLERANCE:
        raise BundleError(
            f"the code computes something else than the bundle: {network.shown} fits the weights "
            f"of {shown}, and its probabilities differ by up to {difference:.2g} on {NUM_COMPARED} images"
            f"{'; its source was changed since' if changed else ''}. Give the code that it was trained with."
        )
    if changed:
        compared = "was not compared: the bundle has no graph" if difference is None else "still computes the same"
        warn(f"the source of {shown} was changed since it was trained; it {compared}")
    return found


def _shown(model: Any) -> str:
    return repr(model)[:80] if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)


def _difference(bundle: Bundle) -> float | None:
    """The largest difference of a probability, of the code and of the graph; None without a graph or what runs it."""
    preprocess = bundle.preprocess
    shape = (NUM_COMPARED, preprocess.size, preprocess.size, preprocess.channels)
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, shape, dtype=np.uint8)
    if preprocess.dtype != "uint8":
        images_NHWC = (preprocess.white * rng.normal(preprocess.mean, preprocess.std, shape)).astype(np.float32)
    own_NK = load_reference(bundle)(images_NHWC)
    if bundle.reference_graph is None:
        return None
    try:
        graph_NK = load_reference(dataclasses.replace(bundle, network=None))(images_NHWC)
    except MissingExtra:
        return None
    return float(np.abs(own_NK - graph_NK).max())
