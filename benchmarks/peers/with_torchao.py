"""torchao's PT2E quantization for x86, compiled by Inductor: int8 within PyTorch.

The network is its torch.export program. Default configuration of X86InductorQuantizer, calibrated on all images to
calibrate on; compiled with freezing when it is loaded, as its tutorial says. What is saved is the quantized
program.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from inference import Exchange, Job, Loaded, program


def prepare(exchange: Exchange, out: Path, batch: int, form: str) -> Mapping[str, Any] | None:
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    batches = [torch.from_numpy(images) for images in exchange.whole_batches("calibrate", batch)]
    with torch.no_grad():
        observed = prepare_pt2e(torch.export.load(exchange.program(batch)).module(), quantizer)
        for images in batches:
            observed(images)
        quantized = convert_pt2e(observed)
        torch.export.save(torch.export.export(quantized, (batches[0],)), out / "model.pt2")
    return None


def load(job: Job) -> Loaded:
    import torch
    import torch._inductor.config

    # registers the operators that the program names
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    torch.set_num_threads(job.threads)
    torch._inductor.config.freezing = True
    model = torch.compile(torch.export.load(job.model / "model.pt2").module())

    @torch.no_grad()
    def classify(images: torch.Tensor) -> np.ndarray:
        scores: np.ndarray = model(images).float().numpy()
        return scores

    return Loaded(classify, torch.from_numpy)


if __name__ == "__main__":
    program(prepare, load, ("torch", "torchao"))
