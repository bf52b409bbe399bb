"""Roll-back after NaN or Inf: to the end of the last epoch, with half the learning rate, a few times at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vivace.data.loader import Batch
from vivace.errors import NonFiniteError
from vivace.training.loop.state import TrainState

__all__ = ["MAX_SKIPPED", "NonFinite", "Rollback"]

MAX_ROLLBACKS = 3
# number of files that a message names, and characters of each: the end of a path says the most
MAX_NAMES, MAX_NAME_LENGTH = 5, 50

# fp16 starts with a gradient scale of 65536 and halves it after each overflow: 20 in a row have another cause
MAX_SKIPPED = 20


class NonFinite(Exception):
    """NaN or Inf in a step on the batch; batch None: in weights, statistics or validation after the last step."""

    def __init__(self, batch: Batch | None) -> None:
        super().__init__()
        self.batch = batch


class Rollback:
    """Keeps a copy of the last good state, and checks the current one.

    names: file names of the training images, for messages.
    """

    def __init__(self, state: TrainState, names: Sequence[str]) -> None:
        self._state, self._names = state, names
        self._snapshot = state.snapshot()
        # some networks have masks with infinities: only what is finite now must stay finite
        self._finite = [tensor for tensor in _tensors(state) if bool(tensor.isfinite().all())]

    def mark(self) -> None:
        """Make the current state the one to roll back to."""
        self._snapshot = self._state.snapshot()

    def check(self) -> None:
        """Raise NonFinite if a weight or a statistic is NaN or Inf, so that no checkpoint or bundle contains it."""
        if not bool(torch.stack([tensor.isfinite().all() for tensor in self._finite]).all()):
            raise NonFinite(None)

    def restore(self, batch: Batch | None) -> str:
        """Restore the state with half the learning rate; returns a message. Raises NonFiniteError after three times."""
        before = self._state.counters
        attempts, scale = before.num_rollbacks + 1, before.lr_scale / 2
        if attempts > MAX_ROLLBACKS:
            raise self._diverged(batch)
        self._state.load_state_dict(self._snapshot)
        # not rolled back: the time, the best weights (which are in a file), and the micro-batch that fits in memory
        self._state.counters = counters = dataclasses.replace(
            self._state.counters,
            num_rollbacks=attempts,
            lr_scale=scale,
            seconds=before.seconds,
            best_value=before.best_value,
            best_step=before.best_step,
            micro_batch_size=before.micro_batch_size,
        )
        self.mark()
        return (
            f"NaN or Inf at step {before.step}: back to step {counters.step} with the rate × {scale:g} "
            f"(try {attempts} of {MAX_ROLLBACKS})"
        )

    def _diverged(self, batch: Batch | None) -> NonFiniteError:
        what, fix = "the network's weights, or its answers to validation images, are", "Lower `optimizer.lr`."
        if batch is not None:
            what = "the loss or a gradient is"
            fix = f"The batch: {self._shown(batch)}. Lower `optimizer.lr`, or look at these files."
        return NonFiniteError(
            f"{what} NaN or Inf near step {self._state.counters.step}, after {MAX_ROLLBACKS} roll-backs with a halved "
            f"rate. {fix}"
        )

    def _shown(self, batch: Batch) -> str:
        names = [self._names[index] for index in batch.indices_B.tolist()]
        shown = [name if len(name) <= MAX_NAME_LENGTH else "…" + name[1 - MAX_NAME_LENGTH :] for name in names]
        return ", ".join(shown[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def _tensors(state: TrainState) -> Iterator[Tensor]:
    """Weights and statistics of the network and of its moving average."""
    for model in (state.model, *([state.ema.model] if state.ema else [])):
        yield from (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
