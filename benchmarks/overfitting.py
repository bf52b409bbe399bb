"""Catastrophic overfitting in a short run: how often FGSM without guards has it, and how often the recipe `robust`.

A smaller network than the recipe's and some of the images of CIFAR-10, so that a run takes half a minute; the rest is
the recipe's. There are so many images that they are not learnt by heart, which lowers robustness too. Each seed trains
three times: FGSM (arXiv:1412.6572), not watched; FGSM, watched; the recipe. A run has overfitted if the probe of its
newest weights at its end has collapsed from the best before (`has_collapsed`). Writes
benchmarks/results/trust/DATE-overfitting-LABEL-HARDWARE.json and a table in Markdown.

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
from records import RESULTS, save_found
from vivace.training.loop.overfitting import has_collapsed

FGSM = {"attack.noise": 0.0, "attack.step": 1.0}
SIDES: dict[str, dict[str, Any]] = {
    "FGSM, not watched": FGSM | {"attack.max_rollbacks": 0},
    "FGSM, watched": FGSM,
    "robust": {},
}
# held-out images that are probed: the error of a rate is below two points
PROBED = 1000


def images_of(folder: Path, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class folder, uint8 [N, H, W, 3], and labels."""
    images, labels = [], []
    for label, name in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(name.iterdir())[:per_class]:
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    return np.stack(images), np.array(labels)


def run(
    data: tuple[np.ndarray, np.ndarray], changes: dict[str, Any], seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One run: whether its newest weights have collapsed, and the probe's accuracies."""
    overrides = {
        "model.arguments.widths": arguments.widths,
        "data.val_fraction": 0.2,
        "augment.start_size": None,
        "attack.eps": arguments.eps,
        "attack.probe_images": PROBED,
        "batch_size": arguments.batch_size,
        "seed": seed,
        **changes,
    }
    execution = {"precision": arguments.precision, "channels_last": True, "tile_gradients": True, "fuse_norms": True}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = vivace.train(
            data,
            "robust",
            epochs=arguments.epochs,
            overrides=overrides | execution,
            run=Path(folder) / "run",
            tune=False,
            quiet=True,
        )
        with (result.run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["val_robust_newest"]]
    newest = [float(row["val_robust_newest"]) for row in rows]
    assert result.robust is not None
    return {
        "overfitted": has_collapsed(newest[-1], max(newest), int(rows[-1]["num_probed"])),
        "num_overfits": result.robust.num_overfits,
        "robust": result.robust.accuracy,
        "newest": [round(value, 4) for value in newest],
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as folders, with train/")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=1000, help="a fifth of them are held out")
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 64])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--eps", type=float, default=8.0)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--label", default="cifar10")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    data = images_of(arguments.data / "train", arguments.per_class)
    rows = []
    for seed in range(arguments.seeds):
        for side in arguments.sides:
            row = {"side": side, "seed": seed, **run(data, SIDES[side], seed, arguments)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    table = [
        "| training | overfitted at its end | went back | newest weights at the end, PGD | kept weights, PGD |",
        "| --- | --- | --- | --- | --- |",
    ]
    for side in arguments.sides:
        mine = [row for row in rows if row["side"] == side]
        last = [100 * row["newest"][-1] for row in mine]
        kept = [100 * row["robust"] for row in mine]
        cells = (f"{np.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})" for values in (last, kept))
        table.append(
            f"| {side} | {sum(row['overfitted'] for row in mine)} of {len(mine)} | "
            f"{sum(row['num_overfits'] for row in mine)} × | {' | '.join(cells)} |"
        )
    options = vars(arguments) | {"data": "cifar10", "out": None}
    about = (
        f"; {8 * arguments.per_class:,} images to train on, widths {arguments.widths}, eps {arguments.eps:g}/255, "
        f"{arguments.epochs} epochs, {arguments.seeds} seeds; the probe is PGD of 10 steps on {PROBED:,} images at most"
    )
    save_found(
        {"arguments": options, "rows": rows},
        "trust",
        f"overfitting-{arguments.label}",
        arguments.out,
        title="Catastrophic overfitting",
        conditions=about,
        table=table,
    )


if __name__ == "__main__":
    main()
