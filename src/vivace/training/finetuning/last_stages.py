"""The last stages of a network, trained on the maps that its frozen front gives: those of several views of each image.

The front of a pretrained network is the larger part of its cost and changes least. Its maps are computed once for each
view, through the fastest runtime; what follows the cut is trained on them, with its batch norms frozen. Maps are mixed
as images are (arXiv:1806.05236).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vivace.data.augmentation.augment import Augment
from vivace.data.augmentation.mixing import mix
from vivace.hardware import autocast
from vivace.models.cut import back_of
from vivace.torch_private import BatchNorm
from vivace.training.finetuning.features import FrozenFeatures
from vivace.training.loop.session import Session

__all__ = ["LastStages"]

# images per pass without gradients
EVAL_BATCH = 128


class LastStages:
    """What a session trains in place of its whole network: the modules after a cut.

    Called as `Augment` is: in place of images it gives maps, float32 [B, C, H, W], of one view of each, drawn at
    random.
    """

    def __init__(self, session: Session, features: FrozenFeatures) -> None:
        assert features.cut is not None
        self.features, self.cut = features, features.cut
        self.epochs: int | None = None
        self._session = session
        self._config = session.recipe.augment
        train, indices = session.data.cache.splits["train"], session.data.train_indices
        self._row_of = torch.full((len(train.labels_N),), -1)
        self._row_of[torch.from_numpy(np.asarray(indices))] = torch.arange(len(indices))
        self._views: list[Tensor] = []

    @property
    def num_views(self) -> int:
        """Views of each training image that there are maps of."""
        return len(self._views)

    @property
    def num_crops(self) -> int:
        """Views that are random crops, with an augmentation of the user's if there is one."""
        return max(0, self.num_views - (1 if self._config.flip == "none" else 2))

    @property
    def num_views_of_head(self) -> int:
        """Views that the head was solved on, and whose maps are known."""
        return sum((split, view) in self.features.known for split, view in (("train", "plain"), ("train", "mirrored")))

    def add_views(self, count: int) -> None:
        """Add views until there are `count`: the image, its mirror image where the recipe mirrors, random crops."""
        for number in range(self.num_views, count):
            self._views.append(self.features.maps("train", self._view(number)))

    def _view(self, number: int) -> str:
        plain = ["plain"] if self._config.flip == "none" else ["plain", "mirrored"]
        if number < len(plain):
            return plain[number]
        name = f"crop {number}"
        self.features.add_view(name, self._crops(number))
        return name

    def _crops(self, number: int) -> Callable[[np.ndarray], np.ndarray]:
        """A view by the recipe's augmentation, which is the same whenever it is computed."""
        session = self._session
        config = dataclasses.replace(self._config, mixup=0.0, cutmix=0.0, start_size=None)
        if config.flip == "alternating":
            config = dataclasses.replace(config, flip="random")
        augment = Augment(
            config,
            size=session.data.preprocess.size,
            num_classes=session.num_classes,
            own=session.own_augmentation,
            fill=session.augment.fill_C,
        )
        is_bytes = session.data.preprocess.dtype == "uint8"
        generator = torch.Generator().manual_seed(session.recipe.seed * 1000 + number)

        def crop(stored_NHWC: np.ndarray) -> np.ndarray:
            stored = np.array(stored_NHWC, dtype=session.data.preprocess.dtype)
            images = torch.from_numpy(stored).permute(0, 3, 1, 2)
            blank = torch.zeros(len(images), dtype=torch.int64)
            seen, _ = augment(images, blank, blank, times_seen=0, generator=generator)
            if seen.is_floating_point() and is_bytes:
                # from an augmentation of the user's
                seen = seen.round().clamp(0, 255).to(torch.uint8)
            pixels: np.ndarray = seen.permute(0, 2, 3, 1).contiguous().numpy()
            return pixels

        return crop

    def __call__(
        self,
        images_BCHW: Tensor,
        labels_B: Tensor,
        indices_B: Tensor,
        *,
        times_seen: int | Tensor,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(maps_BCHW, targets) of the images at `indices_B`; targets are soft labels where maps are mixed."""
        rows_B = self._row_of[indices_B]
        view_B = torch.randint(self.num_views, (len(rows_B),), generator=generator)
        maps = torch.empty((len(rows_B), *self.cut.shape), memory_format=torch.channels_last)
        for number, view in enumerate(self._views):
            here = (view_B == number).nonzero()[:, 0]
            maps[here] = view[rows_B[here]].float()
        config = self._config
        if not (config.mixup or config.cutmix):
            return maps, labels_B
        return mix(
            maps,
            labels_B,
            num_classes=self._session.num_classes,
            label_sets_MK=self._session.task.label_sets_MK,
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            generator=generator,
        )

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """maps_BCHW → logits_BK of a network in training, whose norms keep their statistics: those of many images."""
        norms = [module for module in model.modules() if isinstance(module, BatchNorm)]

        def logits(maps_BCHW: Tensor) -> Tensor:
            for norm in norms:
                norm.eval()
            answer: Tensor = back_of(model, self.cut)(maps_BCHW)
            return answer

        return logits

    @torch.no_grad()
    def logits(self, model: nn.Module, split: str) -> tuple[Tensor, Tensor]:
        """logits_NK float32 and labels_N of a split."""
        back = back_of(model.eval(), self.cut)
        maps = self.features.maps(split)
        precision = "bf16" if self._session.recipe.precision == "bf16" else "fp32"
        with autocast(self._session.device, precision):
            chunks = [back(maps[start : start + EVAL_BATCH].float()) for start in range(0, len(maps), EVAL_BATCH)]
        return torch.cat(chunks).float(), self.features.labels(split)
