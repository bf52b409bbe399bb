"""Smaller networks that may replace a module that classifies images, called and answering like it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vivace.acceleration.modules.classifiers import ImageClassifier
from vivace.acceleration.modules.signature import Structure, rebuild
from vivace.models.packaged import PACKAGED
from vivace.models.pretrained import WeightsSource, available_without_download
from vivace.models.zoo import create_model, forward_flops
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.recipes.named import DataFacts, fast, finetune

__all__ = ["ModuleStudent", "Replacement", "StudentNetwork", "proposed"]

# another network is tried if it needs at most this fraction of the module's operations
LESS_FLOPS = 0.7
# px: at most this side images are small ones, for which other networks are good
SMALL_SIDE = 64
# px: below, published weights know little of the images
MIN_PUBLISHED_SIDE = 96
# and above, a step takes too long, since the gradients of depthwise convolutions do
MAX_PUBLISHED_SIDE = 160
# widths of fast_cnn, and convolutions of each group, as for bundles
SMALL_WIDTHS = (((64, 192, 256), 2), ((64, 128, 256), 2), ((48, 96, 192), 1), ((32, 64, 96), 1))
# a standard deviation of 0 is that of a channel that is always the same
EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class ModuleStudent:
    """A network to be trained, and how."""

    name: str
    network: StudentNetwork
    flops: float
    """Operations for one image, as a fraction of the module's."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    batch_size: int
    from_scratch: bool
    """Whether it starts from random weights."""


class StudentNetwork(nn.Module):
    """images_BCHW as a module takes them → logits_BK: standardised by the training images, halved, then a network.

    What the images were normalised with is not known; that each channel has a mean of 0 and a deviation of 1 is what
    networks are made for, and those with published weights nearly so. halvings: how often the sides are halved.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean_C: Tensor, std_C: Tensor, halvings: int = 0) -> None:
        super().__init__()
        self.network, self._halvings = network, halvings
        self.register_buffer("scale", (1 / std_C.clamp(min=EPSILON)).float().view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean_C / std_C.clamp(min=EPSILON)).float().view(1, -1, 1, 1))

    def inputs(self, images_BCHW: Tensor) -> Tensor:
        """What the network itself sees."""
        seen_BCHW = torch.addcmul(self.shift, images_BCHW, self.scale)
        return functional.avg_pool2d(seen_BCHW, 2**self._halvings) if self._halvings else seen_BCHW

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.network(self.inputs(images_BCHW))
        return logits_BK


class Replacement(nn.Module):
    """A student that is called like a module with one tensor, and whose outputs have the same structure."""

    def __init__(self, student: nn.Module, outputs: Structure) -> None:
        super().__init__()
        self.student, self._outputs = student, outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        images_BCHW = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        logits_BK = self.student(images_BCHW)
        return logits_BK if self._outputs.kind == "tensor" else rebuild(self._outputs, [logits_BK])


def proposed(classifier: ImageClassifier, mean_C: Tensor, std_C: Tensor, flops: float) -> list[ModuleStudent]:
    """Students with their first weights, on the CPU: of small images our small networks, of photos those for photos and
    those whose published weights are on this machine, at the images' size and at half of it.

    mean_C, std_C: of the training images. flops: operations of the module for one image.
    """
    small = min(classifier.height, classifier.width) <= SMALL_SIDE
    found = _small(classifier, mean_C, std_C) if small else _for_photos(classifier, mean_C, std_C)
    return [
        ModuleStudent(**{**student, "flops": share})
        for student in found
        if (share := _flops(student["network"], classifier) / flops) <= LESS_FLOPS
    ]


def _flops(network: nn.Module, classifier: ImageClassifier) -> float:
    blank = copy.deepcopy(network).to("meta")
    return forward_flops(blank, in_channels=classifier.channels, size=min(classifier.height, classifier.width))


def _facts(classifier: ImageClassifier, side: int) -> DataFacts:
    return DataFacts(num_images=1000, num_classes=classifier.num_classes, channels=classifier.channels, side=side)


def _small(classifier: ImageClassifier, mean_C: Tensor, std_C: Tensor) -> list[dict[str, Any]]:
    side = min(classifier.height, classifier.width)
    found = []
    for widths, depth in SMALL_WIDTHS:
        # of very small images a group may not halve what is left
        sides = [side // 2 // 2**group for group in range(len(widths))]
        down = ["pool" if left >= 2 else "none" for left in sides]
        arguments = {"widths": list(widths), "depth": [depth] * len(widths), "activation": "relu", "stride": 2}
        network = _made("fast_cnn", classifier, side, {**arguments, "downsample": down})
        title = f"fast_cnn, width {'-'.join(map(str, widths))}"
        found.append(_student(title, StudentNetwork(network, mean_C, std_C), classifier, side))
    return found


def _for_photos(classifier: ImageClassifier, mean_C: Tensor, std_C: Tensor) -> list[dict[str, Any]]:
    found = []
    for halvings in (0, 1):
        side = min(classifier.height, classifier.width) // 2**halvings
        if side < SMALL_SIDE:
            continue
        for source in _published(classifier, side):
            network = create_model(source.network, classifier.num_classes, size=side, pretrained=source)
            name = source.network.removeprefix("timm/").partition(".")[0]
            wrapped = StudentNetwork(network, mean_C, std_C, halvings)
            found.append(_student(f"{name} {side} px", wrapped, classifier, side, published=True))
        network = _made("fast_photo", classifier, side, {"activation": "relu"})
        wrapped = StudentNetwork(network, mean_C, std_C, halvings)
        found.append(_student(f"fast_photo {side} px", wrapped, classifier, side))
    return found


def _published(classifier: ImageClassifier, side: int) -> list[WeightsSource]:
    """The fastest network whose published weights are on this machine, for colour images; nothing is downloaded."""
    if classifier.channels != 3 or not MIN_PUBLISHED_SIDE <= side <= MAX_PUBLISHED_SIDE:
        return []
    sources = [available_without_download(f"timm/{row.network}") for row in PACKAGED]
    return [source for source in sources if source is not None][:1]


def _made(name: str, classifier: ImageClassifier, side: int, arguments: Mapping[str, Any]) -> nn.Module:
    return create_model(name, classifier.num_classes, in_channels=classifier.channels, size=side, **arguments)


def _student(
    name: str, network: StudentNetwork, classifier: ImageClassifier, side: int, *, published: bool = False
) -> dict[str, Any]:
    """Trained as the recipe trains such a network."""
    recipe = (finetune if published else fast)(_facts(classifier, side))
    return {
        "name": name,
        "network": network,
        # which layers are the last ones of a student does not matter to it
        "optimizer": dataclasses.replace(recipe.optimizer, layer_decay=None),
        "schedule": recipe.schedule,
        "batch_size": recipe.batch_size,
        "from_scratch": not published,
    }
