"""The graph that is deployed: raw pixels in, probabilities out, with everything between them inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.models.normalize import Normalize

__all__ = ["DeployedGraph", "deployed_graph"]


class DeployedGraph(nn.Module):
    """images_NHWC uint8 at the bundle's size → probs_NK float32, rows summing to 1.

    Normalisation and softmax are part of it: whoever runs the graph can't get them wrong.
    """

    def __init__(self, model: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.normalize, self.model = normalize, model

    def forward(self, images_NHWC: Tensor) -> Tensor:
        logits_NK: Tensor = self.model(self.normalize(images_NHWC.permute(0, 3, 1, 2)))
        return logits_NK.float().softmax(1)


def deployed_graph(bundle: Bundle) -> tuple[DeployedGraph, Tensor]:
    """The graph of a bundle in eval mode on the CPU, and a batch of two blank images to trace it with."""
    preprocess = bundle.preprocess
    graph = DeployedGraph(bundle.build_model(), Normalize(preprocess.mean, preprocess.std)).eval()
    return graph, torch.zeros(2, preprocess.size, preprocess.size, preprocess.channels, dtype=torch.uint8)
