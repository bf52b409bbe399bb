"""Who is compared: for each contender the command that trains, and how its results are read back.

Each runs in a fresh process, gets the data and a folder, and prints one JSON object as its last line on stdout. Peers
that vivace does not depend on run in environments of their own (environments.py), from peers/with_NAME.py. Their
numbers of epochs are chosen so that a run takes 4 to 8 minutes on 2 cores; Keras has the ten of the article.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CONTENDERS", "Contender", "Result"]

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one run."""

    top1: float
    """Final accuracy on the test split, or on the validation split where there is no test split; a fraction."""
    best_top1: float
    """The best of the curve, or of the end; for peers that use the test split after every epoch, the best epoch."""
    train_seconds: float
    """The training loop alone, as the program measures it."""
    total_seconds: float
    """Process start to saved weights, as seen from outside."""
    curve: tuple[tuple[float, float], ...]
    """(seconds since the loop began, accuracy) after each epoch."""
    top1_tta: float | None = None
    """With test-time augmentation; None where it was not measured."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to train. command(python, data, folder) → argv; read(last line, folder, wall-clock seconds) → Result."""

    name: str
    about: str
    command: Callable[[Path, Path, Path], list[str]]
    read: Callable[[Mapping[str, Any], Path, float], Result]
    environment: str | None = None
    """The peer whose environment it needs; None: the one that runs the benchmark."""
    cpu_only: bool = False
    """Whether it does not train on a GPU."""
    seed: Callable[[int], list[str]] = lambda seed: ["--seed", str(seed)]
    """The options that set the seed of a run."""
    augmented: Callable[[Path, Path, Path], list[str]] | None = None
    """(python, data, folder) → argv of what prints the accuracy with test-time augmentation of what was trained there,
    as `top1` of its last line. None: the run reports it itself, or there is none."""


def vivace(name: str, about: str, *options: str) -> Contender:
    """`vivace train` with some options."""

    def command(python: Path, data: Path, folder: Path) -> list[str]:
        return [str(python), "-m", "vivace", "train", str(data), "--run", str(folder), "--quiet", "--json", *options]

    def read(last: Mapping[str, Any], folder: Path, seconds: float) -> Result:
        with (folder / "metrics.csv").open() as file:
            curve = tuple((float(row["seconds"]), float(row["val_top1"])) for row in csv.DictReader(file))
        top1 = last["val_top1"] if last["test_top1"] is None else last["test_top1"]
        receipt = json.loads((folder / "tune.json").read_text())
        details = {
            "val_top1": last["val_top1"],
            "target_seconds": last["target_seconds"],
            "own_total_seconds": last["total_seconds"],
            "setup": receipt["execution"],
        }
        return Result(
            top1=top1,
            best_top1=max(value for _, value in curve),
            train_seconds=last["train_seconds"],
            total_seconds=seconds,
            curve=curve,
            details=details,
        )

    def augmented(python: Path, data: Path, folder: Path) -> list[str]:
        return [str(python), "-m", "vivace", "evaluate", str(folder / "bundle"), str(data), "--tta", "shift", "--json"]

    return Contender(
        name=name,
        about=about,
        command=command,
        read=read,
        seed=lambda seed: ["--set", f"seed={seed}"],
        augmented=augmented,
    )


def article(epochs: int) -> Contender:
    """The article's program in plain PyTorch (peers/article.py)."""

    def command(python: Path, data: Path, folder: Path) -> list[str]:
        script = str(PEERS / "article.py")
        return [str(python), script, str(data), "--epochs", str(epochs), "--out", str(folder), "--json"]

    def read(last: Mapping[str, Any], folder: Path, seconds: float) -> Result:
        share = last["train_seconds"] / epochs
        return Result(
            top1=last["test_top1"][-1],
            best_top1=max(last["test_top1"]),
            train_seconds=last["train_seconds"],
            total_seconds=seconds,
            curve=tuple((share * (index + 1), top1) for index, top1 in enumerate(last["test_top1"])),
        )

    about = f"the article's program in plain PyTorch: DataLoader, SGD 0.01, batch 64, {epochs} epochs"
    return Contender(name="article", about=about, command=command, read=read)


def airbench(name: str, about: str, *options: str, looks: bool = True) -> Contender:
    """airbench94-Muon, our implementation (peers/airbench.py); looks: evaluate on the test images after every epoch."""

    def command(python: Path, data: Path, folder: Path) -> list[str]:
        script, curve = str(PEERS / "airbench.py"), ["--curve"] if looks else []
        return [str(python), script, str(data), "--out", str(folder), *curve, "--json", *options]

    def read(last: Mapping[str, Any], folder: Path, seconds: float) -> Result:
        return Result(
            top1=last["top1"],
            best_top1=last["top1"] if last["top1_tta"] is None else last["top1_tta"],
            train_seconds=last["train_seconds"],
            total_seconds=seconds,
            curve=tuple(map(tuple, last["curve"])),
            top1_tta=last["top1_tta"],
            details={"tta_seconds": last["tta_seconds"]},
        )

    return Contender(name=name, about=about, command=command, read=read)


