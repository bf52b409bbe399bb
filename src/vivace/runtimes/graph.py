"""The graph that is deployed: raw pixels in, probabilities out, with everything between them inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.hardware import autocast
from vivace.models.normalize import Normalize

__all__ = ["DYNAMIC_SHAPES", "DeployedGraph", "deployed_graph"]

# of what is traced: any number of images
DYNAMIC_SHAPES = ({0: torch.export.Dim("batch", min=1)},)


class DeployedGraph(nn.Module):
    """images_NHWC uint8 at the bundle's size → probs_NK float32, rows summing to 1.

    Normalisation and softmax are part of it: whoever runs the graph can't get them wrong. precision: fp32 or bf16, by
    autocast on a CPU, which a trace of it keeps.
    """

    def __init__(self, model: nn.Module, normalize: Normalize, precision: str = "fp32") -> None:
        super().__init__()
        self.normalize, self.model, self._precision = normalize, model, precision

    def forward(self, images_NHWC: Tensor) -> Tensor:
        with autocast(torch.device("cpu"), self._precision):
            logits_NK: Tensor = self.model(self.normalize(images_NHWC.permute(0, 3, 1, 2)))
        return logits_NK.float().softmax(1)


def deployed_graph(bundle: Bundle, precision: str = "fp32") -> tuple[DeployedGraph, Tensor]:
    """The graph of a bundle in eval mode on the CPU, and a batch of two blank images to trace it with."""
    preprocess = bundle.preprocess
    graph = DeployedGraph(bundle.build_model(), Normalize(preprocess.mean, preprocess.std), precision).eval()
    return graph, torch.zeros(2, preprocess.size, preprocess.size, preprocess.channels, dtype=torch.uint8)
