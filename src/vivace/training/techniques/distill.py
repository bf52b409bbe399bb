"""Distillation: a network is trained on a teacher's predictions in addition to the labels (arXiv:1503.02531).

The teacher sees the same augmented view of an image as the student, which works better than another view
(arXiv:2106.05237).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vivace.bundle import Bundle, load_bundle
from vivace.errors import ConfigError
from vivace.hardware import autocast, supported_precisions
from vivace.models.normalize import Normalize
from vivace.models.own.fitting import to_channels_last
from vivace.training.recipes.recipe import DistillConfig

__all__ = ["Distillation", "Teacher", "make_distillation"]

# pixels, uint8 [B, size, size, C] → probabilities, float32 [B, K]
Teacher = Callable[[np.ndarray], np.ndarray]
# a teacher in int8 may predict exactly 0, which has no logarithm
LEAST_PROB = 1e-12


class Distillation:
    """Adds a teacher's loss to that of the labels."""

    def __init__(
        self,
        config: DistillConfig,
        *,
        classes: Sequence[str],
        channels: int,
        device: torch.device,
        teacher: Teacher | None = None,
    ) -> None:
        """Raises BundleError if the teacher can't be loaded, ConfigError if it has other classes or channels."""
        assert config.teacher is not None
        bundle = load_bundle(config.teacher)
        if tuple(bundle.classes) != tuple(classes):
            raise ConfigError(
                f"the teacher knows other classes: {config.teacher} has {len(bundle.classes)}, {bundle.classes[0]} "
                f"first, the data {len(classes)}, {classes[0]} first. Give a bundle that was trained on this data."
            )
        if bundle.preprocess.channels != channels:
            raise ConfigError(
                f"the teacher sees other colours: {config.teacher} takes {bundle.preprocess.channels} channels, the "
                f"student {channels}. Set data.channels={bundle.preprocess.channels}."
            )
        self._config, self._size = config, bundle.preprocess.size
        self._calibrated_by = bundle.info.temperature or 1.0
        self._logits = _network(bundle, device) if teacher is None else _deployed(teacher, bundle.preprocess.dtype)

    def __call__(self, loss: Tensor, logits_BK: Tensor, images_BCHW: Tensor, weights_B: Tensor | None = None) -> Tensor:
        """(1 - weight) · loss + weight · T² · KL(teacher ‖ student), with T the temperature.

        loss: that of the labels. images_BCHW: the student's input before normalisation, uint8 or float on the 0..255
        scale. weights_B: the weight of each image in `loss`; None: 1.
        """
        weight, temperature = self._config.weight, self._config.temperature
        taught_BK = self._log_probs(images_BCHW, temperature)
        answers_BK = functional.log_softmax(logits_BK.float() / temperature, 1)
        # gradients of softened predictions are smaller by a factor of T²
        teaching_B = functional.kl_div(answers_BK, taught_BK, log_target=True, reduction="none").sum(1)
        if weights_B is not None:
            teaching_B = teaching_B * weights_B
        return (1 - weight) * loss + weight * temperature**2 * teaching_B.mean()

    @torch.no_grad()
    def _log_probs(self, images_BCHW: Tensor, temperature: float) -> Tensor:
        # the logits before calibration: weight and temperature were chosen with such teachers
        temperature /= self._calibrated_by
        if images_BCHW.shape[-1] != self._size:
            images_BCHW = functional.interpolate(
                images_BCHW.float(), (self._size, self._size), mode="bilinear", antialias=True
            )
        taught_BK = functional.log_softmax(self._logits(images_BCHW) / temperature, 1)
        if not self._config.mirrored:
            return taught_BK
        other_BK = functional.log_softmax(self._logits(images_BCHW.flip(-1)) / temperature, 1)
        return torch.logaddexp(taught_BK, other_BK) - torch.log(torch.tensor(2.0, device=taught_BK.device))


def _network(bundle: Bundle, device: torch.device) -> Callable[[Tensor], Tensor]:
    """images_BCHW → logits_BK float32 of the network in PyTorch, in half precision if the device supports it."""
    model = to_channels_last(bundle.build_model().to(device)).requires_grad_(False)
    normalize = Normalize(bundle.preprocess.mean, bundle.preprocess.std, white=bundle.preprocess.white).to(device)
    precision = next((p for p in ("bf16", "fp16") if p in supported_precisions(device)), "fp32")

    def logits(images_BCHW: Tensor) -> Tensor:
        with autocast(device, precision):
            logits_BK: Tensor = model(normalize(images_BCHW))
        return logits_BK.float()

    return logits


def _deployed(teacher: Teacher, dtype: str) -> Callable[[Tensor], Tensor]:
    """images_BCHW → log-probabilities of a teacher, whose softmax gives the same probabilities."""

    def logits(images_BCHW: Tensor) -> Tensor:
        images_BHWC = images_BCHW.float().permute(0, 2, 3, 1)
        if dtype == "uint8":
            images_BHWC = images_BHWC.round().clamp(0, 255).to(torch.uint8)
        probs_BK = torch.from_numpy(teacher(images_BHWC.contiguous().cpu().numpy()))
        return probs_BK.to(images_BCHW.device).clamp_min(LEAST_PROB).log()

    return logits


def make_distillation(
    config: DistillConfig,
    *,
    classes: Sequence[str],
    channels: int,
    device: torch.device,
    teacher: Teacher | None = None,
) -> Distillation | None:
    """The distillation of a recipe; None without a teacher. teacher: used instead of the network in its bundle."""
    if config.teacher is None:
        return None
    return Distillation(config, classes=classes, channels=channels, device=device, teacher=teacher)
