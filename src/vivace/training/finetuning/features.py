"""The frozen network of a run: features of its images, for the head, and the maps where it is cut, for what follows.

N images, D features, K classes.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivace import systems
from vivace.data.caching.stored import Pixels
from vivace.hardware import available_memory_bytes
from vivace.models.cut import Cut, back_of, front_of
from vivace.models.frozen import NUM_COMPARED, Frozen
from vivace.models.zoo import head_parameters
from vivace.training.loop.arrays import TrainingData, sample

__all__ = ["FrozenFeatures", "linear_head", "memory_for_maps"]

# images per read
BLOCK = 256
# maps larger than this fraction of the free memory are kept in a file
MAX_MEMORY_FRACTION = 0.25
# pixels as stored, uint8 [n, store, store, C] → as the network sees them, uint8 [n, size, size, C]
View = Callable[[np.ndarray], np.ndarray]


def linear_head(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """(name, layer) of the head if it is one linear layer with a bias, else None."""
    names = {name.rpartition(".")[0] for name in head_parameters(model)}
    if len(names) != 1:
        return None
    (name,) = names
    layer = model.get_submodule(name)
    return (name, layer) if type(layer) is nn.Linear and layer.bias is not None else None


def memory_for_maps() -> float:
    """Bytes of memory that maps may take; what exceeds them is kept in a file."""
    return MAX_MEMORY_FRACTION * available_memory_bytes()


class _Body(nn.Module):
    """normalised images_BCHW → (features_BD, maps at the cut)."""

    def __init__(self, model: nn.Module, head: str, cut: Cut | None) -> None:
        super().__init__()
        body = copy.deepcopy(model).eval()
        parent, _, child = head.rpartition(".")
        setattr(body.get_submodule(parent), child, nn.Identity())
        self.front = body if cut is None else front_of(body, cut)
        self.back = None if cut is None else back_of(body, cut)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        given = self.front(images_BCHW)
        return (given,) if self.back is None else (self.back(given), given)


@dataclass(frozen=True)
class _Split:
    images_NHWC: Pixels
    labels_N: np.ndarray
    indices_n: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels_N) if self.indices_n is None else len(self.indices_n)


@dataclass(frozen=True)
class _Known:
    """What is known of the images of a split in one view."""

    features_ND: Tensor
    maps_NCHW: Tensor | None


class FrozenFeatures:
    """Features of the images of a run's splits by a network whose body is not trained.

    runtime: as for `Frozen`. cut: where the network is cut, if the maps there are wanted too. They are kept as bf16, in
    memory or, where they are large, in a file below `cache_dir` that has no name and vanishes with the process.
    Raises ValueError for a network that `linear_head` has no answer for, or whose features are not one vector; later,
    OSError where that file does not fit on the disk.
    """

    def __init__(
        self,
        model: nn.Module,
        normalize: nn.Module,
        data: TrainingData,
        device: torch.device,
        cache_dir: Path,
        *,
        cut: Cut | None = None,
        runtime: str = "auto",
    ) -> None:
        found = linear_head(model)
        if found is None:
            raise ValueError("the head is no single linear layer")
        self.head_name, self.data, self.cut = found[0], data, cut
        self._folder, self._memory_left = cache_dir, memory_for_maps()
        self._frozen = Frozen(
            _Body(model, found[0], cut),
            normalize,
            sample=data.preprocess.view(sample(data, NUM_COMPARED)),
            device=device,
            cache_dir=cache_dir,
            runtime=runtime,
        )
        self.width = found[1].in_features
        if self._frozen.shapes[0] != (self.width,):
            raise ValueError(f"its features have the shape {self._frozen.shapes[0]}")
        self.runtime = self._frozen.runtime
        self.seconds = 0.0
        """Spent on features so far."""
        self.num_images = 0
        """Images that these took."""
        self._views: dict[str, View] = {"plain": data.preprocess.view, "mirrored": self._mirrored}
        self._known: dict[tuple[str, str], _Known] = {}

    def add_view(self, name: str, view: View) -> None:
        """Name another view of images, for `of` and `maps`."""
        self._views[name] = view

    def of(self, split: str, view: str = "plain") -> Tensor:
        """features_ND, float32, of "train", "val" or "test"; computed once."""
        return self._look(split, view).features_ND

    def of_some(self, split: str, rows_n: Tensor) -> Tensor:
        """features_nD, float32, of the images in these rows of a split alone; they are not kept."""
        part = self._split(split)
        indices = np.arange(len(part)) if part.indices_n is None else part.indices_n
        return self._computed(_Split(part.images_NHWC, part.labels_N, indices[rows_n.numpy()]), "plain", None)

    def once(self, split: str, view: str = "plain") -> Tensor:
        """The same, which is not kept."""
        return self._computed(self._split(split), view, None)

    def of_pixels(self, images_NHWC: np.ndarray) -> Tensor:
        """features_ND, float32, of images at the network's size, uint8 [N, size, size, C]."""
        features = torch.empty(len(images_NHWC), self.width)
        self._frozen.fill(iter([images_NHWC]), [features, *([] if self.cut is None else [None])])
        return features

    def maps(self, split: str, view: str = "plain") -> Tensor:
        """maps_NCHW, bf16, channels_last, of a network with a cut; computed once, together with the features."""
        maps = self._look(split, view).maps_NCHW
        assert maps is not None
        return maps

    def labels(self, split: str) -> Tensor:
        """labels_N, int64."""
        part = self._split(split)
        labels = part.labels_N if part.indices_n is None else part.labels_N[part.indices_n]
        return torch.from_numpy(np.ascontiguousarray(labels)).long()

    @property
    def known(self) -> frozenset[tuple[str, str]]:
        """(split, view) of what was computed so far."""
        return frozenset(self._known)

    @property
    def library(self) -> Any:
        """What computes them, as `FinetuneConfig.runtime` says it."""
        return self.runtime.partition(":")[0]

    @property
    def images_per_second(self) -> float:
        """Of what was computed so far."""
        return self.num_images / max(self.seconds, 1e-9)

    @torch.no_grad()
    def logits(self, model: nn.Module, split: str) -> tuple[Tensor, Tensor]:
        """logits_NK float32 and labels_N of a split by the head that `model` has now."""
        layer = model.get_submodule(self.head_name)
        assert isinstance(layer, nn.Linear)
        # as a call of the layer, which others may watch
        with torch.no_grad():
            logits_NK: Tensor = layer(self.of(split).to(layer.weight.device)).cpu()
        return logits_NK, self.labels(split)

    def _look(self, split: str, view: str) -> _Known:
        key = (split, view)
        if key not in self._known:
            part = self._split(split)
            maps = None if self.cut is None else self._room(len(part), self.cut.shape)
            # what is said of the bundle is to be true of it: its head is on features that are not rounded
            precision = None if split == "train" else "fp32"
            self._known[key] = _Known(self._computed(part, view, maps, precision), maps)
        return self._known[key]

    def _computed(self, part: _Split, view: str, maps: Tensor | None, precision: str | None = None) -> Tensor:
        """features_ND of a view; `maps` is filled with its maps, None: they are not wanted. precision: as of `fill`."""
        began = time.monotonic()
        features = torch.empty(len(part), self.width)
        outs = [features, *([] if self.cut is None else [maps])]
        self._frozen.fill(self._blocks(part, self._views[view]), outs, precision=precision)
        self.seconds += time.monotonic() - began
        self.num_images += len(part)
        return features

    def _room(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """An empty tensor for maps_NCHW, in memory as long as there is enough, then in a file."""
        channels, height, width = shape
        num_values = count * channels * height * width
        if 2 * num_values <= self._memory_left:
            self._memory_left -= 2 * num_values
            rows = torch.empty(count, height, width, channels, dtype=torch.bfloat16)
        else:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.truncate(2 * num_values)
                # writing to a sparse mapping on a full disk would kill this process by SIGBUS
                systems.reserve(file, 2 * num_values)
                # numpy has no bf16
                mapped = np.memmap(file, dtype=np.uint16, mode="r+", shape=(count, height, width, channels))
            rows = torch.from_numpy(mapped).view(torch.bfloat16)
        return rows.permute(0, 3, 1, 2)

    def _split(self, name: str) -> _Split:
        data = self.data
        if name == "val":
            return _Split(data.val_images_NHWC, data.val_labels_N, data.val_indices)
        split = data.cache.splits[name]
        return _Split(split.images_NHWC, split.labels_N, data.train_indices if name == "train" else None)

    def _mirrored(self, stored_NHWC: np.ndarray) -> np.ndarray:
        return self.data.preprocess.view(stored_NHWC)[:, :, ::-1]

    @staticmethod
    def _blocks(part: _Split, view: View) -> Iterator[np.ndarray]:
        for start in range(0, len(part), BLOCK):
            end = min(start + BLOCK, len(part))
            rows = slice(start, end) if part.indices_n is None else part.indices_n[start:end]
            yield view(np.asarray(part.images_NHWC[rows]))
