"""Heat maps of the mistakes of an evaluation, as pictures, and how far such maps can be relied on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.config import to_dict
from vivace.data.caching.cache import CachedSplit
from vivace.data.place import Data
from vivace.evaluation.hardship import chosen_at_random
from vivace.evaluation.mistakes import NUM_MISTAKES, Mistake
from vivace.heatmaps.pictures import HeatMapFolder
from vivace.predictor import Predictor

if TYPE_CHECKING:
    from vivace.heatmaps.check import MapCheck

__all__ = ["HeatMaps", "explained", "heat_map_folder"]

# images that the maps are tested on
NUM_CHECKED = 32


@dataclass(frozen=True, kw_only=True)
class HeatMaps:
    """The pictures of heat maps that were written, and the tests of such maps."""

    folder: str
    num_pictures: int
    method: str
    """Grad-CAM, attention-gradient rollout or gradient x input."""
    layer: str
    """The network's layer that they are of; of a transformer how many attention layers."""
    side: int
    """Its places on a side: a map is no finer."""
    check: MapCheck
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)


def heat_map_folder(folder: str | Path, predictor: Predictor, data: Any) -> HeatMapFolder:
    """The folder for the pictures of as many mistakes as are shown; if `data` is a folder, it may not be inside.

    Raises ConfigError for a bundle without the code of its
    network, OutputPathError if a picture would replace a file that vivace did not write.
    """
    from vivace.heatmaps.mapper import check_explainable

    check_explainable(predictor.bundle)
    where = Data.of(data).where
    outside = [Path(where)] if isinstance(where, str | Path) and Path(where).is_dir() else []
    return HeatMapFolder(folder, ["mistake"] * NUM_MISTAKES, inputs=[predictor.bundle.folder], outside=outside)


def explained(
    folder: HeatMapFolder,
    predictor: Predictor,
    cached: CachedSplit,
    rows: np.ndarray,
    mistakes: Sequence[Mistake],
    *,
    seed: int = 0,
) -> tuple[tuple[Mistake, ...], HeatMaps]:
    """The mistakes with the files of their pictures, and what was made.

    A picture has the image, what in it speaks for the predicted class, and what for the true one; of sets of labels,
    what speaks for the label in question. rows: the images that are evaluated, some of which, drawn by `seed`, test the
    maps. Raises what `HeatMapper` and `HeatMapFolder.write` raise.
    """
    from vivace.heatmaps.check import check_maps
    from vivace.heatmaps.mapper import HeatMapper

    started = time.perf_counter()
    bundle, view = predictor.bundle, predictor.bundle.preprocess.view
    mapper = HeatMapper(bundle, device=predictor.device)
    asked = [_classes_of(mistake, bundle.classes) for mistake in mistakes]
    images_NHWC = view(np.asarray(cached.images_NHWC[[mistake.index for mistake in mistakes]]))
    maps = [
        mapper(images_NHWC, np.array([classes[min(place, len(classes) - 1)] for classes in asked], np.int64))
        for place in range(2)
    ]
    shown = []
    for index, (mistake, classes) in enumerate(zip(mistakes, asked, strict=True)):
        path = folder.write(index, images_NHWC[index], [one[index] for one in maps[: len(classes)]])
        shown.append(dataclasses.replace(mistake, heat_map=str(path)))
    folder.warn_of_others()
    tested = view(np.asarray(cached.images_NHWC[chosen_at_random(rows, NUM_CHECKED, seed)]))
    return tuple(shown), HeatMaps(
        folder=str(folder.folder),
        num_pictures=len(shown),
        method=mapper.method,
        layer=mapper.layer,
        side=mapper.side,
        check=check_maps(mapper, tested, seed=seed),
        seconds=time.perf_counter() - started,
    )


def _classes_of(mistake: Mistake, classes: Sequence[str]) -> tuple[int, ...]:
    """The class that was predicted and the true one; the one label in question of an image with a set of them."""
    found = [name for name in (mistake.predicted, mistake.label) if name in classes]
    if len(found) == 2 or not found:
        return tuple(classes.index(name) for name in found)
    return (classes.index(found[0]),)
