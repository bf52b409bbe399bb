"""One optimizer step: augment, normalise, forward, backward, update, within the memory there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vivace.data.augmentation.augment import Augment
from vivace.data.loader import Batch
from vivace.errors import OutOfMemoryError, first_line
from vivace.hardware import autocast
from vivace.models.normalize import Normalize
from vivace.optim.config import OptimizerConfig
from vivace.optim.sam import ascended
from vivace.torch_private import BatchNorm, foreach_mul_, foreach_norm
from vivace.training.execution import ExecutionConfig, own_kernels
from vivace.training.loop.part import Part
from vivace.training.loop.state import TrainState
from vivace.training.techniques.adversarial import Adversary
from vivace.training.techniques.distill import Distillation
from vivace.training.techniques.fake_quant import FakeQuantization
from vivace.training.techniques.losses import image_weights
from vivace.training.techniques.tasks import ONE_CLASS, Task
from vivace.trust import keep_compiled_programs

__all__ = ["StepResult", "Stepper", "has_batch_norm"]

PLAIN = OptimizerConfig()
# in messages of torch, its CPU allocator, cuBLAS and cuDNN
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


@dataclass(frozen=True)
class StepResult:
    """Sums over a batch, on the device; reading them waits for the device."""

    loss_sum: Tensor
    correct_sum: Tensor
    losses_B: Tensor
    """float32 [B]: the loss of each image without smoothing, times the weight of its class."""
    logits_BK: Tensor
    """float32 [B, K]."""
    finite: Tensor
    """bool: neither the loss nor a gradient was NaN or infinite; in fp16 only the loss is checked."""
    skipped: Tensor
    """bool: the step was skipped because a gradient was infinite, as happens in fp16 until its scale fits."""
    num_images: int


class Stepper:
    """Makes optimizer steps on a TrainState, which it changes in place.

    part: trained in place of the whole network. kernels: the folder of our kernels. weights_K: the class weights in
    `loss`, which also apply to distillation, self-distillation and hard-example sampling.
    """

    def __init__(
        self,
        state: TrainState,
        execution: ExecutionConfig,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        normalize: Normalize,
        augment: Augment,
        part: Part | None = None,
        device: torch.device,
        kernels: Path,
        optimizer: OptimizerConfig = PLAIN,
        clip_grad_norm: float | None = None,
        distillation: Distillation | None = None,
        weights_K: Tensor | None = None,
        task: Task = ONE_CLASS,
        fake_quant: bool = False,
        adversary: Adversary | None = None,
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.state = state
        self.execution = execution
        self._loss = loss
        self._normalize: Callable[[Tensor], Tensor] = normalize if part is None else nn.Identity()
        self._augment: Callable[..., tuple[Tensor, Tensor]] = part or augment
        self._device = device
        self._kernels_folder = kernels
        self._optimizer = optimizer
        self._clip_grad_norm = clip_grad_norm
        self._distillation = distillation
        self._weights_K = weights_K
        self._task = task
        self._fake_quant = FakeQuantization() if fake_quant else contextlib.nullcontext()
        self._adversary = adversary
        self._on_message = on_message
        self._forward: Callable[[Tensor], Tensor] = state.model if part is None else part.forward(state.model)
        if execution.compile:
            keep_compiled_programs(kernels.parent)
            self._forward = torch.compile(state.model)

    @property
    def micro_batch_size(self) -> int | None:
        """Images per forward pass; None: the whole batch."""
        return self.state.counters.micro_batch_size or self.execution.micro_batch_size

    def step(self, batch: Batch, epoch: int) -> StepResult:
        """Train on one batch. If memory runs out, the micro-batch is halved and the batch repeated.

        Raises OutOfMemoryError if even the smallest micro-batch does not fit.
        """
        hard = self.state.hard_examples
        # augment once, so that a repetition after an out-of-memory error uses the same images
        with _memory_for("augmenting the images", "Give a smaller `batch_size`"):
            images_BCHW, targets = self._augment(
                batch.images_BCHW,
                batch.labels_B,
                batch.indices_B,
                # an epoch of hard examples contains each image more than once
                times_seen=epoch if hard is None else hard.times_seen_N[batch.indices_B],
                generator=self.state.generator,
                progress=self.state.counters.progress,
            )
            starts_BCHW = self._starts(images_BCHW)
        loss_sum, logits_BK = self._gradients(images_BCHW, starts_BCHW, targets, batch.indices_B)
        if self._optimizer.sam:
            with ascended(self.state.model, self._optimizer.sam, adaptive=self._optimizer.sam_adaptive):
                self._gradients(images_BCHW, starts_BCHW, targets, batch.indices_B)
        # never repeated: some weights would be updated twice
        with _memory_for("updating the weights", "Give a smaller `model.name`"):
            finite, skipped = self._update(loss_sum)
        return StepResult(
            loss_sum,
            correct_sum=self._task.rightness(logits_BK, batch.labels_B).sum(),
            losses_B=self._plain_losses(logits_BK, batch.labels_B),
            logits_BK=logits_BK,
            finite=finite,
            skipped=skipped,
            num_images=len(images_BCHW),
        )

    def _plain_losses(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        losses_B = self._task.losses(logits_BK, labels_B)
        return losses_B if self._weights_K is None else losses_B * self._weights_K[labels_B]

    def _starts(self, images_BCHW: Tensor) -> Tensor:
        """What the attack starts from; without one, the images themselves."""
        if self._adversary is None:
            return images_BCHW
        return self._adversary.starts(images_BCHW, self.state.generator, num_rollbacks=self.state.counters.num_overfits)

    def _gradients(
        self, images_BCHW: Tensor, starts_BCHW: Tensor, targets: Tensor, indices_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and logits_BK float32; the gradients of the mean loss are in the parameters."""
        while True:
            try:
                return self._accumulate(images_BCHW, starts_BCHW, targets, indices_B)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # outside the handler, whose traceback would keep the activations alive
            self._halve(len(images_BCHW), reason)

    def _answers(self, images_BCHW: Tensor) -> Tensor:
        """logits_BK of stored images, by a forward pass as `execution` says."""
        with (
            autocast(self._device, self.execution.precision),
            own_kernels(self.execution, self._kernels_folder),
            # innermost: the kernels get the rounded values
            self._fake_quant,
        ):
            return self._forward(self._normalize(images_BCHW))

    def _attacked(self, starts_BCHW: Tensor, targets: Tensor) -> Tensor:
        """The images to train on: the starts after the step of the attack; without one, the starts themselves."""
        if self._adversary is None:
            return starts_BCHW
        scaler = self.state.scaler

        def loss(images_BCHW: Tensor) -> Tensor:
            # the sum: gradients of a mean over many images may be below what fp16 can hold
            value = self._loss(self._answers(images_BCHW), targets) * len(images_BCHW)
            return scaler.scale(value) if scaler else value

        # gradients of the weights are a third of a step, and nothing asks for them here
        weights = [weight for weight in self.state.model.parameters() if weight.requires_grad]
        try:
            for weight in weights:
                weight.requires_grad_(False)
            return self._adversary.attacked(starts_BCHW, loss, num_rollbacks=self.state.counters.num_overfits)
        finally:
            for weight in weights:
                weight.requires_grad_(True)

    def _accumulate(
        self, images_BCHW: Tensor, starts_BCHW: Tensor, targets: Tensor, indices_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        num_images, scaler, own = len(images_BCHW), self.state.scaler, self.state.self_distillation
        self.state.optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self._device)
        answers: list[Tensor] = []
        for chunk in _chunks(num_images, self.micro_batch_size):
            logits_BK = self._answers(self._attacked(starts_BCHW[chunk], targets[chunk]))
            loss = self._loss(logits_BK, targets[chunk])
            weights_B = None if self._weights_K is None else image_weights(self._weights_K, targets[chunk])
            if own is not None:
                progress = self.state.counters.progress
                loss = own.blend(loss, logits_BK, indices_B[chunk], progress=progress, weights_B=weights_B)
            if self._distillation is not None:
                loss = self._distillation(loss, logits_BK, images_BCHW[chunk], weights_B)
            fraction = len(logits_BK) / num_images
            (scaler.scale(loss * fraction) if scaler else loss * fraction).backward()
            loss_sum += loss.detach() * len(logits_BK)
            answers.append(logits_BK.detach().float())
        return loss_sum, torch.cat(answers)

    def _update(self, loss_sum: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state
        scaler, optimizer = state.scaler, state.optimizer
        if scaler:
            scaler.unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(foreach_norm(gradients)))
        finite, skipped = loss_sum.isfinite(), ~norm.isfinite()
        if not scaler:
            # only fp16 has infinite gradients in normal operation
            finite, skipped = finite & ~skipped, torch.zeros_like(skipped)
            # on a GPU the check would wait for the device; there the roll-back undoes the update
            if self._device.type == "cpu" and not finite:
                return finite, skipped
        if self._clip_grad_norm is not None:
            foreach_mul_(gradients, torch.clamp(self._clip_grad_norm / (norm + 1e-6), max=1.0))
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if state.ema:
            state.ema.update(state.model)
        return finite, skipped

    def _halve(self, num_images: int, reason: str) -> None:
        current = min(self.micro_batch_size or num_images, num_images)
        smaller = (current + 1) // 2
        if smaller == current or (smaller == 1 and has_batch_norm(self.state.model)):
            raise OutOfMemoryError(
                f"out of memory even with {current} images at a time ({reason}). Give a smaller `size` or `model.name`."
            )
        # part of the state, so that a resumed run splits its batches alike and stays bitwise the same
        self.state.counters.micro_batch_size = smaller
        self.state.optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._on_message(f"out of memory: {smaller} images at a time from here on; the batch stays {num_images}")


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network has batch norm, which needs more than one image in training."""
    return any(isinstance(module, BatchNorm) for module in model.modules())


def _chunks(num_images: int, size: int | None) -> list[slice]:
    """Slices of at most `size` images; a last single image, which batch norm can't use, joins the slice before."""
    if size is None or size >= num_images:
        return [slice(0, num_images)]
    starts = list(range(0, num_images, size))
    if num_images - starts[-1] == 1 and size > 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], num_images], strict=True)]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(phrase in text for phrase in OUT_OF_MEMORY)


@contextlib.contextmanager
def _memory_for(what: str, fix: str) -> Iterator[None]:
    """Turns an out-of-memory error of the block into an OutOfMemoryError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory while {what} ({first_line(error)}). {fix}.") from None
