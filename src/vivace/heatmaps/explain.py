"""vivace.heat_maps: what in images speaks for a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import ConfigError, nearest
from vivace.heatmaps.overlay import side_by_side
from vivace.heatmaps.pictures import LEAST_SIDE, panels
from vivace.inputs import Given, check_image, name_of
from vivace.predictor import Predictor, check_whole, predictor_for

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HeatMap", "heat_maps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeatMap:
    """The places of an image that speak for a class."""

    name: str
    """What the image was called: its path, or "image 3" for one that has none and was at [3]."""
    label: str
    """The class that the map is of."""
    probability: float
    """Of that class."""
    values: np.ndarray
    """float32 [side, side] in [0, 1]: 1 where most speaks for the class; 0 everywhere if nothing does."""
    image: np.ndarray
    """[size, size, C], the pixels that the network saw."""
    method: str
    """Grad-CAM, attention-gradient rollout or gradient x input."""
    layer: str
    """The network's layer that it is of; of a transformer how many attention layers."""

    def picture(self) -> Image.Image:
        """The image, and beside it the same under the map's colours: yellow where most speaks for the class."""
        return side_by_side(panels(self.image, [self.values]), least_side=LEAST_SIDE)


def heat_maps(
    bundle: Bundle | Predictor | str | Path,
    images: Any,
    *,
    label: str | None = None,
    batch_size: int = 16,
    device: str = "auto",
) -> list[HeatMap]:
    """The heat map of each image: which places speak for a class, by the gradients of the network.

        vivace.heat_maps("runs/images", ["a.jpg"])[0].picture().save("a-heat.png")

    images: as for `Predictor`: a path, an array, a Pillow image …, or many of them. label: the class that all maps are
    of; None: of each image the one that the bundle predicts. batch_size: images per pass.
    The network is computed in float32 by PyTorch, whatever the bundle runs on. Convolutional networks, ours, timm's,
    torchvision's and those of your own, get Grad-CAM (arXiv:1610.02391) of the last layer with 3 x 3 places or more,
    and transformers attention-gradient rollout (arXiv:2103.15679), or gradient x input of their last tokens where their
    attention can't be read.
    A map shows what the network used, and not why; `vivace evaluate --heat-maps` measures how far it can be relied on.
    Raises ConfigError for an unknown label, a bundle without the code of its network, and a network without a layer
    that keeps places; and what `Predictor` raises.
    """
    from vivace.heatmaps.mapper import HeatMapper

    check_whole("batch_size", batch_size)
    predictor = predictor_for(bundle, device, batch_size, "auto")
    classes, preprocess = predictor.classes, predictor.bundle.preprocess
    if label is not None and label not in classes:
        raise ConfigError(f"label is no class of the bundle: got {label!r:.80}.{nearest(str(label), classes)}")
    mapper = HeatMapper(predictor.bundle, device=predictor.device)
    given = Given.of(images, preprocess.channels if preprocess.is_raw else None)
    found: list[HeatMap] = []
    names: list[str] = []
    pixels: list[np.ndarray] = []

    def flush() -> None:
        if not pixels:
            return
        images_NHWC = np.stack(pixels)
        probs_NK = predictor.probs(images_NHWC)
        classes_N = probs_NK.argmax(1) if label is None else np.full(len(pixels), classes.index(label))
        maps_NHW = mapper(images_NHWC, classes_N, batch_size=batch_size)
        found.extend(
            HeatMap(
                name=name,
                label=classes[row],
                probability=float(probs_K[row]),
                values=map_HW,
                image=image,
                method=mapper.method,
                layer=mapper.layer,
            )
            for name, row, probs_K, map_HW, image in zip(names, classes_N, probs_NK, maps_NHW, pixels, strict=True)
        )
        names.clear()
        pixels.clear()

    for index, image in enumerate(given.images):
        names.append(name_of(image, index))
        pixels.append(np.array(preprocess.load(check_image(image))))
        if len(pixels) == batch_size:
            flush()
    flush()
    return found
