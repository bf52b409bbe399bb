"""Modules as people have them, with synthetic data: the zoo of benchmarks/modules.py.

A row makes (module, data, keywords of vivace.accelerate). Weights are random; data without targets are judged by
agreement with the original. What a row of ODD shows is in its name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from odd_modules import (
    AttentionPool,
    BranchOnShape,
    BranchOnValues,
    Counts,
    DictOutput,
    Fourier,
    HuggingFaceStyle,
    KeywordsOnly,
    LoopOverTime,
    Lstm,
    RandomOutput,
    Small,
    ThroughNumpy,
    Transformer,
    TwoInputs,
    Uncopied,
    UNet,
)

__all__ = ["ZOO", "Row"]

# (module, data, keywords of vivace.accelerate)
Made = tuple[nn.Module, Iterable[Any], dict[str, Any]]
Row = Callable[[], Made]
SAMPLES, BATCH = 448, 16


def images(channels: int = 3, side: int = 64, samples: int = SAMPLES) -> list[Tensor]:
    """Batches of noise with shapes in it, so that outputs differ from image to image."""
    coarse = functional.interpolate(torch.randn(samples, channels, 4, 4), (side, side), mode="bilinear")
    return list((2 * coarse + 0.3 * torch.randn(samples, channels, side, side)).split(BATCH))


def classified(module: nn.Module, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Batches with the module's own classes as targets, a tenth of them at random."""
    module.eval()
    labelled = []
    with torch.no_grad():
        for batch in batches:
            logits = module(batch)
            wrong = torch.rand(len(batch)) < 0.1
            labelled.append(
                (batch, torch.where(wrong, torch.randint(0, logits.shape[1], (len(batch),)), logits.argmax(1)))
            )
    return labelled


def _timm(name: str, side: int = 64, **arguments: Any) -> Made:
    import timm

    module = timm.create_model(name, num_classes=20, **arguments)
    return module, images(side=side), {}


def _torchvision(name: str, side: int = 64, **arguments: Any) -> Made:
    import torchvision

    module = torchvision.models.get_model(name, weights=None, **arguments)
    return module, images(side=side), {}


# of timm, at 64 pixels
PLAIN = [
    "resnet18",
    "resnet26d",
    "resnext26ts",
    "seresnet18",
    "ecaresnet26t",
    "mobilenetv2_050",
    "mobilenetv4_conv_small",
    "efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "ghostnet_050",
    "hardcorenas_a",
    "lcnet_035",
    "tinynet_e",
    "semnasnet_075",
    "rexnet_100",
    "regnetx_002",
    "repvgg_a0",
    "convnext_atto",
    "convnextv2_atto",
    "dla34",
    "ese_vovnet19b_dw",
    "hrnet_w18_small",
    "selecsls42",
    "nf_regnet_b0",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "poolformer_s12",
    "fastvit_t8",
]
TIMM: dict[str, dict[str, Any]] = {
    **{name: {} for name in PLAIN},
    "vit_tiny_patch16_224": {"side": 96, "img_size": 96},
    "deit_tiny_patch16_224": {"side": 96, "img_size": 96},
    "xcit_nano_12_p16_224": {"side": 96, "img_size": 96},
    "mixer_s32_224": {"side": 224},
    "gmlp_ti16_224": {"side": 96, "img_size": 96},
    "levit_128s": {"side": 224},
    "swinv2_cr_tiny_224": {"side": 128, "img_size": 128},
    "maxvit_rmlp_pico_rw_256": {"side": 128, "img_size": 128},
}
TORCHVISION: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "densenet121": {},
    "googlenet": {"init_weights": True},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
    "mnasnet0_5": {},
    "swin_t": {},
    "alexnet": {},
}


def iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the class that covers most, for each image."""
    mine, theirs = outputs.argmax(1) == 0, targets == 0
    return (mine & theirs).flatten(1).sum(1) / (mine | theirs).flatten(1).sum(1).clamp(min=1)


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Multi-label: the part of the labels that is right."""
    return ((outputs > 0) == targets.bool()).float().mean(1)


def near(outputs: Tensor, targets: Tensor) -> Tensor:
    """Regression: within a tolerance or not."""
    return (outputs - targets).abs().squeeze(1) < 0.1


def _segmentation() -> Made:
    module = UNet().eval()
    with torch.no_grad():
        return module, [(batch, module(batch).argmax(1)) for batch in images()], {"metric": iou}


