"""What a recipe does otherwise for images that are kept as they are: of 16 bits, floats, or other channels than RGB."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from vivace.data.decoding.raw import is_raw
from vivace.data.text import count_of
from vivace.training.recipes.recipe import Recipe

__all__ = ["adapted_to_raw"]

# augmentations of colours of 8 bits → what they are when they are left out
OF_COLOURS: dict[str, Any] = {"trivial_augment": False, "color_jitter": 0.0, "mix": "none"}
# of published weights
RGB = 3
# of whitening: the default of FastCNN, for RGB, and a limit, beyond which the first layer costs most of a step
DIRECTIONS, MAX_DIRECTIONS = 24, 128


def adapted_to_raw(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """(the recipe as it suits its images, a line for each thing that is other). Its data are resolved."""
    pixels, channels = recipe.data.pixels or "uint8", recipe.data.channels or RGB
    if not is_raw(pixels, channels):
        return recipe, []
    kind = f"{count_of(channels, 'channel')} of {pixels}"
    lines = []
    if left_out := [name for name, off in OF_COLOURS.items() if getattr(recipe.augment, name) != off]:
        names = " and ".join(f"augment.{name}" for name in left_out)
        lines.append(f"left out {names}: of {kind} only crops, flips, shifts, cutout and mixing are possible")
        recipe = dataclasses.replace(recipe, augment=dataclasses.replace(recipe.augment, **OF_COLOURS))
    if channels > RGB and recipe.model.name == "fast_cnn":
        # of each channel as much as of those of RGB passes its first layer, which keeps what varies most
        arguments = dict(recipe.model.arguments)
        most = arguments.get("num_directions", DIRECTIONS) * channels / RGB
        arguments["num_directions"] = min(MAX_DIRECTIONS, math.ceil(most))
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, arguments=arguments))
    if recipe.model.pretrained:
        spread = "" if channels == RGB else f", and their first layer is spread over {count_of(channels, 'channel')}"
        lines.append(f"pretrained weights are of photos in 8-bit RGB, the images have {kind}{spread}")
    return recipe, lines
