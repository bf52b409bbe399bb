"""PyTorch compiled by Inductor, its weights frozen into the program: compiled anew in every process."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.cachedir import default_cache_dir
from vivace.errors import ConfigError
from vivace.hardware import autocast
from vivace.models.normalize import Normalize
from vivace.models.own.fitting import to_channels_last
from vivace.runtimes.eager import on_device
from vivace.runtimes.graph import probabilities
from vivace.runtimes.inductor_private import frozen
from vivace.runtimes.int8 import int8_graph
from vivace.runtimes.loading import Classifier
from vivace.runtimes.quiet import quiet
from vivace.runtimes.table import is_quantized
from vivace.trust import keep_compiled_programs

__all__ = ["load"]


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier as `vivace.runtimes.eager` gives it, compiled at its first call, and again for each new batch size.

    precision: fp32, bf16 or fp16, or int8 on a CPU, of a bundle that was quantized for it. Raises BundleError if the
    weights or ranges do not fit the network, ConfigError for int8 elsewhere, MissingExtra without torchao.
    """
    keep_compiled_programs(default_cache_dir())
    if is_quantized(precision):
        return _int8(bundle, device)
    model = to_channels_last(bundle.build_model().to(device))
    normalize = Normalize(bundle.preprocess.mean, bundle.preprocess.std, white=bundle.preprocess.white).to(device)
    several = bundle.info.multi_label

    @torch.compile(dynamic=False)
    def probs_of(images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = model(normalize(images_BCHW))
        return probabilities(logits_BK, multi_label=several)

    compiled: set[int] = set()

    @torch.no_grad()
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        images_BCHW = on_device(images_NHWC, device)
        with contextlib.nullcontext() if len(images_NHWC) in compiled else frozen(), autocast(device, precision):
            probs_BK = probs_of(images_BCHW)
        compiled.add(len(images_NHWC))
        probs: np.ndarray = probs_BK.cpu().numpy()
        return probs

    return classify


def _int8(bundle: Bundle, device: torch.device) -> Classifier:
    if device.type != "cpu":
        raise ConfigError(f"inductor runs int8 on a CPU: got {device.type}. Use fp16 or bf16.")
    graph, _ = int8_graph(bundle)
    probs_of = torch.compile(graph, dynamic=False)
    compiled: set[int] = set()

    @torch.no_grad()
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        with contextlib.ExitStack() as stack:
            if len(images_NHWC) not in compiled:
                stack.enter_context(frozen())
                # it warns of its own constants while it compiles
                stack.enter_context(quiet())
            probs: np.ndarray = probs_of(on_device(images_NHWC, device).permute(0, 2, 3, 1)).numpy()
        compiled.add(len(images_NHWC))
        return probs

    return classify
