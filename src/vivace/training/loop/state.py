"""TrainState: all that changes during training, which is exactly what a checkpoint holds."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vivace.torch_private import foreach_lerp_
from vivace.training.loop.validation import Trained
from vivace.training.techniques.hard_examples import HardExamples
from vivace.training.techniques.self_distillation import SelfDistillation

__all__ = ["Counters", "Ema", "TrainState"]


@dataclass(kw_only=True)
class Counters:
    """The position and the running sums of a run."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """The current epoch, from 0."""
    batch: int = 0
    """Batches of this epoch that are done; with `epoch`, the position of the loader."""
    num_images_seen: int = 0
    progress: float = 0.0
    """Fraction of the plan that is done, [0, 1]; the schedule depends on it."""
    seconds: float = 0.0
    """Wall-clock seconds of the training loop, those before a resume included."""
    total_seconds: float = 0.0
    """Wall-clock seconds from process start, those before a resume included."""
    lr_scale: float = 1.0
    """Halved by each roll-back after NaN or Inf."""
    num_rollbacks: int = 0
    num_overfits: int = 0
    """Roll-backs after catastrophic overfitting in adversarial training, which change how images are attacked."""
    micro_batch_size: int | None = None
    """Images per forward pass since memory ran out; None: it has not run out."""
    loss_sum: float = 0.0
    correct_sum: float = 0.0
    count: int = 0
    """Number of images in the sums above, since the last validation."""
    best_value: float | None = None
    """Of the metric that `monitor` names, the best so far."""
    best_step: int = -1
    """The step that had it first."""
    target_seconds: float | None = None
    """Seconds from process start at which the target was reached."""
    planned_steps: int | None = None
    """Steps of the whole run as it is planned towards a target; None: it is not, or was not planned again yet."""
    stopped_early: bool = False
    """Whether early stopping or a callback has ended the run."""
    finished: bool = False
    head_only: bool = False
    """Whether the body is frozen in this epoch (fine-tuning)."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A row per validation, as in metrics.csv."""

    def add(self, trained: Trained) -> None:
        """Count what was trained before the loop, in place."""
        count = trained.num_images
        self.seconds, self.num_images_seen = self.seconds + trained.seconds, self.num_images_seen + count
        self.loss_sum, self.correct_sum, self.count = trained.loss * count, trained.score * count, count


class Ema:
    """Exponential moving average of a network's weights; buffers such as batch-norm statistics are copied.

    The decay grows as (1 + t) / (10 + t) up to `decay`, so that the average soon forgets the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`, in place."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averaged: list[Tensor] = list(self.model.parameters())
        current = [parameter.detach() for parameter in model.parameters()]
        foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


@dataclass(kw_only=True)
class TrainState:
    """The network, its optimizer, the random generators and the counters."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """For augmentation, on the training device."""
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None
    hard_examples: HardExamples | None = None
    self_distillation: SelfDistillation | None = None
    counters: Counters = field(default_factory=Counters)

    @property
    def averaged_model(self) -> nn.Module:
        """The network that is validated and bundled: the moving average if there is one."""
        return self.ema.model if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """The state as a tree of plain values and tensors. The tensors are shared, not copied."""
        cuda = [torch.cuda.get_rng_state(self.generator.device)] if self.generator.device.type == "cuda" else []
        return {
            "device": self.generator.device.type,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "ema": {"model": dict(self.ema.model.state_dict()), "num_updates": self.ema.num_updates}
            if self.ema
            else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "focus": self.hard_examples.state_dict() if self.hard_examples else None,
            "own_answers": self.self_distillation.state_dict() if self.self_distillation else None,
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": cuda,
            "counters": dataclasses.asdict(self.counters),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the next step is then bitwise the one that would have followed."""
        self.model.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.ema:
            self.ema.model.load_state_dict(tree["ema"]["model"])
            self.ema.num_updates = tree["ema"]["num_updates"]
        if self.scaler:
            self.scaler.load_state_dict(tree["scaler"])
        if self.hard_examples:
            self.hard_examples.load_state_dict(tree["focus"])
        if self.self_distillation:
            self.self_distillation.load_state_dict(tree["own_answers"])
        self.generator.set_state(tree["generator"].cpu())
        torch.set_rng_state(tree["torch_rng"].cpu())
        for state in tree["cuda_rng"]:
            torch.cuda.set_rng_state(state.cpu(), self.generator.device)
        self.counters = Counters(**copy.deepcopy(tree["counters"]))

    def snapshot(self) -> dict[str, Any]:
        """A copy of `state_dict` in memory, to roll back to."""
        return {key: _copy(value) for key, value in self.state_dict().items()}


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return copy.deepcopy(value)
