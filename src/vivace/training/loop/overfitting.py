"""Watches over adversarial training: a probe by PGD at each validation, and the way back when it collapses.

Catastrophic overfitting (arXiv:2001.03994): within a few dozen steps a network that is trained on single-step attacks
loses all robustness to others, while its accuracy and loss look better than ever.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vivace.errors import CheckpointError
from vivace.hardware import autocast
from vivace.training.folder.checkpoints import load_checkpoint, save_checkpoint
from vivace.training.loop.restored import MALFORMED, check_tree
from vivace.training.loop.state import Counters, TrainState
from vivace.training.loop.validation import Robustness, eval_batch_size
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import Robust
from vivace.training.techniques.adversarial import pgd_right

if TYPE_CHECKING:
    from vivace.training.loop.session import Session

__all__ = ["Guard", "Overfitted", "has_collapsed", "num_probe_passes", "prober", "robust_of"]

# robust accuracy below this fraction of the best so far has collapsed: it swings by a tenth between epochs, and drops
# to a tenth or less when training overfits
COLLAPSED = 0.5
# and by so many standard errors of the two, so that a few probed images are no alarm
DEVIATIONS = 3.0


class Overfitted(Exception):
    """Raised after a validation whose probe has collapsed."""


def has_collapsed(now: float, best: float, num_images: int) -> bool:
    """Whether a robust accuracy of `num_images` images is far below the best earlier one, and not by chance."""
    error = math.sqrt((now * (1 - now) + best * (1 - best)) / num_images)
    return now < COLLAPSED * best and best - now > DEVIATIONS * error


def prober(session: Session, precision: str) -> Callable[[TrainState], Robustness] | None:
    """A function that probes the averaged network and the one that is trained; None: images are not attacked.

    The same images and random starts each time, so that probes can be compared, and a resumed run has the same.
    """
    adversary = session.adversary
    if adversary is None:
        return None
    config, data = adversary.config, session.data
    rows = np.arange(len(data.val_labels_N)) if data.val_indices is None else data.val_indices
    # evenly: images are often in the order of their classes
    count = min(config.probe_images, len(rows))
    some = np.sort(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)])
    images_NHWC = data.preprocess.view(np.asarray(data.val_images_NHWC[some]))
    images = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.asarray(data.val_labels_N[some], dtype=np.int64))
    size, device = eval_batch_size(data.preprocess.size), session.device

    def accuracy(model: nn.Module) -> float:
        def answer(images_BCHW: Tensor) -> Tensor:
            with autocast(device, precision):
                logits_BK: Tensor = model(session.normalize(images_BCHW))
            return logits_BK

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, count, size):
                chunk = slice(start, start + size)
                yield images[chunk].to(device), labels[chunk].to(device)

        right = pgd_right(
            answer,
            batches(),
            eps=adversary.eps,
            white=adversary.white,
            steps=config.probe_steps,
            generator=torch.Generator(device).manual_seed(session.recipe.seed),
        )
        return right / count

    def probe(state: TrainState) -> Robustness:
        averaged = accuracy(state.averaged_model.eval())
        # an average of weights collapses epochs later than the weights do
        newest = accuracy(state.model.eval()) if state.ema else averaged
        return Robustness(averaged, newest, count)

    return probe


def robust_of(recipe: Recipe, counters: Counters, saved_epoch: float | None) -> Robust | None:
    """What the probe said of the weights that are saved; None: the run was not adversarial."""
    rows = [row for row in counters.history if row["epoch"] == saved_epoch and "val_robust" in row]
    if not rows:
        return None
    row, config = rows[-1], recipe.attack
    return Robust(
        accuracy=row["val_robust"],
        num_right=round(row["val_robust"] * row["num_probed"]),
        num_images=row["num_probed"],
        threat=f"linf:{config.eps:g}/255",
        steps=config.probe_steps,
        num_overfits=counters.num_overfits,
    )


def num_probe_passes(recipe: Recipe) -> float:
    """Forward passes of an image that a probe costs, of all its images."""
    config = recipe.attack
    # a backward pass to the images costs as much as a forward pass; the average is probed as well as the newest weights
    return config.probe_images * 2 * (config.probe_steps + 1) * (2 if recipe.ema_decay else 1) if config.eps else 0.0


class Guard:
    """Keeps the last state whose probe was sound in a file, and goes back to it when a later one has collapsed.

    In a file rather than in memory, so that a resumed run goes back to the state that the unbroken one would have.
    """

    def __init__(self, recipe: Recipe, state: TrainState, path: Path) -> None:
        self._recipe, self._state, self._path = recipe, state, path

    @property
    def _is_watching(self) -> bool:
        return self._recipe.attack.eps > 0 and self._recipe.attack.max_rollbacks > 0

    def judge(self) -> bool:
        """Whether the newest validation is sound; the state is then kept."""
        if not self._is_watching:
            return True
        *before, row = self._state.counters.history
        best = max((earlier["val_robust_newest"] for earlier in before), default=0.0)
        if has_collapsed(row["val_robust_newest"], best, row["num_probed"]):
            return False
        save_checkpoint(self._path, {**self._state.state_dict(), "recipe": self._recipe.name})
        return True

    def go_back(self) -> str:
        """Restore the last sound state, with another attack from there on; returns a message.

        Where the tries are used up, or the file can't be read, the run is stopped instead: `counters.stopped_early`.
        """
        state, config = self._state, self._recipe.attack
        before, attempts = state.counters, state.counters.num_overfits + 1
        row = before.history[-1]
        best = max(earlier["val_robust_newest"] for earlier in before.history)
        what = (
            f"catastrophic overfitting by step {before.step}: robust accuracy fell from {100 * best:.1f} % to "
            f"{100 * row['val_robust_newest']:.1f} %"
        )
        tree = None
        reason = f"it was the last of {config.max_rollbacks} tries"
        if attempts <= config.max_rollbacks:
            try:
                tree = load_checkpoint(self._path)
                check_tree(tree, state.state_dict())
            except (CheckpointError, *MALFORMED) as error:
                tree, reason = None, f"its last sound state can't be read ({error})"
        if tree is None:
            before.stopped_early = True
            return f"{what}; {reason}: the run ends with its best weights"
        state.load_state_dict(tree)
        # not rolled back: the time, the best weights (which are in a file), and the micro-batch that fits in memory
        state.counters = dataclasses.replace(
            state.counters,
            num_overfits=attempts,
            seconds=before.seconds,
            total_seconds=before.total_seconds,
            best_value=before.best_value,
            best_step=before.best_step,
            micro_batch_size=before.micro_batch_size,
            lr_scale=before.lr_scale,
            num_rollbacks=before.num_rollbacks,
        )
        strength = config.strength(attempts)
        return (
            f"{what}; back to step {state.counters.step} with noise {strength.noise:.3g} × eps, step "
            f"{strength.step:.3g} × eps (try {attempts} of {config.max_rollbacks})"
        )
