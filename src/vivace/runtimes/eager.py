"""PyTorch, eager: the plain network, with normalisation in front and softmax or sigmoid behind."""

from __future__ import annotations

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.hardware import autocast
from vivace.models.normalize import Normalize
from vivace.models.own.fitting import to_channels_last
from vivace.runtimes.graph import probabilities
from vivace.runtimes.loading import Classifier

__all__ = ["load", "on_device"]


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32, softmax or sigmoid in fp32.

    precision: fp32, bf16 or fp16, by autocast. Raises BundleError if the weights do not fit the network.
    """
    # weights in the layout that the pixels have: otherwise cuDNN turns them round in every call
    model = to_channels_last(bundle.build_model().to(device))
    normalize = Normalize(bundle.preprocess.mean, bundle.preprocess.std, white=bundle.preprocess.white).to(device)
    several = bundle.info.multi_label

    @torch.inference_mode()
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        images_BCHW = on_device(images_NHWC, device)
        with autocast(device, precision):
            logits_BK = model(normalize(images_BCHW))
        probs: np.ndarray = probabilities(logits_BK, multi_label=several).cpu().numpy()
        return probs

    return classify


def on_device(images_NHWC: np.ndarray, device: torch.device) -> torch.Tensor:
    """images_BCHW uint8, channels_last, of any block of images."""
    # copied only if it is no plain block, or read-only as a memory map is, which torch does not take
    block = np.require(images_NHWC, requirements=["C", "W"])
    # NHWC seen as BCHW: channels_last strides without a copy
    return torch.from_numpy(block).to(device).permute(0, 3, 1, 2)
