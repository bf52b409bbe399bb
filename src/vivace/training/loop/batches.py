"""The training batches of a run."""

from __future__ import annotations

import torch

from vivace.data.caching.anew import reader_of
from vivace.data.loader import Batches
from vivace.training.loop.arrays import TrainingData
from vivace.training.recipes.recipe import Recipe

__all__ = ["training_batches"]


def training_batches(data: TrainingData, recipe: Recipe, device: torch.device) -> Batches:
    """Batches of the training images, on the device; where their items are random, each is read anew."""
    train, label_sets = data.cache.splits["train"], data.cache.label_sets
    return Batches(
        train.images_NHWC,
        train.labels_N,
        indices=data.train_indices,
        batch_size=min(recipe.batch_size, len(data.train_indices)),
        device=device,
        seed=recipe.seed,
        balanced=recipe.data.balanced_sampling,
        num_classes=len(data.cache.classes) if label_sets is None else len(label_sets),
        reader=reader_of(data.cache, recipe.seed),
    )
