"""Who is compared by `pretrained.py`: vivace with a time budget, and peers that start from the same weights.

vivace gets the training images alone, of which it holds out a tenth itself; afterwards `vivace predict` classifies the
held-out images with its bundle, which no timing includes. Peers train on all training images and are evaluated on the
held-out ones after every epoch. Ultralytics is left out: see LEFT_OUT.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import PEERS, Contender, Result

__all__ = ["FINETUNE_PEERS", "LEFT_OUT", "SIDES", "correct_of", "peer_of", "side_of", "vivace_with_budget"]

# side → what it is, and its options
SIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "finetune": ("vivace train --recipe finetune --within", ("--recipe", "finetune")),
    "auto": ("vivace train --recipe auto --within", ("--recipe", "auto")),
    "scratch": ("vivace train --from-scratch --within", ("--from-scratch",)),
}
# peer → its environment, whether it has epochs, what it is
FINETUNE_PEERS: dict[str, tuple[str, bool, str]] = {
    "timm": ("timm", True, "timm: a plain loop with its transforms, AdamW and cosine schedule"),
    "fastai": ("fastai", True, "fastai: vision_learner and fine_tune with their defaults"),
    "probe": ("timm", False, "timm's frozen network and scikit-learn's logistic regression"),
}
LEFT_OUT = {
    "ultralytics": (
        "its classifiers are built from its own layers or torchvision's, among which EfficientNet-Lite is not: it "
        "can't start from these weights, and its own ones would have to be downloaded"
    )
}


def side_of(name: str) -> str:
    """The side or the peer of a contender: "timm" of "timm-224-4"."""
    return name.partition("-")[0]


def correct_of(result: Mapping[str, Any]) -> list[bool] | None:
    """Whether each of the held-out images was classified correctly, in the order of their paths; None for peers."""
    details = result["details"]
    if "correct" not in details:
        return None
    return [digit == "1" for digit in f"{int(details['correct'], 16):0{details['num_held_out']}b}"]


def vivace_with_budget(side: str, seconds: float, data: Path) -> Contender:
    """`vivace train` on the set in `data` with a time budget; its curve is one point, the end."""
    about, options = SIDES[side]
    held_out = sorted((data / "test").glob("*/*"))

    def command(python: Path, data: Path, folder: Path) -> list[str]:
        # where a split is a link, what it leads to: links out of a folder are not followed
        argv = [str(python), "-m", "vivace", "train", str((data / "train").resolve()), "--run", str(folder), "--quiet"]
        return [*argv, "--json", "--within", f"{seconds:g}s", *options]

    def read(last: Mapping[str, Any], folder: Path, command_seconds: float) -> Result:
        right = _classified(folder, data / "test", held_out)
        recipe = re.search(r"^name: *(\S+)", (folder / "recipe.yaml").read_text(), re.MULTILINE)
        top1 = sum(right) / len(right)
        details = {
            "val_top1": last["val_top1"],
            "epochs": last["epochs"],
            "recipe": recipe and recipe[1],
            "command_seconds": command_seconds,
            "correct": f"{int(''.join('01'[bit] for bit in right), 2):x}",
            "num_held_out": len(right),
        }
        seconds = last["total_seconds"]
        return Result(
            top1=top1,
            best_top1=top1,
            train_seconds=last["train_seconds"],
            total_seconds=seconds,
            curve=((seconds, top1),),
            details=details,
        )

    return Contender(name=f"{side}-{seconds:g}", about=f"{about} {seconds:g}s", command=command, read=read)


def _classified(bundle: Path, folder: Path, held_out: Sequence[Path]) -> list[bool]:
    """Whether `vivace predict` gives each of the images in CLASS/ below `folder` its class."""
    variables = os.environ | {"VIVACE_CACHE": str(bundle.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "vivace", "predict", str(bundle), str(folder.resolve()), "--quiet", "--json"],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"vivace predict {bundle} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])["predictions"]
    labels = {"/".join(Path(row["path"]).parts[-2:]): row["label"] for row in found}
    # what can't be read is wrong
    return [labels.get(f"{path.parent.name}/{path.name}") == path.parent.name for path in held_out]


def peer_of(spec: str) -> Contender:
    """A peer as NAME-SIZE-EPOCHS, such as "timm-224-4", or NAME-SIZE where there are no epochs, such as "probe-224".

    Its curve is in seconds since the start of its process, without its evaluations. Raises ValueError.
    """
    name, *numbers = spec.split("-")
    if name not in FINETUNE_PEERS:
        raise ValueError(f"no peer {name!r}. There are: {', '.join(FINETUNE_PEERS)}")
    environment, has_epochs, about = FINETUNE_PEERS[name]
    if len(numbers) != 1 + has_epochs or not all(number.isdigit() and int(number) for number in numbers):
        form = f"{name}-SIZE-EPOCHS, such as {name}-224-4" if has_epochs else f"{name}-SIZE, such as {name}-224"
        raise ValueError(f"a peer is {form}: got {spec!r}")
    size, epochs = numbers[0], numbers[1] if has_epochs else None

    def command(python: Path, data: Path, folder: Path) -> list[str]:
        argv = [str(python), str(PEERS / f"finetune_{name}.py"), str(data), "--size", size, "--out", str(folder)]
        return [*argv, "--json", *(() if epochs is None else ("--epochs", epochs))]

    def read(last: Mapping[str, Any], folder: Path, command_seconds: float) -> Result:
        curve = tuple((last["start_seconds"] + seconds, top1) for seconds, top1 in last["curve"])
        details = {name: last[name] for name in ("start_seconds", "look_seconds", "versions")}
        return Result(
            top1=last["top1"],
            best_top1=max(top1 for _, top1 in curve),
            train_seconds=last["train_seconds"],
            total_seconds=curve[-1][0],
            curve=curve,
            details={**details, "command_seconds": command_seconds},
        )

    about = f"{about}, {size} px" + ("" if epochs is None else f", epochs: {epochs}")
    return Contender(name=spec, about=about, command=command, read=read, environment=environment)
