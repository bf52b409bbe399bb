"""How the classes of a run are balanced: weights by name are checked, very unequal classes are reported (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vivace.data.labelsets import class_counts
from vivace.data.text import shortened
from vivace.errors import ConfigError, nearest
from vivace.training.recipes.recipe import Recipe

__all__ = ["balance_lines", "check_class_names"]

# the ratio of two classes from which on balancing them is suggested
MANY_TIMES = 10
MAX_NAMED = 5


def check_class_names(weights: object, classes: Sequence[str]) -> None:
    """Raise ConfigError if `loss.class_weights` names a class that the data do not have."""
    for name in weights if isinstance(weights, Mapping) else ():
        if name not in classes:
            known = f" Known: {', '.join(classes)}." if len(classes) <= 2 * MAX_NAMED else ""
            raise ConfigError(
                f"loss.class_weights names a class that the data do not have: got {name!r:.100}."
                f"{nearest(name, classes)}{known}"
            )


def balance_lines(
    recipe: Recipe, labels_N: np.ndarray, classes: Sequence[str], label_sets_MK: np.ndarray | None = None
) -> list[str]:
    """What is said of the balance of the classes: weights by name, or that very unequal classes have none.

    labels_N: of the training images; with label_sets_MK, the numbers of its rows.
    """
    config = recipe.loss
    if isinstance(config.class_weights, Mapping):
        shown = [f"{name} {weight:g}" for name, weight in list(config.class_weights.items())[:MAX_NAMED]]
        more = len(config.class_weights) - len(shown)
        others = len(classes) - len(config.class_weights)
        parts = [*shown, *([f"{more} more"] if more else []), *([f"the other {others}: 1"] if others else [])]
        return [f"class weights: {', '.join(parts)}"]
    counts_K = class_counts(labels_N, len(classes), label_sets_MK)
    seen = np.flatnonzero(counts_K)
    if config.class_weights == "balanced" or recipe.data.balanced_sampling or len(seen) < 2:
        return []
    what = "classes" if label_sets_MK is None else "labels"
    most, least = int(counts_K.argmax()), int(seen[counts_K[seen].argmin()])
    if counts_K[most] < MANY_TIMES * counts_K[least]:
        return []
    common, rare = shortened(classes[most]), shortened(classes[least])
    return [
        f"the {what} differ in size: {common} has {counts_K[most]:,} training images, {rare} {counts_K[least]:,}. "
        f"If rare {what} matter as much, try `loss.class_weights='balanced'`"
    ]
