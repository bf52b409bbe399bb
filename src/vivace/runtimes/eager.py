"""PyTorch, eager: the plain network, with normalisation in front and softmax or sigmoid behind."""

from __future__ import annotations

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.hardware import autocast
from vivace.models.features import LastFeatures
from vivace.models.normalize import Normalize
from vivace.models.own.fitting import to_channels_last
from vivace.runtimes.graph import probabilities
from vivace.uncertainty.scores import Answers, energy

__all__ = ["EagerClassifier", "load", "on_device"]


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> EagerClassifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32, softmax or sigmoid in fp32.

    precision: fp32, bf16 or fp16, by autocast. Raises BundleError if the weights do not fit the network.
    """
    return EagerClassifier(bundle, device, precision)


class EagerClassifier:
    """images_NHWC → probs_NK, and what comes before them."""

    def __init__(self, bundle: Bundle, device: torch.device, precision: str) -> None:
        # weights in the layout that the pixels have: otherwise cuDNN turns them round in every call
        self._model = to_channels_last(bundle.build_model().to(device))
        preprocess = bundle.preprocess
        self._normalize = Normalize(preprocess.mean, preprocess.std, white=preprocess.white).to(device)
        self._several, self._device, self._precision = bundle.info.multi_label, device, precision
        self._features = LastFeatures(self._model, len(bundle.classes))

    @torch.inference_mode()
    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        return self._probs(self._logits(images_NHWC))

    @torch.inference_mode()
    def answers(self, images_NHWC: np.ndarray) -> Answers:
        """The probabilities with the energy of the logits and, where the last layer is linear, what it was given."""
        with self._features.taken() as batches:
            logits_BK = self._logits(images_NHWC)
        features_BD = LastFeatures.joined(batches, len(images_NHWC))
        return Answers(
            self._probs(logits_BK),
            energy(logits_BK.float().cpu().numpy()),
            None if features_BD is None else features_BD.numpy(),
        )

    def _logits(self, images_NHWC: np.ndarray) -> torch.Tensor:
        images_BCHW = on_device(images_NHWC, self._device)
        with autocast(self._device, self._precision):
            logits_BK: torch.Tensor = self._model(self._normalize(images_BCHW))
        return logits_BK

    def _probs(self, logits_BK: torch.Tensor) -> np.ndarray:
        probs: np.ndarray = probabilities(logits_BK, multi_label=self._several).cpu().numpy()
        return probs


def on_device(images_NHWC: np.ndarray, device: torch.device) -> torch.Tensor:
    """images_BCHW uint8, channels_last, of any block of images."""
    # copied only if it is no plain block, or read-only as a memory map is, which torch does not take
    block = np.require(images_NHWC, requirements=["C", "W"])
    # NHWC seen as BCHW: channels_last strides without a copy
    return torch.from_numpy(block).to(device).permute(0, 3, 1, 2)
