"""Our networks: the article's six-block CNN, a fast convnet for small images and one for photos.

Shapes: images_BCHW float, normalised; logits_BK float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from vivace.errors import ModelError, nearest
from vivace.kernels.norms import FusedSequential
from vivace.models.whitening import Whitening

__all__ = ["FastCNN", "FastPhoto", "SimpleCNN"]

T = TypeVar("T")

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
DOWNSAMPLE = ("pool", "stride", "none")


class SimpleCNN(nn.Sequential):
    """The article's network: six 3×3 convolution blocks of 6-16-32-64-128-K channels, flattened at the end.

    Each of the first five blocks is convolution, batch norm, ReLU and 2×2 max-pooling; the sixth is a convolution to
    the K logits, with batch norm and without ReLU, which would cut off every negative logit. At 32 px the sixth block
    sees 1 × 1, and the average over it is the plain flattening; larger inputs are averaged to 1 × 1.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, size: int = 32) -> None:
        if size < 32:
            raise ModelError(f"simple_cnn halves its input five times: got {size} px. Give `size=32` or more.")
        layers: list[nn.Module] = []
        channels = in_channels
        for width in (6, 16, 32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        layers += [nn.Conv2d(channels, num_classes, 3, padding=1), nn.BatchNorm2d(num_classes)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def parts(self) -> list[list[nn.Module]]:
        """The six blocks, from the input to the head."""
        modules = list(self)
        return [modules[start : start + 4] for start in range(0, 24, 4)]


class FastCNN(nn.Module):
    """A convnet for small images in the manner of airbench (arXiv:2404.00498), designed for few operations.

    A frozen whitening layer, then groups of 3×3 convolutions; batch norms without learnt scale, the first filters of
    each convolution set to the identity, a linear head whose outputs are multiplied by `head_scale`.

    widths: channels of each group. depth: convolutions per group, one number or one for each group. activation: relu,
    silu or gelu. kernel_size, stride, padding, num_directions: of the whitening layer (two filters per direction: it
    and its negative; padding None: half the kernel); an even kernel of 2 is wrong in bf16 on some CPUs. downsample,
    one or one for each group: "pool" (2×2 max-pooling after the first convolution), "stride" (that convolution takes
    every other pixel: four times cheaper) or "none". The last map is max-pooled to 1 × 1, so any input of `size` or
    more works. residual: the convolutions of a group after its first one are a residual branch, as in
    airbench96; each group then needs 2 or more. whitening False: the first layer is a convolution like others, learnt
    from random filters; identity False: the filters of the groups start random too. Both are for ablations.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        size: int = 32,
        widths: Sequence[int] = (64, 128, 256),
        depth: int | Sequence[int] = 2,
        activation: str = "silu",
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        num_directions: int = 24,
        downsample: str | Sequence[str] = "pool",
        residual: bool = False,
        head_scale: float = 1 / 9,
        whitening: bool = True,
        identity: bool = True,
    ) -> None:
        super().__init__()
        act = _activation("fast_cnn", activation)
        depths = _per_group("depth", depth, len(widths))
        downsamples: list[str] = _per_group("downsample", downsample, len(widths))
        self.whiten = Whitening(in_channels, kernel_size, stride, num_directions, padding, learnt=not whitening)
        self.act = act()
        side = (size + 2 * self.whiten.padding[0] - kernel_size) // stride + 1  # type: ignore[operator]
        channels = self.whiten.out_channels
        groups = []
        for width, convs, down in zip(widths, depths, downsamples, strict=True):
            side = _smaller_side("fast_cnn", side, down, size)
            if residual and convs < 2:
                raise ModelError(
                    f"fast_cnn has no residual branch after a first convolution: got depth {convs} with residual. "
                    "Give 2 or more."
                )
            first = _group(channels, width, 1 if residual else convs, act, down, identity)
            groups.append(nn.Sequential(first, _ResidualTail(width, convs - 1, act, identity)) if residual else first)
            channels = width
        self.groups = nn.Sequential(*groups)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(channels, num_classes, bias=False)
        self.head_scale = head_scale
        nn.init.kaiming_uniform_(self.head.weight, nonlinearity="relu")

    def init_from_images(self, images_BCHW: Tensor) -> None:
        """Set the whitening filters from normalised training images, in place."""
        self.whiten.init_from_images(images_BCHW)

    def parts(self) -> list[list[nn.Module]]:
        """The whitening layer, each group, the head."""
        return [[self.whiten], *([group] for group in self.groups), [self.head]]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.groups(self.act(self.whiten(images_BCHW)))
        # adaptive max-pooling is faster on CPUs, but has no deterministic gradient on CUDA
        plain = x.is_cuda and torch.are_deterministic_algorithms_enabled()
        x = x.amax((2, 3)) if plain else self.pool(x).flatten(1)
        logits: Tensor = self.head(x) * self.head_scale
        return logits


class FastPhoto(nn.Module):
    """A residual convnet for photos of 64 px and more: a stride-4 stem, then stages of plain 3×3 residual blocks.

    widths and depths: channels and blocks of each stage; every stage but the first halves the resolution. 0.27 GMAC at
    128 px with the defaults. The last map is averaged, so any input of `size` or more works.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        size: int = 128,
        widths: Sequence[int] = (48, 96, 192, 256),
        depths: Sequence[int] = (1, 1, 1, 1),
        activation: str = "silu",
    ) -> None:
        super().__init__()
        act = _activation("fast_photo", activation)
        depths = _per_group("depths", depths, len(widths))
        first = widths[0]
        self.stem = FusedSequential(
            *_conv_norm(in_channels, first // 2, stride=2), act(), *_conv_norm(first // 2, first, stride=2), act()
        )
        side, channels = (size + 3) // 4, first
        stages = []
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers: list[nn.Module] = []
            if index:
                side = _smaller_side("fast_photo", side, "pool", size)
                conv, norm = _conv_norm(channels, width)
                # before norm and activation: a quarter of their work
                layers += [conv, nn.MaxPool2d(2), norm, act()]
            layers += [_Residual(width, act) for _ in range(depth)]
            stages.append(FusedSequential(*layers))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def parts(self) -> list[list[nn.Module]]:
        """The stem, each stage, the head."""
        return [[self.stem], *([stage] for stage in self.stages), [self.head]]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(images_BCHW)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


class _ResidualTail(nn.Module):
    """x + body(x), activated: `depth` convolutions with their norms, with activations between them."""

    def __init__(self, width: int, depth: int, act: type[nn.Module], identity: bool) -> None:
        super().__init__()
        # without the last activation, which follows the sum
        self.body = _group(width, width, depth, act, "none", identity)[:-1]
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.body(x))
        return out


class _Residual(nn.Module):
    """x + norm(conv(act(norm(conv(x))))), activated; the last norm starts at zero: the block starts as identity."""

    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.body = FusedSequential(*_conv_norm(width, width), act(), *_conv_norm(width, width))
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.body(x))
        return out


