"""From what a module takes back to the pixels of an image file, by the normalisation that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError, ExportError, shown
from vivace.notices import warn

__all__ = ["given_preprocess", "pixels_of"]

# of the 0..1 scale: resizing in float may exceed it a little
SLACK = 0.02
# images whose pixels use less of the scale are hardly normalised by what was named
LEAST_SPREAD = 0.35
# torchvision resizes so by default
INTERPOLATION: Literal["bilinear"] = "bilinear"


def given_preprocess(
    images_BCHW: Tensor,
    *,
    preprocess: Preprocess | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> Preprocess:
    """What turns an image file into images like images_BCHW, from what the user says of it.

    Raises ConfigError where nothing is said, or what is said can't be what these images were made by.
    """
    _, channels, side, _ = images_BCHW.shape
    if channels not in (1, 3):
        raise ExportError(f"a bundle takes images of 1 or 3 channels: got {channels}. Keep `result.module`.")
    if preprocess is not None:
        found = _checked(preprocess, channels, side, named=mean is not None or std is not None)
    elif mean is None or std is None:
        raise ConfigError(
            "how pixels become the module's input is not known: its data are tensors. Give `mean` and `std` as your "
            "transforms have them (mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225) for most weights of "
            "torchvision; mean=0, std=1 for ToTensor alone), or `preprocess`, such as that of another bundle."
        )
    else:
        means, stds = (_per_channel(name, value, channels) for name, value in (("mean", mean), ("std", std)))
        sizes: Any = {"size": side, "store_size": side, "channels": channels}
        found = Preprocess(mean=means, std=stds, interpolation=INTERPOLATION, **sizes)
    _check_fit(images_BCHW, found)
    if preprocess is None:
        warn(
            f"an image file is cut to its central square and resized to {side} px ({INTERPOLATION}). Give `preprocess` "
            "for anything else"
        )
    return found


def _checked(preprocess: Preprocess, channels: int, side: int, *, named: bool) -> Preprocess:
    if not isinstance(preprocess, Preprocess):
        raise ConfigError(f"`preprocess` is no vivace Preprocess: got {shown(preprocess)}. Give mean and std instead.")
    if named:
        raise ConfigError("`preprocess` has mean and std itself: got these beside it. Leave them out.")
    if (preprocess.channels, preprocess.size) != (channels, side):
        raise ConfigError(
            f"`preprocess` is for {preprocess.channels} channels of {preprocess.size} px, and the module takes "
            f"{channels} of {side} px. Give one for these."
        )
    return preprocess


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    try:
        # arrays and tensors too
        values = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        values = np.full(0, np.nan)
    if values.shape not in ((), (channels,)) or not np.isfinite(values).all():
        raise ConfigError(f"`{name}` does not fit {channels} channels: got {shown(value)}. Give a number for each.")
    return tuple(np.broadcast_to(values, channels).tolist())


def _check_fit(images_BCHW: Tensor, preprocess: Preprocess) -> None:
    """Raises ConfigError unless the images, with the normalisation undone, lie in 0..1."""
    pixels = _scaled(images_BCHW, preprocess)
    low, high = float(pixels.min()), float(pixels.max())
    named = f"mean {_shown(preprocess.mean)} and std {_shown(preprocess.std)}"
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise ConfigError(
            f"the data were not normalised by {named}: with these undone they go from {low:.2f} to {high:.2f}, and "
            "pixels from 0 to 1. Give those of your transforms."
        )
    if high - low < LEAST_SPREAD:
        warn(
            f"with {named} the pixels of the data only go from {low:.2f} to {high:.2f}: were they normalised by these?"
        )


def _scaled(images_BCHW: Tensor, preprocess: Preprocess) -> np.ndarray:
    """pixels_BHWC on the 0..1 scale."""
    images_BHWC = images_BCHW.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    scaled: np.ndarray = images_BHWC * np.array(preprocess.std) + np.array(preprocess.mean)
    return scaled


def pixels_of(images_BCHW: Tensor, preprocess: Preprocess) -> np.ndarray:
    """images_BHWC uint8: the pixels that become such images."""
    return (_scaled(images_BCHW, preprocess) * 255).round().clip(0, 255).astype(np.uint8)


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))
