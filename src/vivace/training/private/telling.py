"""What a private run says, keeps to itself, and refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.errors import CheckpointError
from vivace.notices import warn
from vivace.training.private.accounting import Spent
from vivace.training.recipes.recipe import Recipe

__all__ = ["check_not_resumed", "public_facts", "warn_of_leaks"]

# facts of the data that tell whether a data set is just this one: whoever knows all images but one could try that one
OF_CONTENTS = frozenset({"fingerprint", "place", "file"})


def check_not_resumed(recipe: Recipe, run: Path, *, is_finished: bool) -> None:
    """Raise CheckpointError for a private run that is to go on: nothing was asked of one that has finished."""
    if recipe.privacy.is_private and not is_finished:
        raise CheckpointError(
            f"a private run can't go on: {run}. Its noise was found for the steps that it began with, more would spend "
            "more than was promised, and what drew its images and noise is kept nowhere. Start a new run with another "
            "`run`; each run on the same images spends its own epsilon."
        )


def public_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a private bundle says of its data: their name and numbers, which the promise takes to be known."""
    return {name: value for name, value in facts.items() if name not in OF_CONTENTS}


def warn_of_leaks(spent: Spent, *, num_held_out: int | None, num_copies: int) -> None:
    """Warn of what the promise does not cover. num_held_out: images that were held out of the training images.
    num_copies: how often the image is there that comes most often."""
    warn(
        f"the weights are differentially private: epsilon {spent.epsilon:.3g}, delta {spent.delta:g}, for one training "
        "image more or less. Share the bundle alone: the run's folder (metrics.csv, TensorBoard, checkpoints, report) "
        "and the cache of images are not protected, and each further run on these images, as to choose a seed or a "
        "setting, spends as much again"
    )
    if num_copies > 1:
        warn(
            f"an image comes {num_copies:,} times among the training images: epsilon is for one of them more or less, "
            "and for all copies of a picture as many times as much. Copies are listed by 'vivace audit'"
        )
    if num_held_out is not None:
        warn(
            f"{num_held_out:,} images were held out of the training images to measure accuracy on: epsilon does not "
            "cover them, and that accuracy, which is in the bundle, tells of them. A val or test split of images that "
            "are nobody's secret avoids it"
        )
