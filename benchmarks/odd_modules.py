"""Modules as people write them, each with something that a converter may trip over."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AttentionPool",
    "BranchOnShape",
    "BranchOnValues",
    "Counts",
    "DictOutput",
    "Fourier",
    "HuggingFaceStyle",
    "KeywordsOnly",
    "LoopOverTime",
    "Lstm",
    "ModelOutput",
    "RandomOutput",
    "Small",
    "ThroughNumpy",
    "Transformer",
    "TwoInputs",
    "UNet",
    "Uncopied",
]


@dataclasses.dataclass
class ModelOutput:
    """As Hugging Face returns: names, some of them None."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None


class Small(nn.Module):
    """A convnet for images of any size."""

    def __init__(self, channels: int = 3, width: int = 48, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(4):
            conv = nn.Conv2d(width if place else channels, width, 3, 1 if place else 2, padding=1)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.body(images))


class HuggingFaceStyle(Small):
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False) -> Any:
        hidden = self.body(pixel_values)
        return ModelOutput(self.head(hidden), (hidden,) if output_hidden_states else None)


class DictOutput(Small):
    def forward(self, images: Tensor) -> Any:
        hidden = self.body(images)
        return {"logits": self.head(hidden), "features": hidden, "size": 48}


class TwoInputs(Small):
    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.head(self.body(images) * numbers[:, :1].sigmoid())


class KeywordsOnly(Small):
    def forward(self, *, images: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(self.body(images)) * scale


class BranchOnValues(Small):
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(images)
        return self.head(hidden if hidden.mean() > 0.2 else -hidden)


class BranchOnShape(Small):
    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] > 32:
            images = functional.avg_pool2d(images, 2)
        return self.head(self.body(images))


class LoopOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(24, 64), nn.Linear(64, 5)

    def forward(self, steps: Tensor) -> Tensor:
        state = steps.new_zeros(len(steps), 64)
        for step in steps.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 96, 2, batch_first=True, bidirectional=True), nn.Linear(192, 5)

    def forward(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        states, (last, _) = self.lstm(steps)
        return self.head(states[:, -1]), last


class Transformer(nn.Module):
    """Tokens and a mask of padding; the embedding is tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 500, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=padding)[:, 0])


class AttentionPool(Small):
    def __init__(self) -> None:
        super().__init__()
        self.body = self.body[:-2]
        self.attention, self.query = nn.MultiheadAttention(48, 4, batch_first=True), nn.Parameter(torch.randn(1, 1, 48))

    def forward(self, images: Tensor) -> Tensor:
        places = functional.avg_pool2d(self.body(images), 8).flatten(2).transpose(1, 2)
        return self.head(self.attention(self.query.expand(len(images), -1, -1), places, places)[0][:, 0])


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(32, 32, 2, 2), nn.Conv2d(35, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.up(self.inner(self.down(images).relu()).relu())
        return self.out(torch.cat([hidden, images], 1))


class ThroughNumpy(Small):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.from_numpy(numpy.tanh(self.body(images).numpy())))


class Fourier(Small):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(torch.fft.fft2(images).abs().log1p()))


class Uncopied(Small):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class RandomOutput(Small):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(functional.dropout(self.body(images), 0.5, training=True))


class Counts(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.body(images))
