"""The network that each peer of `serve_peers.py` serves: the same weights, by PyTorch, as fast as it gets there.

    python serving_model.py FOLDER [--threads 1]     images a second of every variant and batch size, in this process

FOLDER is what `serving_bundle.py` made. Photos are decoded by Pillow and torchvision's transforms, with the size,
resampling and normalization of the bundle; a batch is stacked and normalized at once. Batches are filled up to one of
SIZES, each compiled once: a program for any size is slower.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

__all__ = ["SIZES", "VARIANTS", "Classifier", "told"]

SIZES = (1, 4, 16)
# names a folder in which each worker that is ready leaves a file
READY = "SERVED_READY"
# variant → (dtype, compiled by Inductor with frozen weights)
VARIANTS = {
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "fp32 compiled": (torch.float32, True),
    "bf16 compiled": (torch.bfloat16, True),
}


class Classifier:
    """resnet18 with the weights in a folder; a call gives the probabilities of a list of decoded photos."""

    def __init__(self, folder: Path, variant: str, *, sizes: Sequence[int] = SIZES) -> None:
        facts = json.loads((folder / "facts.json").read_text())
        self.classes: list[str] = facts["classes"]
        dtype, compiled = VARIANTS[variant]
        model = torchvision.models.resnet18(num_classes=len(facts["classes"]))
        model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        self._model = model.eval().to(dtype=dtype, memory_format=torch.channels_last)
        self._dtype, self._sizes = dtype, tuple(sizes)
        mean, std = (torch.tensor(facts[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        # uint8 to normalized in one pass: pixel * scale + shift
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._crop = transforms.Compose(
            [
                transforms.Resize(facts["size"], interpolation=InterpolationMode(facts["interpolation"])),
                transforms.CenterCrop(facts["size"]),
                transforms.PILToTensor(),
            ]
        )
        self._size = facts["size"]
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            self._model = torch.compile(self._model, dynamic=False)
        for size in self._sizes:
            self.probs([torch.zeros(3, self._size, self._size, dtype=torch.uint8)] * size)
        if place := os.environ.get(READY):
            (Path(place) / str(os.getpid())).touch()

    def decode(self, photo: bytes | Image.Image) -> torch.Tensor:
        """uint8 [3, size, size]."""
        picture = Image.open(io.BytesIO(photo)) if isinstance(photo, bytes) else photo
        decoded: torch.Tensor = self._crop(picture.convert("RGB"))
        return decoded

    @torch.inference_mode()
    def probs(self, photos: Sequence[torch.Tensor]) -> list[list[float]]:
        """A row of probabilities for each photo; of more than the largest size in several calls."""
        most, rows = self._sizes[-1], list[list[float]]()
        for start in range(0, len(photos), most):
            some = list(photos[start : start + most])
            size = next(size for size in self._sizes if size >= len(some))
            pixels = torch.stack(some + [some[-1]] * (size - len(some)))
            images = (pixels.to(memory_format=torch.channels_last) * self._scale + self._shift).to(self._dtype)
            rows += self._model(images).float().softmax(1)[: len(some)].tolist()
        return rows


def told(probs: list[float], classes: Sequence[str]) -> dict[str, Any]:
    """The answer to one photo: the likeliest class and five with their probabilities, as vivace's has them."""
    ranked = sorted(zip(probs, classes, strict=True), reverse=True)[:5]
    topk = [{"label": label, "probability": probability} for probability, label in ranked]
    return {"label": topk[0]["label"], "probability": topk[0]["probability"], "topk": topk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for variant in VARIANTS:
        began = time.perf_counter()
        classifier = Classifier(given.folder, variant)
        ready, rates = time.perf_counter() - began, []
        for size in SIZES:
            photos = [torch.zeros(3, classifier._size, classifier._size, dtype=torch.uint8)] * size
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < given.seconds:
                classifier.probs(photos)
                count += size
            rates.append(f"{size}: {count / (time.perf_counter() - start):.0f}/s")
        print(f"{variant}, {given.threads} threads: {', '.join(rates)}; ready after {ready:.0f} s", flush=True)


if __name__ == "__main__":
    main()
