"""Ten modules with a task that they can do, for module_peers.py: random bodies whose heads are fitted in closed form.

A random network changes its class at the slightest rounding, and no int8 would pass. So each module gets samples of
classes that it can tell apart (a coarse pattern for each class, in noise), statistics of its batch norms from them,
and the ridge regression of the classes on its features as its head. Top-1 accuracy then is 75 to 99 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from module_zoo import iou
from odd_modules import HuggingFaceStyle, Lstm, TwoInputs, UNet

__all__ = ["TEN", "Batch", "Task", "called", "logits_of", "made", "samples", "with_masks"]

# (inputs, targets), as vivace.accelerate takes them
Batch = tuple[Any, Tensor]
BATCH, FIT_SAMPLES, RIDGE = 16, 1024, 1e-2


@dataclass(frozen=True)
class Task:
    """A module and what it is given."""

    make: Callable[[], nn.Module]
    side: int = 64
    classes: int = 20
    kind: str = "images"
    """ "images", "steps", "named" (a dict of images), "two" (images and numbers), "masks" (a class for each pixel)."""

    @property
    def metric(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """As vivace.accelerate takes it; None: top-1."""
        return iou if self.kind == "masks" else None


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        module: nn.Module = timm.create_model(name, num_classes=20, **arguments)
        return module

    return make


def _resnet18() -> nn.Module:
    import torchvision

    module: nn.Module = torchvision.models.resnet18(weights=None, num_classes=20)
    return module


TEN: dict[str, Task] = {
    "torchvision resnet18": Task(_resnet18),
    "timm mobilenetv3_large_100": Task(_timm("mobilenetv3_large_100")),
    "LSTM": Task(Lstm, classes=5, kind="steps"),
    "timm vit_tiny_patch16_224": Task(_timm("vit_tiny_patch16_224", img_size=96), side=96),
    "Hugging Face output, dict inputs": Task(HuggingFaceStyle, classes=10, kind="named"),
    "segmentation by IoU": Task(UNet, kind="masks"),
    "timm efficientnet_lite0": Task(_timm("efficientnet_lite0")),
    "timm convnext_atto": Task(_timm("convnext_atto")),
    "timm regnetx_002": Task(_timm("regnetx_002")),
    "two inputs": Task(TwoInputs, classes=10, kind="two"),
}


def samples(task: Task, count: int, *, seed: int) -> list[Batch]:
    """Batches of BATCH samples with their classes; for masks, without: they are the module's own."""
    patterns = torch.Generator().manual_seed(0)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, task.classes, (count,), generator=generator)
    if task.kind == "steps":
        means = torch.randn(task.classes, 20, 24, generator=patterns)
        inputs = means[labels] + 2.0 * torch.randn(count, 20, 24, generator=generator)
    else:
        means = torch.randn(task.classes, 3, 4, 4, generator=patterns)
        coarse = means[labels] + 0.3 * torch.randn(count, 3, 4, 4, generator=generator)
        inputs = functional.interpolate(coarse, (task.side, task.side), mode="bilinear")
        inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
    numbers = torch.randn(count, 4, generator=generator)
    found: list[Batch] = []
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        given: Any = inputs[rows].clone()
        given = {"pixel_values": given} if task.kind == "named" else given
        given = (given, numbers[rows].clone()) if task.kind == "two" else given
        found.append((given, labels[rows].clone()))
    return found


def called(module: Callable[..., Any], inputs: Any) -> Any:
    """The outputs for the inputs of a batch."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def logits_of(outputs: Any) -> Any:
    """The logits in what a module returned."""
    outputs = getattr(outputs, "logits", outputs)
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def made(name: str) -> nn.Module:
    """The module, fitted, in evaluation mode; the same every time."""
    torch.manual_seed(0)
    task = TEN[name]
    module = task.make()
    batches = samples(task, FIT_SAMPLES, seed=1)
    _set_statistics(module, batches[:16])
    module.eval()
    if task.kind != "masks":
        _fit_head(module, batches, task.classes)
    return module


def with_masks(module: nn.Module, batches: Sequence[Batch]) -> list[Batch]:
    """The batches with the module's own classes as targets."""
    with torch.no_grad():
        return [(inputs, logits_of(called(module, inputs)).argmax(1)) for inputs, _ in batches]


def _set_statistics(module: nn.Module, batches: Sequence[Batch]) -> None:
    """Batch norms get the mean and variance of what they see."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for inputs, _ in batches:
            called(module, inputs)


def _fit_head(module: nn.Module, batches: Sequence[Batch], classes: int) -> None:
    """Ridge regression of the classes on what the last linear layer is given."""
    head = [part for part in module.modules() if isinstance(part, nn.Linear) and part.out_features == classes][-1]
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().flatten(1)))
    with torch.no_grad():
        for inputs, _ in batches:
            called(module, inputs)
        hook.remove()
        features, labels = torch.cat(seen).double(), torch.cat([targets for _, targets in batches])
        mean = features.mean(0)
        centred = features - mean
        gram = centred.T @ centred
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        onto = functional.one_hot(labels, classes).double()
        weight = torch.linalg.solve(gram, centred.T @ (onto - onto.mean(0)))
        head.weight.copy_(weight.T.float())
        head.bias.copy_((onto.mean(0) - mean @ weight).float())
