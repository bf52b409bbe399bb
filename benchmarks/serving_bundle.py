"""The bundle that serving is measured with: resnet18 at 224 px, made fast by `vivace accelerate`, and its weights.

    python benchmarks/serving_bundle.py data/flowers /tmp/resnet18 [--within 8m | --quick]

Writes FOLDER/float (the network in float32), FOLDER/fast (what the search made of it; in int8 where the processor gains
by that), and for other programs FOLDER/weights.pt (a state dict with torchvision's names) and FOLDER/facts.json.
The network is not trained: speed does not depend on the weights. So its accuracy is that of chance, and the budget for
the accuracy drop is wide; what the search says of accuracy means nothing here. The statistics of the batch norms are
those of photos, so that activations have the ranges that int8 is calibrated on. --quick: without a search, the variant
that it chose on processors with int8 dot products, OpenVINO in int8, built by the same code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np

__all__ = ["FACTS", "FAST", "FLOAT", "WEIGHTS", "make"]

NETWORK, SIZE = "timm/resnet18", 224
FLOAT, FAST, WEIGHTS, FACTS = "float", "fast", "weights.pt", "facts.json"
# percentage points: of a network that guesses nothing smaller can be proven
MAX_DROP = 90.0
PHOTOS, BATCH, CALIBRATION = 128, 32, 300


def float_bundle(data: Path, folder: Path) -> Path:
    """The network in float32, whose batch norms have seen photos."""
    import torch

    from vivace.bundle import Architecture, BundleInfo, save_bundle
    from vivace.data.preprocess import Preprocess
    from vivace.models.zoo import create_model

    torch.manual_seed(0)
    files = sorted(data.rglob("*.jpg"))
    preprocess = Preprocess(
        size=SIZE, store_size=SIZE, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    classes = tuple(sorted({path.parent.name for path in files}))
    model = create_model(NETWORK, len(classes), size=SIZE)
    chosen = files[:: max(1, len(files) // PHOTOS)][:PHOTOS]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    model.train()
    with torch.no_grad():
        for start in range(0, len(chosen), BATCH):
            pixels_NHWC = np.stack([preprocess.load(path) for path in chosen[start : start + BATCH]])
            images_BCHW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).float() / 255
            model((images_BCHW - mean) / std)
    info = BundleInfo(
        architecture=Architecture(name=NETWORK, num_classes=len(classes), size=SIZE),
        classes=classes,
        preprocess=preprocess,
    )
    made = save_bundle(folder / FLOAT, model.eval(), info)
    torch.save(model.state_dict(), folder / WEIGHTS)
    facts = {"classes": classes, **dataclasses.asdict(preprocess)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return made.folder


def quick_bundle(data: Path, plain: Path, folder: Path) -> Path:
    """OpenVINO in int8, calibrated on photos, as the search builds it."""
    from vivace.acceleration.candidates import Builder, Candidate
    from vivace.bundle import load_bundle

    bundle, files = load_bundle(plain), sorted(data.rglob("*.jpg"))
    chosen = files[:: max(1, len(files) // CALIBRATION)][:CALIBRATION]

    def calibrate() -> np.ndarray:
        return np.stack([bundle.preprocess.load(path) for path in chosen])

    made = Builder(bundle, folder / "work", calibrate).build(Candidate(runtime="openvino", precision="int8"))
    shutil.copytree(made.folder, folder / FAST, dirs_exist_ok=True)
    shutil.rmtree(folder / "work")
    return folder / FAST


def make(data: Path, folder: Path, within: str | None) -> int:
    """Both bundles; returns the status of the search. within: its time; None: none is made."""
    from vivace.cli import main as vivace

    folder.mkdir(parents=True, exist_ok=True)
    plain = float_bundle(data, folder)
    if within is None:
        print(quick_bundle(data, plain, folder))
        return 0
    options = ["--objective", "throughput", "--max-drop", str(MAX_DROP), "--train", "off", "--within", within]
    return vivace(["accelerate", str(plain), str(data), "--out", str(folder / FAST), *options])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--within", default="8m")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    sys.exit(make(given.data, given.folder, None if given.quick else given.within))