def peer(
    name: str, environment: str, about: str, *, size: int, epochs: int, batch_size: int, cpu_only: bool = False
) -> Contender:
    """A framework in an environment of its own (peers/with_ENVIRONMENT.py)."""

    def command(python: Path, data: Path, folder: Path) -> list[str]:
        script = str(PEERS / f"with_{environment}.py")
        settings = ["--size", str(size), "--epochs", str(epochs), "--batch-size", str(batch_size)]
        return [str(python), script, str(data), *settings, "--out", str(folder), "--json"]

    def read(last: Mapping[str, Any], folder: Path, seconds: float) -> Result:
        return Result(
            top1=last["top1"],
            best_top1=max(value for _, value in last["curve"]),
            train_seconds=last["train_seconds"],
            total_seconds=seconds,
            curve=tuple(map(tuple, last["curve"])),
            details={
                "look_seconds": last["look_seconds"],
                "own_total_seconds": last["total_seconds"],
                "versions": last["versions"],
            },
        )

    about += f", {size} px, batch {batch_size}, {epochs} epochs; looks after each epoch count in all, not in the loop"
    return Contender(name=name, about=about, command=command, read=read, environment=environment, cpu_only=cpu_only)


CONTENDERS = {
    contender.name: contender
    for contender in (
        article(10),
        airbench("airbench", "airbench94-Muon, weights in bf16, eager"),
        airbench(
            "airbench-channels-last",
            "airbench94-Muon, weights in bf16, eager, channels_last",
            "--channels-last",
        ),
        airbench("airbench-autocast", "airbench94-Muon, bf16 autocast, eager", "--half", "autocast"),
        airbench(
            "airbench-plain",
            "airbench94-Muon, bf16 autocast, eager; one look at the test images, without test-time augmentation",
            *("--half", "autocast", "--no-tta"),
            looks=False,
        ),
        vivace("vivace-article", "the article's recipe through vivace train, as published", "--recipe", "article"),
        vivace("vivace-fast", "vivace train with its defaults"),
        vivace(
            "vivace-fast-66",
            "vivace train until validation reaches 66 %",
            "--target",
            "0.66",
            "--set",
            "validate_every=0.25",
        ),
        vivace("vivace-fast-1", "vivace train for one epoch", "--epochs", "1"),
        vivace("vivace-within-20", "vivace train within 20 s of process start", "--within", "20"),
        vivace("vivace-within-11.5", "vivace train within 11.5 s of process start", "--within", "11.5"),
        vivace(
            "vivace-fast-98", "vivace train that holds out 2 % rather than 10 % for choosing", "--val-fraction", "0.02"
        ),
        peer(
            "lightning",
            "lightning",
            "Lightning with torchvision's resnet18, SGD, one cycle, bf16",
            size=32,
            epochs=5,
            batch_size=128,
        ),
        peer(
            "lightning-photos",
            "lightning",
            "Lightning with torchvision's resnet18, SGD, one cycle, bf16",
            size=128,
            epochs=16,
            batch_size=128,
        ),
        peer(
            "timm-resnet18",
            "timm",
            "timm's resnet18 with the defaults of its train script, bf16",
            size=128,
            epochs=16,
            batch_size=128,
        ),
        peer(
            "fastai",
            "fastai",
            "fastai's vision_learner, resnet18 from scratch, one cycle, bf16",
            size=128,
            epochs=14,
            batch_size=64,
        ),
        peer(
            "fastai-small",
            "fastai",
            "fastai's vision_learner, resnet18 from scratch, one cycle, bf16",
            size=32,
            epochs=5,
            batch_size=128,
        ),
        peer(
            "ultralytics",
            "ultralytics",
            "Ultralytics classify, yolo11n-cls from scratch, fp32",
            size=128,
            epochs=30,
            batch_size=64,
        ),
        peer(
            "ultralytics-small",
            "ultralytics",
            "Ultralytics classify, yolo11n-cls from scratch, fp32",
            size=32,
            epochs=5,
            batch_size=128,
        ),
        peer(
            "keras",
            "keras",
            "the article's network in Keras on TensorFlow, SGD 0.01",
            size=32,
            epochs=10,
            batch_size=64,
            cpu_only=True,
        ),
        vivace("vivace-fast-skip", "vivace train that leaves bad images out", "--on-bad-image", "skip"),
    )
}
