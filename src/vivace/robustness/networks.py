"""What is attacked: the float32 network behind a bundle, or, where only its answers are at hand, the bundle itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.cachedir import default_cache_dir
from vivace.errors import KernelError
from vivace.hardware import autocast
from vivace.kernels.norms import fused_norms
from vivace.models.normalize import Normalize
from vivace.predictor import Predictor
from vivace.robustness.attacks.losses import Network

__all__ = ["answers_of", "eight_bit", "float_network"]

# a level that float32 puts just below a whole number is that number
NEARLY = 1e-3
TINY = 1e-30
# layers that multiply, which autocast would round; a subclass may do anything with its weights
ROUNDED = (nn.Conv2d, nn.Linear)


def float_network(bundle: Bundle, device: torch.device, precision: str = "fp32") -> Network:
    """images_BCHW float32 in [0, 1] → logits_BK float32, differentiable: the bundle's weights in float32, eager.

    Logits of int8 have no useful gradients, and stand still where the network itself does not. precision: "bf16"
    multiplies in bf16, which rounds gradients too: for looking, never for the last word. Raises what
    `Bundle.build_model` raises.
    """
    model = bundle.build_model().to(device).requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)
    if precision == "bf16":
        # once: autocast would round weights that are not learnt anew in each of thousands of passes
        for module in model.modules():
            if type(module) in ROUNDED:
                module.to(torch.bfloat16)
    fused = _fused_norms() if precision == "bf16" and device.type == "cpu" else contextlib.nullcontext
    normalize = Normalize(bundle.preprocess.mean, bundle.preprocess.std).to(device)
    # pixels from 0 to 1: no uint8 can hold what an attack makes of them
    normalize.scale *= 255.0

    def network(images_BCHW: Tensor) -> Tensor:
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        with autocast(device, precision), fused():
            logits_BK: Tensor = model(normalize(images_BCHW))
        return logits_BK.float()

    return network


def _fused_norms() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Our kernels of passes without gradients, or where they can't be built, torch's."""
    folder = default_cache_dir() / "kernels"
    try:
        with fused_norms(folder):
            return functools.partial(fused_norms, folder)
    except KernelError:
        return contextlib.nullcontext


def answers_of(predictor: Predictor) -> Network:
    """images_BCHW float32 in [0, 1] → log-probabilities, without gradients, of the images in 8 bits."""

    def network(images_BCHW: Tensor) -> Tensor:
        levels = (images_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        probs_BK = predictor.probs(np.ascontiguousarray(levels.cpu().numpy()))
        return torch.from_numpy(np.log(np.maximum(probs_BK, TINY))).to(images_BCHW.device)

    return network


def eight_bit(points_BCHW: Tensor, images_BHWC: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C]: adversarial points in 8 bits, rounded towards the images, so that no change grows."""
    changes = points_BCHW.permute(0, 2, 3, 1).cpu().numpy().astype(np.float64) * 255 - images_BHWC
    whole = np.trunc(changes + np.copysign(NEARLY, changes)).astype(np.int64)
    levels: np.ndarray = np.clip(images_BHWC + whole, 0, 255).astype(np.uint8)
    return levels
