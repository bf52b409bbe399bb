"""PyTorch compiled by Inductor, its weights frozen into the program: compiled anew in every process."""

from __future__ import annotations

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.hardware import autocast
from vivace.models.normalize import Normalize
from vivace.runtimes import Classifier
from vivace.runtimes.eager import on_device

__all__ = ["load"]


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier as `vivace.runtimes.eager` gives it, compiled at its first call, and again for each new batch size.

    Raises BundleError if the weights do not fit the network.
    """
    import torch._inductor.config as settings

    # weights as constants: they are laid out for the processor once, and batch norm is folded into convolutions
    settings.freezing = True
    model = bundle.build_model().to(device).to(memory_format=torch.channels_last)
    normalize = Normalize(bundle.preprocess.mean, bundle.preprocess.std).to(device)

    @torch.compile(dynamic=False)
    def probs_of(images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = model(normalize(images_BCHW))
        return logits_BK.float().softmax(1)

    @torch.no_grad()
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        images_BCHW = on_device(images_NHWC, device)
        with autocast(device, precision):
            probs_BK = probs_of(images_BCHW)
        probs: np.ndarray = probs_BK.cpu().numpy()
        return probs

    return classify
