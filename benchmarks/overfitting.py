"""Catastrophic overfitting in a short run: how often FGSM without guards has it, and how often `robust`'s attack does.

A tiny network and a few images of CIFAR-10, so that a run takes seconds. Each seed trains three times: FGSM, not
watched; FGSM, watched; N-FGSM, watched. A run has overfitted if the probe of its newest weights at its end has
collapsed from the best before (`has_collapsed`).

    python benchmarks/overfitting.py data/cifar10 --seeds 10
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vivace
from vivace.config import override
from vivace.training.loop.overfitting import has_collapsed
from vivace.training.recipes.recipe import Recipe

FGSM = {"attack.noise": 0.0, "attack.step": 1.0}
SIDES: dict[str, dict[str, Any]] = {
    "FGSM, not watched": FGSM | {"attack.max_rollbacks": 0},
    "FGSM, watched": FGSM,
    "N-FGSM, watched": {},
}


def images_of(folder: Path, per_class: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class folder, uint8 [N, side, side, 3], and labels."""
    images, labels = [], []
    for label, name in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(name.iterdir())[:per_class]:
            images.append(np.asarray(Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BOX)))
            labels.append(label)
    return np.stack(images), np.array(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as folders, with train/")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=80, help="half of them are held out and probed")
    parser.add_argument("--side", type=int, default=16, help="px")
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--eps", type=float, default=12.0)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()
    data = images_of(arguments.data / "train", arguments.per_class, arguments.side)
    rows = []
    for seed in range(arguments.seeds):
        for side in arguments.sides:
            row = {"side": side, "seed": seed, **run(data, SIDES[side], seed, arguments)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    for side in arguments.sides:
        mine = [row for row in rows if row["side"] == side]
        print(f"{side:<18} overfitted at its end {sum(row['overfitted'] for row in mine)} of {len(mine)}, went back "
              f"{sum(row['num_overfits'] for row in mine)} ×, robust "
              f"{100 * float(np.mean([row['robust'] for row in mine])):.1f} %")  # fmt: skip
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"arguments": vars(arguments) | {"data": "cifar10"}, "rows": rows}, default=str)
        )


def run(
    data: tuple[np.ndarray, np.ndarray], changes: dict[str, Any], seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One run: whether its newest weights have collapsed, and the probe's accuracies."""
    recipe = override(
        Recipe(name="overfitting"),
        {
            "model.name": "fast_cnn",
            "model.arguments": {
                "widths": arguments.widths,
                "depth": 2,
                "stride": 2,
                "activation": "relu",
                "whitening": False,
                "num_directions": 8,
            },
            "data.val_fraction": 0.5,
            "data.size": arguments.side,
            "optimizer.name": "sgd",
            "optimizer.lr": arguments.lr,
            "optimizer.nesterov": True,
            "attack.eps": arguments.eps,
            "attack.probe_images": 10 * arguments.per_class // 2,
            "monitor": "robust",
            "epochs": arguments.epochs,
            "batch_size": arguments.batch_size,
            "ema_decay": 0.95,
            "precision": "fp32",
            "threads": 1,
            "seed": seed,
            **changes,
        },
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = vivace.train(data, recipe, run=Path(folder) / "run", tune=False, quiet=True)
        with (result.run / "metrics.csv").open() as file:
            probes = [(float(row["val_robust_newest"]), int(row["num_probed"])) for row in csv.DictReader(file)]
    assert result.robust is not None
    newest, num_images = probes[-1]
    return {
        "overfitted": has_collapsed(newest, max(value for value, _ in probes), num_images),
        "num_overfits": result.robust.num_overfits,
        "robust": result.robust.accuracy,
        "newest": [round(value, 3) for value, _ in probes],
        "seconds": round(time.perf_counter() - began, 1),
    }


if __name__ == "__main__":
    main()
