"""Heat maps of a bundle's network: which places of an image speak for a class.

Shape suffixes: B, N images, C channels, H, W pixels or positions of a map, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.errors import BundleError, ConfigError, ModelError
from vivace.hardware import select_device
from vivace.heatmaps.attention import num_attentions, rollout
from vivace.heatmaps.layers import find_layer, replaced_output
from vivace.models.normalize import Normalize
from vivace.models.own.fitting import to_channels_last

__all__ = ["HeatMapper", "check_explainable", "grad_cam", "gradient_times_input"]

GRAD_CAM, ROLLOUT, GRADIENT_TIMES_INPUT = "Grad-CAM", "attention-gradient rollout", "gradient x input"
BATCH_SIZE = 16
# attention weights of a pass, as many as take 256 MiB
MAX_WEIGHTS = 2**26


def grad_cam(values_BCHW: Tensor, gradients_BCHW: Tensor) -> Tensor:
    """[B, H, W] >= 0: the sum of a layer's channels, each weighted by the mean of its gradient; negative sums are 0.

    Source: Selvaraju et al. 2017, arXiv:1610.02391.
    """
    weights_BC11 = gradients_BCHW.mean((2, 3), keepdim=True)
    return (weights_BC11 * values_BCHW).sum(1).clamp(min=0)


def gradient_times_input(values_BCHW: Tensor, gradients_BCHW: Tensor) -> Tensor:
    """[B, H, W] >= 0: at each place the sum of a layer's values times their gradients; negative sums are 0.

    What the class would lose, to first order, if the layer knew nothing of the place (Shrikumar et al. 2016,
    arXiv:1605.01713). For tokens of networks without attention that can be read.
    """
    return (gradients_BCHW * values_BCHW).sum(1).clamp(min=0)


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    GRAD_CAM: grad_cam,
    GRADIENT_TIMES_INPUT: gradient_times_input,
}


class HeatMapper:
    """Makes heat maps of a bundle's network, in float32, whatever the bundle runs on.

        mapper = HeatMapper(bundle)
        maps_NHW = mapper(images_NHWC, classes_N)

    `layer` says which layer they are of, `side` is the number of its places on a side, `method` how they are made:
    Grad-CAM of maps; attention-gradient rollout of transformers; gradient x input of tokens without attention. For one
    thread at a time.
    """

    def __init__(self, bundle: Bundle, *, device: str | torch.device = "cpu") -> None:
        """Builds the network, and looks for the layer with two grey images.

        Raises ConfigError for a network of the user's own whose code was not passed, and for one without a layer that
        keeps places; BundleError for weights that do not fit.
        """
        check_explainable(bundle)
        self.device = torch.device(device) if isinstance(device, torch.device) else select_device(device)
        preprocess = bundle.preprocess
        self.model = to_channels_last(bundle.build_model().requires_grad_(False).to(self.device))
        self.normalize = Normalize(preprocess.mean, preprocess.std, white=preprocess.white).to(self.device)
        self.classes = bundle.classes
        shape = (2, preprocess.channels, preprocess.size, preprocess.size)
        # noise: of flat images some networks see nothing, and all gradients are 0
        probe_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        try:
            self._layer = find_layer(self.model, probe_BCHW)
        except ModelError as error:
            raise ConfigError(str(error)) from None
        self.layer, self.method, self._num_weights = self._layer.name, GRAD_CAM, 0
        if self._layer.kind == "tokens":
            count, self._num_weights = num_attentions(self.model, probe_BCHW, self.side)
            self.method = ROLLOUT if count else GRADIENT_TIMES_INPUT
            self.layer = f"{count} attention layer{'s' * (count > 1)}" if count else self.layer

    @property
    def side(self) -> int:
        return self._layer.side

    def __call__(self, images_NHWC: np.ndarray, classes_N: np.ndarray, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """float32 [N, side, side] in [0, 1]: each map divided by its largest value; 0 where nothing speaks for a class.

        images_NHWC: as `Preprocess.load` gives them. classes_N: int64, the class that each map is of.
        Raises BundleError where the network gives NaN or infinite values.
        """
        side = self._layer.side
        made = [np.zeros((0, side, side), np.float32)]
        for start in range(0, len(images_NHWC), batch_size):
            some = slice(start, start + batch_size)
            classes_B = torch.from_numpy(np.asarray(classes_N[some], np.int64)).to(self.device)
            maps_BHW = self.of_normalised(self.normalised(images_NHWC[some]), classes_B)
            made.append((maps_BHW / maps_BHW.amax((1, 2), keepdim=True).clamp(min=1e-30)).cpu().numpy())
        maps = np.concatenate(made)
        if not np.isfinite(maps).all():
            raise BundleError("the network gives NaN or Inf: no heat map can be made of it. Train it again.")
        return maps

    def normalised(self, images_NHWC: np.ndarray) -> Tensor:
        """images_BCHW float32, as the network takes them."""
        block = np.require(images_NHWC, requirements=["C", "W"])
        images: Tensor = self.normalize(torch.from_numpy(block).to(self.device).permute(0, 3, 1, 2))
        return images

    def of_normalised(self, images_BCHW: Tensor, classes_B: Tensor, *, model: nn.Module | None = None) -> Tensor:
        """[B, side, side] >= 0, of any scale. model: one of the same layers in place of the bundle's."""
        network = self.model if model is None else model
        if self.method == ROLLOUT:
            size = max(1, MAX_WEIGHTS // self._num_weights)
            parts = zip(images_BCHW.split(size), classes_B.split(size), strict=True)
            return torch.cat([rollout(network, images, classes, self.side) for images, classes in parts])
        with replaced_output(network, self._layer) as kept, torch.enable_grad():
            logits_BK = network(images_BCHW)
            # images of a batch do not touch each other: the gradient of the sum is that of each
            asked = logits_BK.gather(1, classes_B[:, None]).sum()
            (gradients,) = torch.autograd.grad(asked, kept)
        values_BCHW, gradients_BCHW = (self._layer.grid(one).detach().float() for one in (kept[0], gradients))
        return RULES[self.method](values_BCHW, gradients_BCHW)


def check_explainable(bundle: Bundle) -> None:
    """Raises ConfigError for a bundle without the code of its network: a graph has no gradients."""
    if not bundle.has_code:
        name = bundle.info.architecture.name.removeprefix("own/")
        raise ConfigError(
            f"heat maps are made of a network's gradients and need its code: {bundle.folder} holds the graph of {name} "
            f"alone. Give the code (in Python: vivace.load({str(bundle.folder)!r}, model=…)), or leave them out."
        )