def _with_targets(module: nn.Module, target: Callable[[Tensor], Tensor], metric: Any) -> Made:
    module.eval()
    with torch.no_grad():
        return module, [(batch, target(module(batch))) for batch in images()], {"metric": metric}


def _steps(lengths: tuple[int, ...] = (20,)) -> list[Tensor]:
    return [torch.randn(BATCH, lengths[place % len(lengths)], 24) for place in range(SAMPLES // BATCH)]


def _tokens() -> list[tuple[dict[str, Tensor], None]]:
    batches = []
    for place in range(SAMPLES // BATCH):
        length = 12 + 4 * (place % 3)
        padding = torch.arange(length)[None] >= torch.randint(6, length, (BATCH, 1))
        batches.append(({"tokens": torch.randint(0, 500, (BATCH, length)), "padding": padding}, None))
    return batches


def _numbers() -> list[Tensor]:
    return list(torch.randn(640, 20).split(BATCH))


def _volumes() -> nn.Module:
    pooled = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), *pooled)


def _detection() -> Made:
    import torchvision

    module = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return module, [((list(batch),), None) for batch in images(side=96, samples=64)], {"metric": boxes}


def boxes(outputs: list[dict[str, Tensor]], original: list[dict[str, Tensor]]) -> list[float]:
    return [float(len(one["boxes"]) == len(other["boxes"])) for one, other in zip(outputs, original, strict=True)]


def _lraspp() -> Made:
    import torchvision

    module = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    return module, images(), {"metric": lambda found, original: iou(found["out"], original["out"].argmax(1))}


ODD: dict[str, Row] = {
    "linear on 20 numbers": lambda: (nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)), _numbers(), {}),
    "labelled images": lambda: (small := Small(), classified(small, images()), {}),
    "1 channel": lambda: (Small(1), images(1), {}),
    "5 channels": lambda: (Small(5), images(5), {}),
    "Hugging Face output, dict inputs": lambda: (HuggingFaceStyle(), [{"pixel_values": x} for x in images()], {}),
    "dict output": lambda: (DictOutput(), images(), {}),
    "two inputs": lambda: (TwoInputs(), [((x, torch.randn(len(x), 4)), None) for x in images()], {}),
    "keywords only": lambda: (KeywordsOnly(), [({"images": x, "scale": 2.0}, None) for x in images()], {}),
    "branch on values": lambda: (BranchOnValues(), images(), {}),
    "branch on shape": lambda: (BranchOnShape(), images(), {}),
    "loop over time": lambda: (LoopOverTime(), _steps(), {}),
    "LSTM": lambda: (Lstm(), _steps(), {}),
    "LSTM, several lengths": lambda: (Lstm(), _steps((16, 20, 24)), {}),
    "transformer, tied weights, lengths": lambda: (Transformer(), _tokens(), {}),
    "attention head": lambda: (AttentionPool(), images(), {}),
    "segmentation by IoU": _segmentation,
    "multi-label": lambda: _with_targets(Small(), lambda out: out > 0, hits),
    "regression within a tolerance": lambda: _with_targets(Small(classes=1), lambda out: out + 0.02, near),
    "through NumPy": lambda: (ThroughNumpy(), images(), {}),
    "Fourier transform": lambda: (Fourier(), images(), {}),
    "can't be copied": lambda: (Uncopied(), images(), {}),
    "random outputs": lambda: (RandomOutput(), images(), {}),
    "counts its calls": lambda: (Counts(), images(), {}),
    "float64": lambda: (Small().double(), [batch.double() for batch in images()], {}),
    "bf16 weights": lambda: (Small().bfloat16(), [batch.bfloat16() for batch in images()], {}),
    "weight norm": lambda: (nn.Sequential(weight_norm(nn.Conv2d(3, 16, 3)), Small(16)), images(), {}),
    "scripted": lambda: (torch.jit.script(Small()), images(), {}),
    "compiled by its owner": lambda: (torch.compile(Small()), images(), {}),
    "DataParallel": lambda: (nn.DataParallel(Small()), images(), {}),
    "detection": _detection,
    "segmentation of torchvision": _lraspp,
    "3-d convolutions": lambda: (_volumes(), [torch.randn(8, 1, 12, 24, 24) for _ in range(56)], {}),
}  # fmt: skip

ZOO: dict[str, Row] = {
    **ODD,
    **{f"torchvision {name}": functools.partial(_torchvision, name, **more) for name, more in TORCHVISION.items()},
    **{f"timm {name}": functools.partial(_timm, name, **more) for name, more in TIMM.items()},
}
