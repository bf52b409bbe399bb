"""The frozen network of a run: features of its images, from which its head is solved and validated.

N images, D features, K classes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vivace.data.caching.stored import Pixels
from vivace.models.frozen import NUM_COMPARED, Frozen
from vivace.models.zoo import head_parameters
from vivace.training.loop.arrays import TrainingData, sample

__all__ = ["FrozenFeatures", "linear_head"]

# images per read
BLOCK = 256


def linear_head(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """(name, layer) of the head if it is one linear layer with a bias, else None."""
    names = {name.rpartition(".")[0] for name in head_parameters(model)}
    if len(names) != 1:
        return None
    (name,) = names
    layer = model.get_submodule(name)
    return (name, layer) if type(layer) is nn.Linear and layer.bias is not None else None


def _without_head(model: nn.Module, name: str) -> nn.Module:
    """A copy that ends in the features which the head takes."""
    body = copy.deepcopy(model).eval()
    parent, _, child = name.rpartition(".")
    setattr(body.get_submodule(parent), child, nn.Identity())
    return body


@dataclass(frozen=True)
class _Split:
    images_NHWC: Pixels
    labels_N: np.ndarray
    indices_n: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels_N) if self.indices_n is None else len(self.indices_n)


class FrozenFeatures:
    """Features of the images of a run's splits by a network whose body is not trained.

    Raises ValueError for a network that `linear_head` has no answer for, or whose features are not one vector.
    """

    def __init__(
        self, model: nn.Module, normalize: nn.Module, data: TrainingData, device: torch.device, cache_dir: Path
    ) -> None:
        found = linear_head(model)
        if found is None:
            raise ValueError("the head is no single linear layer")
        self.head_name, self.data = found[0], data
        self._frozen = Frozen(
            _without_head(model, found[0]),
            normalize,
            sample=data.preprocess.view(sample(data, NUM_COMPARED)),
            device=device,
            cache_dir=cache_dir,
        )
        if self._frozen.shape != (found[1].in_features,):
            raise ValueError(f"its features have the shape {self._frozen.shape}")
        self.runtime = self._frozen.runtime
        self.seconds = 0.0
        """Spent on features so far."""
        self.num_images = 0
        """Images that these took."""
        self._known: dict[tuple[str, bool], Tensor] = {}

    def of(self, split: str, *, mirrored: bool = False) -> Tensor:
        """features_ND, float32, of "train", "val" or "test"; computed once."""
        key = (split, mirrored)
        if key not in self._known:
            part = self._split(split)
            began = time.monotonic()
            self._known[key] = self._frozen(self._blocks(part, mirrored), len(part))
            self.seconds += time.monotonic() - began
            self.num_images += len(part)
        return self._known[key]

    def labels(self, split: str) -> Tensor:
        """labels_N, int64."""
        part = self._split(split)
        labels = part.labels_N if part.indices_n is None else part.labels_N[part.indices_n]
        return torch.from_numpy(np.ascontiguousarray(labels)).long()

    @torch.no_grad()
    def logits(self, model: nn.Module, split: str) -> tuple[Tensor, Tensor]:
        """logits_NK float32 and labels_N of a split by the head that `model` has now."""
        layer = model.get_submodule(self.head_name)
        assert isinstance(layer, nn.Linear)
        weight, bias = layer.weight.detach().cpu(), layer.bias.detach().cpu()
        return nn.functional.linear(self.of(split), weight, bias), self.labels(split)

    def _split(self, name: str) -> _Split:
        data = self.data
        if name == "val":
            return _Split(data.val_images_NHWC, data.val_labels_N, data.val_indices)
        split = data.cache.splits[name]
        return _Split(split.images_NHWC, split.labels_N, data.train_indices if name == "train" else None)

    def _blocks(self, part: _Split, mirrored: bool) -> Iterator[np.ndarray]:
        for start in range(0, len(part), BLOCK):
            end = min(start + BLOCK, len(part))
            rows = slice(start, end) if part.indices_n is None else part.indices_n[start:end]
            block = self.data.preprocess.view(np.asarray(part.images_NHWC[rows]))
            yield block[:, :, ::-1] if mirrored else block
