"""vivace.load: a bundle that classifies images."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle, load_bundle
from vivace.predictor import Predictor

__all__ = ["LoadedBundle", "load"]


@dataclass(frozen=True)
class LoadedBundle(Bundle):
    """A bundle that classifies images, and makes predictors."""

    def predictor(self, **options: Any) -> Predictor:
        """A new predictor of the bundle. options: those of `Predictor`, such as threads=2."""
        return Predictor(self, **options)

    @functools.cached_property
    def _own_predictor(self) -> Predictor:
        return Predictor(self)

    def __call__(self, images: Any, *, topk: int = 5) -> Any:
        """The predictions of a predictor with default options, which is made at the first call."""
        return self._own_predictor(images, topk=topk)


def load(bundle: str | Path, *, model: Any = None) -> LoadedBundle:
    """The bundle in a folder, or in a run's folder, after every file's hash was checked.

        bundle = vivace.load("runs/cifar10-fast")
        bundle("photo.jpg").label
        predictor = bundle.predictor(threads=2)

    model: the code of a network of your own, as `train` took it: the class, a function, an instance, or "FILE.py:NAME".
    It is needed where the network itself is: `build_model`, exports that trace it, acceleration that changes it.
    Nothing that a bundle says is ever imported. The code is compared with the graph in the bundle.
    Raises BundleError if it is no bundle, damaged, newer than this version, names a file outside its folder, or if the
    code does not fit it; ConfigError for a model beside a bundle of ours or timm's; ModelError for unusable code.
    """
    found = load_bundle(bundle)
    if model is not None:
        from vivace.runtimes.own_code import with_code

        found = with_code(found, model)
    return LoadedBundle(found.folder, found.info, found.files, found.recorded, found.network)
