"""What attacks and corruptions leave of a bundle's accuracy, how long they take, and what AutoAttack's own code leaves.

    vivace train data/cifar10 --run runs/cifar10-fast
    python benchmarks/trust_attacks.py runs/cifar10-fast data/cifar10 --attack linf:8/255 --images 1000
    python benchmarks/trust_attacks.py runs/cifar10-fast data/cifar10 --attack linf:8/255 --images 1000 --reference
    python benchmarks/trust_attacks.py runs/cifar10-fast data/cifar10 --corruptions --images 1000

--reference also runs the standard suite of pyautoattack (MIT; `pip install pyautoattack`) on the same network and
images, and counts the images on which both agree. Times are of the suite alone, without loading. Writes
benchmarks/results/attacks/DATE-LABEL-HARDWARE.json and a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from records import RESULTS, page, save, today, with_interval
from vivace.bundle import Bundle
from vivace.evaluation.evaluate import open_split
from vivace.evaluation.hardship import chosen_at_random
from vivace.hardware import describe
from vivace.models.normalize import Normalize
from vivace.prediction import Predictor
from vivace.robustness.attacks.suite import METHODS, run_attacks
from vivace.robustness.attacks.threat import Threat
from vivace.robustness.networks import float_network
from vivace.robustness.results import score_of
from vivace.robustness.under_corruptions import measure_corruptions

BATCH = 250


def ours(
    bundle: Bundle, images: Tensor, labels: Tensor, threat: Threat, methods: tuple[str, ...], precision: str
) -> dict[str, Any]:
    """What the suite left, and each attack's figures."""
    network, copy = (float_network(bundle, torch.device("cpu"), name) for name in ("fp32", precision))
    start = time.perf_counter()
    outcome = run_attacks(
        network,
        images,
        labels,
        threat,
        methods=methods,
        batch_size=BATCH,
        searched=None if precision == "fp32" else copy,
    )
    robust = outcome.is_robust_N.numpy()
    return {
        "robust": vars(score_of(robust)),
        "clean": vars(score_of(outcome.is_correct_N.numpy())),
        "seconds": time.perf_counter() - start,
        "precision": precision,
        "attacks": [vars(run) for run in outcome.runs],
        "robust_images": np.flatnonzero(robust).tolist(),
    }


def reference(bundle: Bundle, images: Tensor, labels: Tensor, threat: Threat) -> dict[str, Any]:
    """What the standard suite of AutoAttack's authors left of the same images."""
    from pyautoattack import AutoAttack

    class Module(nn.Module):
        """The same network, channels first: that suite takes no gradients of other strides."""

        def __init__(self) -> None:
            super().__init__()
            self.model = bundle.build_model().requires_grad_(False)
            self.normalize = Normalize(bundle.preprocess.mean, bundle.preprocess.std, white=1.0)

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = self.model(self.normalize(points))
            return logits

    network = Module()

    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    suite = AutoAttack(network, norm=norm, eps=threat.eps, version="standard", device="cpu", seed=0)
    start = time.perf_counter()
    points, _ = suite.run_standard_evaluation(images, labels, batch_size=BATCH)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        right = torch.cat([network(part).argmax(1) for part in points.split(BATCH)]) == labels
    return {
        "robust": vars(score_of(right.numpy())),
        "seconds": seconds,
        "robust_images": np.flatnonzero(right.numpy()).tolist(),
    }


def markdown(record: dict[str, Any]) -> str:
    if "corruptions" in record:
        return _corruptions(record)
    table = ["| attack | images | fooled | robust, % | seconds |", "| --- | --- | --- | --- | --- |"]
    for run in record["ours"]["attacks"]:
        left = 100 * run["num_left"] / record["images"]
        cells = (run["name"], run["num_attacked"], run["num_fooled"], f"{left:.1f}", f"{run['seconds']:.1f}")
        table.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    table += ["", f"ours: clean {_percent(record['ours']['clean'])}, robust {_percent(record['ours']['robust'])}, "]
    table[-1] += f"{record['ours']['seconds']:.0f} s, looked for in {record['ours']['precision']}"
    if record["reference"] is not None:
        both = set(record["ours"]["robust_images"]) ^ set(record["reference"]["robust_images"])
        table += [
            "",
            f"pyautoattack: robust {_percent(record['reference']['robust'])}, {record['reference']['seconds']:.0f} s; "
            f"the two disagree on {len(both)} images",
        ]
    return page(record, "Attacks", f"; {record['form']}; {record['attack']} on {record['images']} images", table)


def _corruptions(record: dict[str, Any]) -> str:
    found = record["corruptions"]
    table = ["| corruption | 1 | 2 | 3 | 4 | 5 |", "| --- | --- | --- | --- | --- | --- |"]
    for name, cells in found["cells"].items():
        table.append(f"| {name.replace('_', ' ')} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    table += ["", f"clean {_percent(found['clean'])}, mean {_percent(found['mean'])}; {found['seconds']:.0f} s"]
    about = f"; {record['form']}; {found['constants']} on {record['images']} images, without frost"
    return page(record, "Corruptions", about, table)


def _percent(score: dict[str, float]) -> str:
    return with_interval(100 * score["accuracy"], 100 * score["low"], 100 * score["high"]) + " %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--attack", help="linf:8/255, l2:0.5")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--corruptions", action="store_true")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="in which points are looked for")
    parser.add_argument("--reference", action="store_true", help="run pyautoattack too")
    parser.add_argument("--label", default="cifar10")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if (args.attack is None) == (not args.corruptions):
        parser.error("give --attack or --corruptions")
    predictor = Predictor(args.bundle, device="cpu", precision="fp32")
    bundle = predictor.bundle
    _, split, cached = open_split(bundle, args.data)
    rows = chosen_at_random(np.arange(len(cached.labels_N)), args.images, 0)
    pixels, labels = bundle.preprocess.view(np.asarray(cached.images_NHWC[rows])), cached.labels_N[rows]
    record: dict[str, Any] = {
        "date": today(),
        "command": f"python benchmarks/trust_attacks.py {' '.join(sys.argv[1:])}",
        "form": f"{bundle.info.architecture.name} {dict(bundle.info.architecture.arguments)}, {split}",
        "images": len(rows),
        "environment": describe(),
    }
    if args.corruptions:
        record["corruptions"] = measure_corruptions(predictor, pixels, labels).to_dict()
        save(record, "attacks", f"{args.label}-corruptions", markdown, args.out)
        return
    threat = Threat.parse(args.attack)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).contiguous()
    truth = torch.from_numpy(np.asarray(labels, np.int64))
    record |= {
        "attack": threat.text,
        "ours": ours(bundle, images, truth, threat, tuple(args.methods), args.precision),
        "reference": reference(bundle, images, truth, threat) if args.reference else None,
    }
    save(record, "attacks", f"{args.label}-{threat.norm}", markdown, args.out)


if __name__ == "__main__":
    main()
