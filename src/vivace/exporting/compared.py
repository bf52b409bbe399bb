"""What a graph gives beside PyTorch, before the folder that runs it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.exporting.deployment.goldens import Golden, write_goldens
from vivace.exporting.parity import Parity, check_parity, measure_parity
from vivace.exporting.progress import doing
from vivace.runtimes.loading import graph_file, load_reference, load_runtime
from vivace.runtimes.table import RUNTIMES

__all__ = ["Compared", "compared"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A graph that agrees with PyTorch, and the answers of both to the golden images. Shapes: N goldens, K classes."""

    parity: Parity | None
    """None: there were no images to compare it on."""
    certificate: dict[str, Any]
    """The one that was just measured, or where there was nothing to compare, the one that the bundle came with."""
    precision: str
    goldens: Sequence[Golden]
    images_NHWC: np.ndarray
    """The goldens as the network sees them."""
    pytorch_NK: np.ndarray
    """float32, probabilities."""
    graph_NK: np.ndarray
    """float32, probabilities."""

    def write_goldens(self, folder: Path, where: dict[str, str]) -> None:
        """The files of `golden/`. where: on which machine and by which libraries they were answered."""
        write_goldens(
            folder,
            self.goldens,
            self.images_NHWC,
            pytorch_NK=self.pytorch_NK,
            deployed_NK=self.graph_NK,
            precision=self.precision,
            where=where,
        )


def compared(bundle: Bundle, goldens: Sequence[Golden], images: tuple[np.ndarray, str] | None) -> Compared:
    """Compare the graph of a bundle's runtime with PyTorch.

    images: (pixels, their name) for the certificate, as of `parity_images`; None: the one that an int8 variant came
    with stays. Raises ParityError if they disagree, and what `graph_file` raises if the bundle lacks its graph.
    """
    info = bundle.info
    for name in RUNTIMES[info.runtime].graph_files:
        graph_file(bundle, name, info.runtime)
    doing("comparing it with PyTorch")
    classify = load_runtime(info.runtime, bundle, device=torch.device("cpu"), precision=info.precision)
    parity: Parity | None = None
    if images is not None:
        pixels, name = images
        parity = measure_parity(bundle, classify, pixels, runtime=info.runtime, precision=info.precision, images=name)
        check_parity(parity)
    images_NHWC = np.stack([bundle.preprocess.load(golden.data) for golden in goldens])
    # one at a time, as the folder's own test asks
    pytorch_NK, graph_NK = (
        np.concatenate([function(images_NHWC[i : i + 1]) for i in range(len(images_NHWC))])
        for function in (load_reference(bundle), classify)
    )
    # a graph that stands for a network whose code is not at hand was compared when it was written
    return Compared(
        parity=parity,
        certificate=parity.to_dict() if parity is not None and parity.compared else dict(info.parity),
        precision=info.precision,
        goldens=goldens,
        images_NHWC=images_NHWC,
        pytorch_NK=pytorch_NK,
        graph_NK=graph_NK,
    )
