"""From a recipe and a cache to network, optimizer and batches."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivace.cpus import set_threads
from vivace.data.augmentation.augment import Augment
from vivace.data.augmentation.own import OwnAugmentation
from vivace.data.caching.stored import Pixels
from vivace.data.loader import Batch
from vivace.errors import ConfigError
from vivace.hardware import autocast, seed_everything
from vivace.kernels.depthwise import swap
from vivace.models.normalize import Normalize
from vivace.models.own.fitting import takes_contiguous
from vivace.models.own.given import OwnNetwork
from vivace.models.zoo import head_parameters, layer_groups
from vivace.optim.optimizers import create_optimizer
from vivace.training.execution import ExecutionConfig, trial_batch_size
from vivace.training.loop.arrays import NUM_STATISTICS_IMAGES, TrainingData, sample
from vivace.training.loop.batches import training_batches
from vivace.training.loop.part import Part
from vivace.training.loop.start import check_start_size, seen, start_network
from vivace.training.loop.state import Ema, TrainState
from vivace.training.loop.statistics import NUM_IMAGES, NUM_IMAGES_LAST, estimate_statistics
from vivace.training.loop.step import Stepper, has_batch_norm
from vivace.training.loop.validation import Validation, eval_batch_size, split_logits
from vivace.training.recipes.origin import Origin
from vivace.training.recipes.recipe import Recipe
from vivace.training.techniques.adversarial import adversary_of
from vivace.training.techniques.calibrate import calibrated
from vivace.training.techniques.distill import Teacher, make_distillation
from vivace.training.techniques.hard_examples import HardExamples
from vivace.training.techniques.self_distillation import SelfDistillation
from vivace.training.techniques.tasks import task_of

__all__ = ["Session"]

# images on which a calibrated network is checked
NUM_TRIED = 8


class Session:
    """The network, its optimizer and the batches of a run, ready for an Engine."""

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        device: torch.device,
        *,
        cache_dir: Path,
        load: bool = True,
        teacher: Teacher | None = None,
        origin: Origin | None = None,
        augment: OwnAugmentation | None = None,
        network: OwnNetwork | None = None,
    ) -> None:
        """cache_dir: holds our kernels. load: start from the recipe's weights; a checkpoint needs none.

        teacher: answers in place of the network that `distill.teacher` names. origin: what `model.start_from` names.
        augment: an augmentation of the user's. network: one of the user's own.
        """
        seed_everything(recipe.seed, deterministic=recipe.deterministic)
        self.recipe, self.data, self.device, self.kernels = recipe, data, device, cache_dir / "kernels"
        self.network, self.origin, self.own_augmentation = network, origin, augment
        preprocess = data.preprocess
        self.num_classes = len(data.cache.classes)
        self.seen = seen(recipe, preprocess)
        shrink = self.seen.size / preprocess.size
        self.normalize = Normalize(preprocess.mean, preprocess.std, white=preprocess.white, shrink=shrink).to(device)
        self.start = start_network(
            recipe,
            data.cache.classes,
            origin=origin,
            network=network,
            in_channels=preprocess.channels,
            size=self.seen.size,
            load=load,
            cache_dir=cache_dir,
        )
        if takes_contiguous(self.start.model):
            self.recipe = recipe = dataclasses.replace(recipe, channels_last=False)
        self.model = self._initialised(self.start.model, load=load)
        if recipe.micro_batch_size == 1 and has_batch_norm(self.model):
            raise ConfigError(
                f"micro_batch_size is too small: got 1, and {recipe.model.name} has batch norm, which needs 2 images "
                "to train on. Set micro_batch_size=2."
            )
        check_start_size(self.model, self.normalize, recipe, channels=preprocess.channels, device=device)
        self.head = head_parameters(self.model) if recipe.head_epochs else []
        self.late_frozen = self._late_frozen()
        self._validated: tuple[Tensor, Tensor] | None = None
        self.answers: Callable[[nn.Module, str], tuple[Tensor, Tensor]] | None = None
        """(network, split) → logits_NK and labels_N, while the features of the frozen body are known. None: passes."""
        self.part: Part | None = None
        """What is trained in place of the whole network."""
        self.task = task_of(data.cache.label_sets, recipe, device, has_teacher=teacher is not None)
        sizes = {"size": preprocess.size, "num_classes": self.num_classes}
        # what is blanked is near zero after normalization
        fill = torch.tensor(preprocess.mean) * preprocess.white if preprocess.is_raw else None
        self.augment = Augment(recipe.augment, **sizes, seed=recipe.seed, own=augment, fill=fill)
        self.augment.label_sets_MK = self.task.label_sets_MK
        classes, labels_N = data.cache.classes, data.train_labels_N
        self.weights_K = self.task.class_weights(recipe.loss, labels_N, classes, device)
        self.loss = self.task.loss(recipe.loss, labels_N, classes, device)
        self.distillation = make_distillation(
            recipe.distill, classes=classes, channels=preprocess.channels, device=device, teacher=teacher
        )
        self.adversary = adversary_of(recipe.attack, is_raw=preprocess.is_raw)
        self.batches = training_batches(data, recipe, device)

    def _initialised(self, model: nn.Module, *, load: bool) -> nn.Module:
        """The network on the device; those of ours that start from images have seen them."""
        model.to(self.device)
        if self.recipe.finetune.head and self.device.type == "cpu":
            # torch's gradients of depthwise convolutions take most of a step
            swap(model, self.kernels)
        init = None if self.start.fingerprint else getattr(model, "init_from_images", None)
        if init is not None and load and not (self.recipe.model.has_learnt or self.recipe.privacy.is_private):
            with torch.no_grad():
                init(self.sample_images())
        return model

    def sample_images(self, num_images: int = NUM_STATISTICS_IMAGES) -> Tensor:
        """Up to `num_images` training images as input of the network, normalised images_BCHW on the device."""
        return self._seen_images(sample(self.data, num_images))

    def _seen_images(self, images_NHWC: np.ndarray) -> Tensor:
        stored = torch.from_numpy(self.data.preprocess.view(images_NHWC)).permute(0, 3, 1, 2)
        normalised: Tensor = self.normalize(stored.to(self.device))
        return normalised

    def _late_frozen(self) -> list[list[str]]:
        """Names of the parameters of the parts that `freeze_after` freezes."""
        parts, count = layer_groups(self.model), len(self.recipe.freeze_after)
        if count >= len(parts):
            raise ConfigError(
                f"freeze_after freezes all of {self.recipe.model.name}: got {count} shares for {len(parts)} parts. "
                f"Give at most {len(parts) - 1}."
            )
        return parts[:count]

    def state(self, execution: ExecutionConfig) -> TrainState:
        """A new TrainState of the network, in the memory format that `execution` says."""
        if execution.channels_last:
            self.model.to(memory_format=torch.channels_last)
        return self._state_of(self.model, execution)

    def _state_of(self, model: nn.Module, execution: ExecutionConfig) -> TrainState:
        recipe = self.recipe
        layers = layer_groups(model) if recipe.optimizer.layer_decay else None
        generator = torch.Generator(self.device)
        generator.manual_seed(recipe.seed)
        return TrainState(
            model=model,
            optimizer=create_optimizer(model, recipe.optimizer, layers=layers, head=head_parameters(model)),
            generator=generator,
            ema=Ema(model, recipe.ema_decay) if recipe.ema_decay else None,
            scaler=torch.amp.GradScaler(self.device.type) if execution.precision == "fp16" else None,
            hard_examples=self._hard_examples(),
            self_distillation=self._self_distillation(),
        )

    def _hard_examples(self) -> HardExamples | None:
        if self.recipe.focus.share == 1:
            return None
        num_images = len(self.data.cache.splits["train"].labels_N)
        return HardExamples(
            config=self.recipe.focus, losses_N=torch.full((num_images,), float("inf"), device=self.device)
        )

    def _self_distillation(self) -> SelfDistillation | None:
        config = self.recipe.loss
        if not config.self_distillation:
            return None
        return SelfDistillation(
            config.self_distillation,
            self.data.cache.splits["train"].labels_N,
            self.num_classes,
            label_smoothing=config.label_smoothing,
            device=self.device,
            task=self.task,
        )

    def stepper(
        self, state: TrainState, execution: ExecutionConfig, on_message: Callable[[str], None] = lambda _: None
    ) -> Stepper:
        """A Stepper on `state`."""
        return Stepper(
            state,
            execution,
            loss=self.loss,
            normalize=self.normalize,
            augment=self.augment,
            part=self.part,
            device=self.device,
            kernels=self.kernels,
            optimizer=self.recipe.optimizer,
            clip_grad_norm=self.recipe.clip_grad_norm,
            distillation=self.distillation,
            weights_K=self.weights_K,
            task=self.task,
            fake_quant=self.recipe.fake_quant,
            adversary=self.adversary,
            on_message=on_message,
        )

    def trial_step(self, execution: ExecutionConfig, num_images: int | None = None) -> Callable[[], object]:
        """A function that makes a training step on a copy of the network, of num_images or as many as a trial takes."""
        model = copy.deepcopy(self.model).train()
        if execution.channels_last:
            model.to(memory_format=torch.channels_last)
        state = self._state_of(model, execution)
        # with growing images, at their final size: most of the time is spent there
        state.counters.progress = 1.0
        stepper = self.stepper(state, execution)
        batch = next(iter(self.batches.epoch(0)))
        count = min(num_images or trial_batch_size(self.recipe), len(batch.labels_B))
        small = Batch(batch.images_BCHW[:count], batch.labels_B[:count], batch.indices_B[:count])

        def step() -> None:
            set_threads(execution.threads)
            stepper.step(small, 0)

        return step

    def settler(self, execution: ExecutionConfig) -> Callable[[nn.Module, bool], None] | None:
        """A function (network, whether it is the last time) that estimates batch-norm statistics anew, in place.

        None without batch norm, and where a part is trained, whose norms are frozen.
        """
        return partial(self._settle, execution) if has_batch_norm(self.model) and self.part is None else None

    def _settle(self, execution: ExecutionConfig, model: nn.Module, last: bool) -> None:
        count = NUM_IMAGES_LAST if last else NUM_IMAGES
        if self.recipe.data.balanced_sampling:
            # balanced batches as in training: other proportions have other statistics
            rows = np.sort(self.batches.order(0)[:count])
            images_BCHW = self._seen_images(self.data.cache.splits["train"].images_NHWC[rows])
        else:
            images_BCHW = self.sample_images(count)
        # the images are ordered by class: shuffle, so that each batch has all classes
        order = torch.randperm(len(images_BCHW), generator=torch.Generator().manual_seed(0)).to(self.device)
        size = max(2, min(NUM_IMAGES // 2, eval_batch_size(self.seen.size)))
        with autocast(self.device, execution.precision):
            estimate_statistics(model, images_BCHW[order].tensor_split(-(-len(images_BCHW) // size)))

    def validator(self, execution: ExecutionConfig) -> Callable[[nn.Module], Validation]:
        """A function that validates a network."""
        return partial(self._validate, execution)

    def _validate(self, execution: ExecutionConfig, model: nn.Module) -> Validation:
        logits, labels = self._validated = self.logits_of_split(model, execution, "val")
        return Validation.of(logits, labels, self.task)

    def pass_seconds(self, model: nn.Module, execution: ExecutionConfig) -> float:
        """Expected time of a pass over the validation split, from passes over a part of it."""
        data = self.data
        if self.part is not None:
            began = time.monotonic()
            self.part.logits(model, "val")
            return time.monotonic() - began
        positions = np.arange(len(data.val_labels_N)) if data.val_indices is None else data.val_indices
        part = positions[: 2 * eval_batch_size(data.preprocess.size)]
        arrays = (data.val_images_NHWC, data.val_labels_N)
        # warm up: the first pass of a process takes up to three times as long as later ones
        self.logits(model, execution, *arrays, part[: (len(part) + 1) // 2])
        taken = []
        for _ in range(2):
            started = time.monotonic()
            self.logits(model, execution, *arrays, part)
            taken.append(time.monotonic() - started)
        return min(taken) * len(positions) / len(part)

    def calibrated(self, model: nn.Module, execution: ExecutionConfig) -> tuple[nn.Module, float | None]:
        """(calibrated network, its temperature), fitted on the validation images; or (the network itself, None)."""
        # the logits of the last validation are those of this network, unless the best weights were restored since
        last = None if self.recipe.keeps_best else self._validated
        logits, labels = last or self.logits_of_split(model, execution, "val")
        return calibrated(model, logits, labels, self.sample_images(NUM_TRIED), self.task)

    def split_probs(self, model: nn.Module, execution: ExecutionConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
        """probs_NK float32 and labels_N int64 of "val" or "test"."""
        logits, labels = self.logits_of_split(model, execution, split)
        return self.task.probs(logits).numpy(), labels.numpy()

    def logits_of_split(self, model: nn.Module, execution: ExecutionConfig, split: str) -> tuple[Tensor, Tensor]:
        """logits_NK float32 and labels_N int64 of "val" or "test", on the CPU."""
        if self.answers is not None:
            return self.answers(model, split)
        data = self.data
        if split == "val":
            arrays: tuple[Any, ...] = (data.val_images_NHWC, data.val_labels_N, data.val_indices)
        else:
            test = data.cache.splits["test"]
            arrays = (test.images_NHWC, test.labels_N, None)
        return self.logits(model, execution, *arrays)

    def logits(
        self,
        model: nn.Module,
        execution: ExecutionConfig,
        images: Pixels,
        labels: np.ndarray,
        indices: np.ndarray | None,
    ) -> tuple[Tensor, Tensor]:
        """The same of stored images, or of those at `indices`."""
        return split_logits(
            model,
            images,
            labels,
            size=self.data.preprocess.size,
            normalize=self.normalize,
            execution=execution,
            device=self.device,
            indices=indices,
            kernels=self.kernels,
        )
