"""The networks of our own: the article's six-block CNN, a fast convnet for small images and one for photos.

Shapes: images_BCHW float, normalised; logits_BK float.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["FastCNN", "FastPhoto", "SimpleCNN"]

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class SimpleCNN(nn.Sequential):
    """The article's network: six 3×3 convolution blocks of 6-16-32-64-128-K channels, flattened at the end.

    Each of the first five blocks is convolution, batch norm, ReLU and 2×2 max-pooling; the sixth is a convolution to
    the K logits, with batch norm and without ReLU, which would cut off every negative logit. 32 px become 1 × 1, which
    is flattened; larger inputs are averaged to 1 × 1 first.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, size: int = 32) -> None:
        if size < 32:
            raise ValueError(f"simple_cnn halves its input five times: got {size} px, at least 32 are needed")
        layers: list[nn.Module] = []
        channels = in_channels
        for width in (6, 16, 32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        layers += [nn.Conv2d(channels, num_classes, 3, padding=1), nn.BatchNorm2d(num_classes)]
        if size >= 64:
            layers.append(nn.AdaptiveAvgPool2d(1))
        super().__init__(*layers, nn.Flatten())


class Whitening(nn.Conv2d):
    """A frozen first convolution whose outputs are decorrelated, each with its negative (arXiv:2404.00498)."""

    def __init__(self, in_channels: int, kernel_size: int, stride: int, num_directions: int) -> None:
        directions = min(num_directions, in_channels * kernel_size**2)
        padding = (kernel_size - 1) // 2
        # the learnt bias stands behind filters that are not learnt
        super().__init__(in_channels, 2 * directions, kernel_size, stride=stride, padding=padding)
        self.weight.requires_grad_(False)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def init_from_images(self, images_BCHW: Tensor, *, epsilon: float = 5e-4) -> None:
        """Set the filters to the eigenvectors of the patches' covariance over the roots of their eigenvalues."""
        side = self.kernel_size[0]
        patches = images_BCHW.float().unfold(2, side, 1).unfold(3, side, 1)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, self.in_channels * side * side)
        patches = (patches - patches.mean(0)).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        # the directions of the largest variance first
        filters = (vectors / torch.sqrt(values + epsilon)).T.flip(0)[: self.out_channels // 2].float()
        filters = filters.reshape(-1, self.in_channels, side, side)
        self.weight.copy_(torch.cat([filters, -filters]))


class FastCNN(nn.Module):
    """A convnet for small images in the manner of airbench (arXiv:2404.00498), drawn for few operations.

    A frozen whitening layer, then groups of convolutions, each halving the resolution; batch norms without learnt
    scale, the first filters of each convolution set to the identity, a linear head whose outputs are divided by a
    constant. widths: channels of each group; depth: convolutions per group; kernel_size, stride and num_directions:
    of the whitening layer (two filters per direction: itself and its negative); downsample: "pool" (max-pooling behind
    the first convolution of a group) or "stride" (that convolution takes every other pixel: four times cheaper).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        size: int = 32,
        widths: Sequence[int] = (64, 128, 256),
        depth: int = 2,
        activation: str = "silu",
        kernel_size: int = 3,
        stride: int = 1,
        num_directions: int = 24,
        downsample: str = "pool",
        head_scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        self.whiten = Whitening(in_channels, kernel_size, stride, num_directions)
        self.act = act()
        channels = self.whiten.out_channels
        groups = []
        for width in widths:
            groups.append(_group(channels, width, depth, act, downsample))
            channels = width
        self.groups = nn.Sequential(*groups)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(channels, num_classes, bias=False)
        self.head_scale = head_scale
        nn.init.kaiming_uniform_(self.head.weight, nonlinearity="relu")

    def init_from_images(self, images_BCHW: Tensor) -> None:
        """Set the whitening filters from normalised training images."""
        self.whiten.init_from_images(images_BCHW)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.act(self.whiten(images_BCHW))
        x = self.pool(self.groups(x))
        logits: Tensor = self.head(x.flatten(1)) * self.head_scale
        return logits


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with a learnt shift and a fixed scale; running statistics that follow within a few dozen steps."""
    norm = nn.BatchNorm2d(channels, momentum=0.4, eps=1e-5)
    norm.weight.requires_grad_(False)
    return norm


def _dirac_conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    with torch.no_grad():
        count = min(in_channels, out_channels)
        # pass the input through at the start: gradients reach the first layers at once
        nn.init.dirac_(conv.weight[:count])
    return conv


def _group(in_channels: int, width: int, depth: int, act: type[nn.Module], downsample: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    strided = {"pool": 1, "stride": 2}[downsample]
    for index in range(depth):
        layers.append(_dirac_conv(in_channels if index == 0 else width, width, strided if index == 0 else 1))
        if index == 0 and downsample == "pool":
            # before norm and activation: a quarter of their work
            layers.append(nn.MaxPool2d(2))
        layers += [_norm(width), act()]
    return nn.Sequential(*layers)


class FastPhoto(nn.Module):
    """A residual convnet for photos of 64 px and more: a stride-4 stem, then stages of plain 3×3 residual blocks.

    widths and depths: channels and blocks of each stage; every stage but the first halves the resolution. About 0.2
    GMAC at 128 px with the defaults.
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
        act = ACTIVATIONS[activation]
        first = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, first // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first // 2),
            act(),
            nn.Conv2d(first // 2, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            act(),
        )
        stages: list[nn.Module] = []
        channels = first
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if index:
                stages.append(
                    nn.Sequential(
                        nn.Conv2d(channels, width, 3, padding=1, bias=False),
                        nn.MaxPool2d(2),
                        nn.BatchNorm2d(width),
                        act(),
                    )
                )
            stages += [_Residual(width, act) for _ in range(depth)]
            channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(images_BCHW)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


class _Residual(nn.Module):
    """x + norm(conv(act(norm(conv(x))))), activated; the last norm starts at zero, so that the block starts as none."""

    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            act(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        last = self.body[-1]
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.body(x))
        return out
