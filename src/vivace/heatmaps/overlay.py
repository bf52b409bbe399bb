"""Heat maps as pictures: the places that speak for a class, coloured over a grey image (no torch here)."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["enlarged", "overlaid", "side_by_side"]

# value → colour: Okabe and Ito's blue, orange and yellow, which colour-blind people can distinguish
STOPS = (0.0, 0.35, 0.7, 1.0)
COLOURS = ((0, 114, 178), (0, 158, 115), (230, 159, 0), (240, 228, 66))
# of the colour over the image, where the map is 0 and where it is 1
OPACITY = (0.15, 0.75)
GAP, WHITE = 4, 255


def overlaid(image_HWC: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the image in grey, under the colours of the map.

    image_HWC: uint8 with 1 or 3 channels. map_HW: float32 in [0, 1], of any size: it is stretched smoothly.
    """
    height, width = image_HWC.shape[:2]
    heat = enlarged(map_HW, height, width)
    grey = image_HWC.astype(np.float32) @ ((0.299, 0.587, 0.114) if image_HWC.shape[-1] == 3 else (1.0,))
    colour = np.stack([np.interp(heat, STOPS, [one[channel] for one in COLOURS]) for channel in range(3)], axis=-1)
    opacity = (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * heat)[..., None]
    mixed: np.ndarray = (1 - opacity) * grey[..., None] + opacity * colour
    return mixed.round().clip(0, 255).astype(np.uint8)


def enlarged(map_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [height, width] in [0, 1], bilinear."""
    picture = Image.fromarray(np.ascontiguousarray(map_HW, dtype=np.float32))
    large = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    clipped: np.ndarray = large.clip(0, 1)
    return clipped


def side_by_side(images: list[np.ndarray], *, least_side: int) -> Image.Image:
    """A picture of several images uint8 [H, W, 1 | 3] of one size; small ones are enlarged by a whole number."""
    height, width = images[0].shape[:2]
    times = max(1, -(-least_side // max(height, width)))
    picture = Image.new("RGB", (len(images) * (times * width + GAP) - GAP, times * height), (WHITE,) * 3)
    for place, image in enumerate(images):
        shown = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
        large = shown.resize((times * width, times * height), Image.Resampling.NEAREST)
        picture.paste(large, (place * (times * width + GAP), 0))
    return picture
