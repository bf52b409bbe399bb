"""The training loop: epochs of steps, validations and checkpoints, and how it is interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
from torch import Tensor, nn

from vivace.data.loader import Batch, Batches
from vivace.errors import CallbackError, Interrupted
from vivace.signals import StopSignals
from vivace.training.folder.checkpoints import prune, save_checkpoint
from vivace.training.loop.best import Best
from vivace.training.loop.overfitting import Guard, Overfitted
from vivace.training.loop.plan import Plan
from vivace.training.loop.progress import AFTER, step_info, validation_info, validation_row
from vivace.training.loop.rollback import MAX_SKIPPED, NonFinite, Rollback
from vivace.training.loop.state import Counters, TrainState
from vivace.training.loop.statistics import NUM_STEPS
from vivace.training.loop.step import Stepper, StepResult
from vivace.training.loop.validation import Robustness, Trained, Validation
from vivace.training.recipes.recipe import Recipe
from vivace.training.recording.callbacks import CheckpointInfo, StopTraining
from vivace.training.recording.dispatch import Dispatcher

__all__ = ["Engine"]

# reading a value from a GPU waits for it: sums and the check for NaN are read once in this many steps
CUDA_READ_EVERY = 20


@dataclass(kw_only=True)
class Engine:
    """Runs a plan on a state. It changes nothing but the state and the files in `checkpoints`."""

    recipe: Recipe
    state: TrainState
    stepper: Stepper
    batches: Batches
    names: Sequence[str]
    """File names of the training images, for messages."""
    validate: Callable[[nn.Module], Validation]
    settle: Callable[[nn.Module, bool], None] | None
    """(network, whether the run ends): estimates batch-norm statistics anew, in place; None: there are none."""
    plan: Plan
    checkpoints: Path
    callbacks: Dispatcher
    check_files: Callable[[], None]
    """Warns if an image file has changed since the cache was made; the run continues with the cache."""
    probe: Callable[[TrainState], Robustness] | None = None
    """Measures the robust accuracy at each validation; None: the run is not adversarial."""
    head: frozenset[str] = frozenset()
    """Names of the head's parameters, the only ones that are trained in the first `head_epochs`."""
    parts: Sequence[Sequence[str]] = ()
    """Names of the parameters of the parts that `freeze_after` freezes, in order from the input."""

    def __post_init__(self) -> None:
        self._rollback = Rollback(self.state, self.names)
        self._checkpoint_at = self._marked_at = self._files_due_at = time.monotonic()
        self._sums: list[tuple[StepResult, Batch]] = []
        self._num_skipped = 0
        self._failure: CallbackError | None = None
        self.saved_epoch: float | None = None
        """The epoch of the validation whose weights the averaged network has after `run`."""
        path = self.checkpoints / "best.safetensors"
        self._best = Best(self.recipe, self.state, path, self.callbacks.on_message)
        self._guard = Guard(self.recipe, self.state, self.checkpoints / "sound.safetensors")
        self._trainable = {name: p for name, p in self.state.model.named_parameters() if p.requires_grad}
        self._validate_steps = max(1, round(self.recipe.validate_every * len(self.batches)))

    def record(self, trained: Trained, weights: Mapping[str, Tensor]) -> None:
        """Add a row to the history for what was trained before the loop, and ended with these weights."""
        self.counters.add(trained)
        self._validate(trained.validation, weights)

    @property
    def stopped_early(self) -> str | None:
        """Why early stopping ended the run, in a line; None: it did not."""
        return self._best.reason() if self.counters.stopped_early else None

    @property
    def counters(self) -> Counters:
        return self.state.counters

    def run(self) -> None:
        """Train until the plan is done; with early stopping the averaged network then has the best weights.

        Raises Interrupted after a checkpoint when a signal asks to stop, NonFiniteError when NaN stays after bounded
        retries, OutOfMemoryError, TrainingError when a checkpoint can't be written, CallbackError after a checkpoint
        when a callback fails, LargerNetwork when the run should start again with one to reach its target.
        """
        # an extended run was finished before
        self.counters.finished = self.counters.finished and self._finished
        with StopSignals() as signals:
            self._marked_at = time.monotonic()
            while not self._finished or self._is_unvalidated:
                try:
                    if self._finished:
                        self._settle()
                        self._rollback.check()
                        self._validate()
                    else:
                        self._run_epoch(signals)
                except NonFinite as error:
                    self._go_back(partial(self._rollback.restore, error.batch))
                except Overfitted:
                    self._go_back(self._guard.go_back)
                    self._rollback.mark()
        if not self.counters.finished:
            self.save()
        if self._failure is not None:
            raise self._failure
        self.saved_epoch = self.counters.history[-1]["epoch"] if self.counters.history else None
        if self.recipe.keeps_best:
            # after the checkpoint: an extended run continues from its last weights, not from the best ones
            self._restore_best()

    @property
    def _finished(self) -> bool:
        return self.counters.stopped_early or self.plan.finished(self.counters)

    @property
    def _is_unvalidated(self) -> bool:
        """Whether a callback ended the run between validations: what is saved must have been validated."""
        history = self.counters.history
        return self.counters.step > 0 and (not history or history[-1]["step"] != self.counters.step)

    def save(self) -> None:
        """Write a checkpoint of the current state. Raises TrainingError if that fails; older ones stay intact."""
        self._read_sums()
        self._clock()
        self.counters.finished = self._finished
        path = self.checkpoints / f"step-{self.counters.step:09d}.safetensors"
        save_checkpoint(path, {**self.state.state_dict(), "recipe": self.recipe.name})
        prune(self.checkpoints, path)
        self._checkpoint_at = time.monotonic()
        epoch = self.batches.epochs_of(self.counters.step)
        self._notify(self.callbacks.on_checkpoint, CheckpointInfo(path=path, step=self.counters.step, epoch=epoch))

    def _run_epoch(self, signals: StopSignals) -> None:
        epoch, start = self.counters.epoch, self.counters.batch
        self._enter_epoch(epoch)
        for batch in self.batches.epoch(epoch, start=start, order=self._order(epoch, start)):
            counters = self.counters
            began = time.monotonic()
            self._set_rates()
            if self.recipe.freeze_after:
                self._set_trainable()
            self._step(batch, epoch)
            counters.step += 1
            counters.batch += 1
            counters.num_images_seen += len(batch.labels_B)
            if counters.batch == len(self.batches):
                counters.epoch, counters.batch = epoch + 1, 0
            self._after_step(signals, began, len(batch.labels_B))
            if self._finished:
                return

    def _order(self, epoch: int, start: int) -> np.ndarray | None:
        """The order of the images in an epoch; None: the loader's own order."""
        hard = self.state.hard_examples
        if hard is None:
            return None
        if start == 0:
            seed = (self.recipe.seed, epoch)
            hard.begin_epoch(self.batches.order(epoch), progress=self.counters.progress, seed=seed)
        return hard.order_n

    def _enter_epoch(self, epoch: int) -> None:
        head_only = epoch < self.recipe.head_epochs
        if head_only != self.counters.head_only:
            self.callbacks.on_message("training the head alone" if head_only else "training the whole network")
        self.counters.head_only = head_only
        self._set_trainable()
        self._train_mode()

    def _set_trainable(self) -> None:
        late = [fraction <= self.counters.progress for fraction in self.recipe.freeze_after]
        frozen = {name for part, is_late in zip(self.parts, late, strict=True) if is_late for name in part}
        for name, parameter in self._trainable.items():
            trained = name not in frozen and (not self.counters.head_only or name in self.head)
            if trained != parameter.requires_grad:
                parameter.requires_grad_(trained)
                # otherwise the optimizer would keep applying the last gradient
                parameter.grad = None

    def _train_mode(self) -> None:
        # while the body is frozen, so are its batch-norm statistics: features must not drift under the head
        self.state.model.train(not self.counters.head_only)

    def _set_rates(self) -> None:
        rate = self.plan.rate(self.counters) * self.counters.lr_scale
        for group in self.state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate

    def _step(self, batch: Batch, epoch: int) -> None:
        result = self.stepper.step(batch, epoch)
        if self.state.hard_examples:
            self.state.hard_examples.record(batch.indices_B, result.losses_B)
        if own := self.state.self_distillation:
            own.record(batch.indices_B, own.probs(result.logits_BK))
        self._sums.append((result, batch))
        on_cuda = result.loss_sum.device.type == "cuda"
        if not on_cuda or len(self._sums) >= CUDA_READ_EVERY:
            self._read_sums()

    def _read_sums(self) -> None:
        sums, self._sums = self._sums, []
        for result, batch in sums:
            self._num_skipped = self._num_skipped + 1 if bool(result.skipped) else 0
            if not bool(result.finite) or self._num_skipped > MAX_SKIPPED:
                raise NonFinite(batch)
            self.counters.loss_sum += float(result.loss_sum)
            self.counters.correct_sum += float(result.correct_sum)
            self.counters.count += result.num_images

    def _after_step(self, signals: StopSignals, began: float, num_images: int) -> None:
        counters, plan, before = self.counters, self.plan, self.counters.progress
        plan.advance(counters, time.monotonic() - began)
        if self.callbacks.wants_step(counters.step):
            rate = num_images / max(time.monotonic() - began, 1e-9)
            epoch = self.batches.epochs_of(counters.step)
            self._notify(self.callbacks.on_step, step_info(self.state, plan, epoch=epoch, images_per_second=rate))
        at_epoch_end = counters.batch == 0
        validates = self._finished or plan.is_due(before, counters, self._validate_steps)
        saves = at_epoch_end or time.monotonic() - self._checkpoint_at > 60 * self.recipe.checkpoint_minutes
        if validates:
            self._settle()
        if validates or saves:
            self._read_sums()
            self._rollback.check()
        if validates:
            started = time.monotonic()
            self._validate()
            plan.overhead_seconds = (time.monotonic() - started) / self._validate_steps
        self._clock()
        if signals.received is not None:
            self._rollback.check()
            self.save()
            raise Interrupted(
                f"stopped by {Signals(signals.received).name} after step {counters.step}; go on with `resume=True`",
                signal_number=signals.received,
            )
        if at_epoch_end:
            self._check_files()
        if saves:
            self.save()
            if at_epoch_end:
                self._rollback.mark()
        if self._failure is not None:
            if not saves:
                self._rollback.check()
                self.save()
            raise self._failure

    def _notify(self, method: Callable[[Any], None], event: object) -> None:
        """Call the callbacks; what they raise takes effect once the step is complete."""
        try:
            method(event)
        except StopTraining as stop:
            self.callbacks.on_message(str(stop))
            self.counters.stopped_early = True
        except CallbackError as error:
            self._failure = self._failure or error

    def _check_files(self) -> None:
        started = time.monotonic()
        if started >= self._files_due_at:
            self.check_files()
            # listing a million files takes a while: spend at most 1 % of the time on it
            self._files_due_at = started + 100 * (time.monotonic() - started)

    def _settle(self) -> None:
        # a frozen body keeps its statistics
        # the average of weights that are attacked: statistics of the newest batch do not fit it
        is_due = self.counters.step <= NUM_STEPS or self.probe is not None
        if self.settle is not None and is_due and not self.counters.head_only:
            self.settle(self.state.averaged_model, self._finished)

    def _validate(self, known: Validation | None = None, weights: Mapping[str, Tensor] | None = None) -> None:
        self._read_sums()
        self._clock()
        validation = known or self.validate(self.state.averaged_model)
        if self.probe is not None:
            validation = replace(validation, robust=self.probe(self.state))
        self._train_mode()
        if not math.isfinite(validation.loss):
            # weights may be finite and still so large that the loss is not
            raise NonFinite(None)
        counters = self.counters
        counters.history.append(validation_row(self.state, validation, len(self.batches)))
        counters.loss_sum = counters.correct_sum = 0.0
        counters.count = 0
        self._clock()
        counters.history[-1][AFTER] = counters.seconds
        is_sound, score = self._guard.judge(), validation.score
        if is_sound:
            self._best.judge(weights)
        if is_sound and self.plan.target is not None and score >= self.plan.target and counters.target_seconds is None:
            counters.target_seconds = self.plan.clock()
        self._notify(self.callbacks.on_validation, validation_info(counters, self.plan.forecast(counters)))
        if not is_sound:
            raise Overfitted
        if (message := self.plan.replan(counters)) is not None:
            self.callbacks.on_message(message)

    def _restore_best(self) -> None:
        epoch = self._best.restore()
        self.saved_epoch = self.saved_epoch if epoch is None else epoch

    def _go_back(self, restore: Callable[[], str]) -> None:
        self._sums, self._num_skipped = [], 0
        self.callbacks.on_message(restore())
        # at once: if the run is killed now, it must not resume from the discarded steps or forget the retry
        self.save()

    def _clock(self) -> None:
        now = time.monotonic()
        self.counters.seconds += now - self._marked_at
        self._marked_at = now
        self.counters.total_seconds = self.plan.clock()
