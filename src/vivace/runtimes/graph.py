"""The graph that is deployed: raw pixels in, probabilities out, with everything between them inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.hardware import autocast
from vivace.models.normalize import Normalize

__all__ = ["DYNAMIC_SHAPES", "DeployedGraph", "deployed_graph", "probabilities"]

# of what is traced: any number of images
DYNAMIC_SHAPES = ({0: torch.export.Dim("batch", min=1)},)


def probabilities(logits_NK: Tensor, *, multi_label: bool) -> Tensor:
    """probs_NK float32: rows sum to 1, or with sets of labels each label has a probability of its own."""
    return logits_NK.float().sigmoid() if multi_label else logits_NK.float().softmax(1)


class DeployedGraph(nn.Module):
    """images_NHWC, uint8 or float32, `size` pixels each way → probs_NK float32, as `probabilities` gives them.

    Normalisation and softmax, or sigmoid, are part of it, so no user of the graph can get them wrong. precision: fp32
    or bf16, by autocast on a CPU, which a trace of it keeps.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        normalize: Normalize,
        size: int,
        precision: str = "fp32",
        *,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self._multi_label = multi_label
        self.model, self._size, self._precision = model, size, precision
        # one value for each of a row's values in memory order: pixel by pixel, channel by channel
        self.register_buffer("scale", normalize.scale.flatten().repeat(size))
        self.register_buffer("shift", normalize.shift.flatten().repeat(size))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        # normalised as long rows, and turned into channels by strides alone: a compiler that is given pixels of three
        # values, or channels first, moves the image about in memory once or twice
        rows_NHX = images_NHWC.reshape(-1, self._size, len(self.scale)).float()
        pixels_NHWC = torch.addcmul(self.shift, rows_NHX, self.scale).reshape(-1, *images_NHWC.shape[1:])
        with autocast(torch.device("cpu"), self._precision):
            logits_NK: Tensor = self.model(pixels_NHWC.permute(0, 3, 1, 2))
        return probabilities(logits_NK, multi_label=self._multi_label)


def deployed_graph(bundle: Bundle, precision: str = "fp32") -> tuple[DeployedGraph, Tensor]:
    """The graph of a bundle in eval mode on the CPU, and a batch of two blank images to trace it with."""
    preprocess = bundle.preprocess
    normalize = Normalize(preprocess.mean, preprocess.std, white=preprocess.white)
    model, several = bundle.build_model(), bundle.info.multi_label
    graph = DeployedGraph(model, normalize, preprocess.size, precision, multi_label=several).eval()
    sides = (preprocess.size, preprocess.size, preprocess.channels)
    return graph, torch.zeros(2, *sides, dtype=getattr(torch, preprocess.dtype))