def _conv_norm(in_channels: int, width: int, *, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width)


def _group(
    in_channels: int, width: int, depth: int, act: type[nn.Module], downsample: str, identity: bool
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        stride = 2 if index == 0 and downsample == "stride" else 1
        layers.append(_conv(in_channels if index == 0 else width, width, stride, identity))
        if index == 0 and downsample == "pool":
            # before norm and activation: a quarter of their work
            layers.append(nn.MaxPool2d(2))
        # a learnt shift and a fixed scale; running statistics that follow within a few dozen steps
        norm = nn.BatchNorm2d(width, momentum=0.4)
        norm.weight.requires_grad_(False)
        layers += [norm, act()]
    return FusedSequential(*layers)


def _conv(in_channels: int, out_channels: int, stride: int, identity: bool) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    if identity:
        with torch.no_grad():
            # pass the input through at the start: gradients reach the first layers at once
            nn.init.dirac_(conv.weight[: min(in_channels, out_channels)])
    return conv


def _activation(network: str, name: str) -> type[nn.Module]:
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ModelError(f"{network} knows no activation {name!r}.{nearest(name, ACTIVATIONS)} Known: {known}.")
    return ACTIVATIONS[name]


def _per_group(field: str, value: T | Sequence[T], num_groups: int) -> list[T]:
    """One value for each group, from one value or from as many."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * num_groups
    if len(value) != num_groups:
        raise ModelError(f"{field} must have one value per width: got {list(value)} for {num_groups} widths.")
    return list(value)


def _smaller_side(network: str, side: int, downsample: str, size: int) -> int:
    """The side of a map after a downsampling step. Raises ModelError if it would be 0."""
    if downsample not in DOWNSAMPLE:
        raise ModelError(
            f"{network} knows no downsample {downsample!r}.{nearest(downsample, DOWNSAMPLE)} "
            f"Known: {', '.join(DOWNSAMPLE)}."
        )
    smaller = {"pool": side // 2, "stride": (side + 1) // 2, "none": side}[downsample]
    if smaller < 1:
        raise ModelError(f"{network} downsamples {size} px to nothing. Give a larger `size`, or fewer widths.")
    return smaller
