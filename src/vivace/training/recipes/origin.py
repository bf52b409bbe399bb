"""Runs that start from a trained one: what they take from it, which of their images it knows (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.bundle import Bundle, load_bundle
from vivace.data.caching.cache import Cache
from vivace.errors import BundleError, CheckpointError, ConfigError
from vivace.manifest import WEIGHTS
from vivace.models.own.names import is_own
from vivace.notices import warn
from vivace.trained_on import TrainedOn
from vivace.training.recipes.named import DEFAULT_RECIPE
from vivace.training.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Origin", "known_images", "origin_of", "with_origin"]

# a run from a trained one has the network of that
OF_NETWORK = {"model.name": "model", "model.pretrained": "pretrained", "model.weights": "weights"}


@dataclass(frozen=True)
class Origin:
    """The bundle that a run starts from."""

    bundle: Bundle
    trained_on: TrainedOn | None
    """The images that it was trained on; None: it does not tell."""

    @property
    def sha256(self) -> str:
        """Of its weights."""
        return str(self.bundle.recorded[WEIGHTS]["sha256"])

    def weights(self) -> dict[str, Tensor]:
        """The state dict, on the CPU. Raises BundleError if it can't be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(self.bundle.checked(WEIGHTS)))
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise BundleError(f"the bundle can't be read: {self.bundle.folder} ({error}). Make it again.") from None

    def knows(self, digests_N: np.ndarray) -> np.ndarray | None:
        """bool [N]: whether it was trained on the images with these digests; None: it does not tell."""
        return None if self.trained_on is None else self.trained_on.among(digests_N)

    def with_earlier(self, digests_N: np.ndarray) -> np.ndarray:
        """Digests of images, and those of the images that it was trained on."""
        if self.trained_on is None:
            return digests_N
        return np.concatenate(
            [np.asarray(digests_N).astype(self.trained_on.digests_n.dtype), self.trained_on.digests_n]
        )


def with_origin(recipe: Any, changes: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(recipe, changes) of a new run with `model.start_from`: network and preprocessing are those of the bundle.

    recipe: as `train` takes it; "auto" becomes `finetune` for a network of timm, else `fast`. What is set otherwise
    for size, fit or interpolation wins. Raises BundleError, and ConfigError for another network.
    """
    changes = dict(changes)
    place = changes.get("model.start_from")
    if not place:
        return recipe, changes
    info = load_bundle(place).info
    architecture, preprocess = info.architecture, info.preprocess
    # the code of a network of the user's own is not in the bundle: it is given again, and must fit the weights
    given = changes.get("model.name") if architecture.is_own else None
    for field, name in OF_NETWORK.items():
        if changes.get(field) and not (given is not None and field == "model.name" and is_own(str(given))):
            raise ConfigError(
                f"`start_from` can't go with `{name}`: got {str(place)!r} and {changes[field]!r}. Its network is that "
                "of the run: leave one of them out."
            )
    of_bundle: dict[str, Any] = {
        "model.name": given or architecture.name,
        "model.arguments": dict(architecture.arguments),
        "model.pretrained": False,
        "model.weights": None,
        "data.channels": preprocess.channels,
        "data.fit": preprocess.fit,
        "data.interpolation": preprocess.interpolation,
        "data.mean": preprocess.mean,
        "data.std": preprocess.std,
    }
    if changes.get("data.size") is None:
        of_bundle |= {"data.size": preprocess.size, "data.store_size": preprocess.store_size}
    if recipe == DEFAULT_RECIPE:
        recipe = "finetune" if architecture.name.startswith("timm/") else "fast"
    return recipe, of_bundle | {name: value for name, value in changes.items() if name not in OF_NETWORK}


def origin_of(recipe: Recipe, cache: Cache, saved: Mapping[str, Any] | None) -> Origin | None:
    """The bundle that a run of the recipe starts from; None without one.

    saved: run.json of a run that is resumed: its images must be held out as before, so that the bundle must be the
    same; where the data have a validation split, one that is gone is a warning. Raises BundleError, CheckpointError.
    """
    place = recipe.model.start_from
    if place is None:
        return None
    try:
        bundle = load_bundle(place)
        origin = Origin(bundle, bundle.trained_on())
    except BundleError as error:
        if saved is None:
            raise
        gone = str(error)
    else:
        weights = {} if saved is None else saved.get("weights")
        if saved is None or (isinstance(weights, Mapping) and weights.get("sha256") == origin.sha256):
            _tell_known(origin, cache)
            return origin
        gone = f"the run started from other weights than {place} holds now."
    if "val" in cache.splits:
        warn(f"{gone} The bundle will not list the images that these were trained on")
        return None
    raise CheckpointError(
        f"the run can't be resumed: {gone} They are needed to hold out the same images. Restore {Path(place)}, or "
        "start a new run with another `run`."
    )


def _tell_known(origin: Origin, cache: Cache) -> None:
    """Warn if a split that is measured has images that the weights were trained on."""
    for split in ("val", "test"):
        known_N = origin.knows(cache.splits[split].digests_N) if split in cache.splits else None
        if known_N is not None and known_N.any():
            warn(
                f"{int(known_N.sum()):,} of {len(known_N):,} {split} images are among those that the run it starts "
                f"from was trained on: accuracy on {split} is too high. Leave them out of {split}"
            )


def known_images(recipe: Recipe, cache: Cache, origin: Origin | None) -> np.ndarray | None:
    """bool [N]: which images of train its starting weights or its teacher were trained on; None: nobody tells.

    What is held out should be none of them. Raises BundleError for a teacher that can't be read.
    """
    lists = [] if origin is None else [origin.trained_on]
    if recipe.distill.teacher is not None:
        lists.append(load_bundle(recipe.distill.teacher).trained_on())
    digests_N = cache.splits["train"].digests_N
    known = [trained_on.among(digests_N) for trained_on in lists if trained_on is not None]
    return np.logical_or.reduce(known) if known else None
