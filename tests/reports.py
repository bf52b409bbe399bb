"""Makes what a report is made from: answers to images that were never there, and the files of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vivace.metrics.measured import Measured
from vivace.reporting.page.about import Sources, page_of
from vivace.reporting.page.answers import answers_of
from vivace.reporting.page.compared import Verdict, Versus, versus_of
from vivace.statistics.proportions import wilson_interval

__all__ = ["HOSTILE", "make_kept", "make_measured", "make_receipt", "make_sources", "make_versus", "scored"]

# class names as a stranger may write them: markup, an attribute, a template, other directions, 73 letters, bytes
HOSTILE = (
    "<script>document.title='hit'</script>",
    "\"onload=\"document.title='hit'",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)</style><img src=x onerror=alert(1)>",
    "\u202eevil",
    "שלום עולם",
    "قطة",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" + "x" * 15,
    "caf\udce9",
    "a\nb\x00\x1b[31m",
    "]]>--><!--",
    "向日葵",
)


def make_measured(
    num_classes: int, num_images: int, *, side: int = 32, channels: int = 3, right: float = 0.8, seed: int = 0
) -> Measured:
    """Answers, `right` of which are right and the others the next class, and images in their class's colour."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(num_images) % num_classes
    logits_NK = rng.normal(0, 1, (num_images, num_classes)).astype(np.float32)
    wrong_N = rng.random(num_images) >= right
    answers_N = np.where(wrong_N, (labels_N + 1) % num_classes, labels_N)
    logits_NK[np.arange(num_images), answers_N] += 5
    probs_NK = np.exp(logits_NK) / np.exp(logits_NK).sum(1, keepdims=True)

    def images(rows: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(1).integers(0, 100, (len(rows), side, side, channels))
        return (noise + (labels_N[rows] * 37 % 155)[:, None, None, None]).astype(np.uint8)

    names = [f"class {label}/{row}.jpg" for row, label in enumerate(labels_N)]
    return Measured(split="test", probs_NK=probs_NK, labels_N=labels_N, names=names, images=images)


def scored(value: float, count: int = 500) -> dict[str, float]:
    """An accuracy as robustness.json has it."""
    low, high = wilson_interval(value * count, count)
    return {"accuracy": value, "low": low, "high": high}


def make_kept(**attack: Any) -> dict[str, Any]:
    """robustness.json of a bundle."""
    return {
        "corruptions": {
            "split": "test",
            "num_images": 1000,
            "constants": "CIFAR-10-C",
            "clean": scored(0.9, 1000),
            "mean": scored(0.65, 1000),
            "families": {"noise": scored(0.5), "blur": scored(0.7)},
            "cells": {"gaussian_noise": [0.8, 0.7, 0.6, 0.5, 0.4], "fog": [0.9, 0.8, 0.7, 0.6, 0.5]},
            "left_out": ["frost"],
        },
        "attack": {
            "split": "test",
            "num_images": 500,
            "threat": "linf:8/255",
            "clean": scored(0.9),
            "robust": scored(0.41),
            "is_standard": True,
            "attacks": [
                {"name": name, "robust_so_far": left}
                for name, left in (("apgd-ce", 0.47), ("apgd-t", 0.43), ("fab-t", 0.43), ("square", 0.41))
            ],
            "search": "fp32",
            "deployed": None,
            "deployed_as": "eager fp32",
            "warnings": [],
            **attack,
        },
    }


def make_receipt() -> dict[str, Any]:
    """receipt.json of a search with a winner."""

    def row(name: str, ms: float, status: str, drop: float | None, bound: float | None) -> dict[str, Any]:
        loss = None if drop is None else {"drop": drop, "bound": bound, "num_images": 360}
        return {
            "name": name,
            "status": status,
            "reason": status,
            "bytes": 4_600_000,
            "ratio": {"ratio": 2.9 / ms, "low": 2.8 / ms, "high": 3.0 / ms},
            "timed": {"p50_ms": ms},
            "screened": None,
            "selected": None,
            "certified": loss,
        }

    return {
        "asked": {"data": "photos", "max_drop": 1.5, "batch_size": 1, "train": "auto"},
        "status": "accelerated",
        "reason": "accelerated",
        "winner": "openvino int8",
        "baseline": "inductor fp32",
        "images": {"certify": ["test", 360]},
        "warnings": [],
        "rows": [
            row("inductor fp32", 2.91, "baseline", None, None),
            row("openvino bf16", 0.70, "certified", 0.0, 0.97),
            row("openvino int8", 0.58, "certified", -0.36, 0.61),
            row("onnx int8", 0.55, "not_proven", 1.2, 3.4),
        ],
        "evidence": "openvino in int8, batches of 1: 0.51 ms in 30 layers of a call of 0.58 ms, 90% of it convolutions "
        "and matrix products; int8 kernels: 100% of the time of convolutions and matrix products",
        "notes": ["onnx int8 would need 2,000 images"],
    }


def make_sources(classes: Sequence[str], measured: Measured | None = None, **changes: Any) -> Sources:
    """A finished run with these classes, and the answers if there are any."""
    metrics = {"num_images": 360, "top1": 0.8, "top1_low": 0.7556, "top1_high": 0.8381}
    manifest = {
        "architecture": {"name": "fast_cnn", "num_classes": len(classes), "in_channels": 3, "size": 32},
        "classes": list(classes),
        "task": "single_label",
        "precision": "bf16",
        "runtime": "eager",
        "metrics": {"val": {**metrics, "top1": 0.825, "top1_low": 0.7823, "top1_high": 0.8608}, "test": metrics},
        "recipe": {"name": "fast", "epochs": 6, "optimizer": {"lr": 0.1}},
        "environment": {"cpu": "a processor", "num_cpus": 2, "versions": {"torch": "2.11"}},
        "data": {"name": "photos", "num_train": 1200, "fingerprint": "ab" * 32},
        "files": {"model.safetensors": {"bytes": 4_600_000, "sha256": "cd" * 32}},
    }
    curves = [
        {
            "epoch": str(n),
            "lr": str(0.1 / n),
            "train_loss": str(2 / n),
            "train_top1": str(1 - 1 / n),
            "val_loss": str(3 / n),
            "val_top1": str(1 - 1 / (n + 1)),
        }
        for n in range(1, 7)
    ]
    values: dict[str, Any] = {
        "name": "photos-fast",
        "place": "runs/photos-fast",
        "manifest": manifest,
        "run": {"data": manifest["data"], "contract": {"within_seconds": 60.0, "target": 0.7}},
        "result": {
            "within_seconds": 60.0,
            "total_seconds": 59.1,
            "train_seconds": 44.0,
            "epochs": 6.0,
            "target_reached": True,
            "target_seconds": 30.5,
            "warnings": ["left out 2 of 1,300 images"],
        },
        "tuned": {"execution": {"precision": "bf16", "compile": False, "threads": 2}, "trials": []},
        "curves": curves,
        "findings": [("quarantine", "the image is damaged: a/b.jpg", 2), ("warning", "duplicate images: c, d", 2)],
        "is_run": True,
        "answers": None if measured is None else answers_of(measured, classes, temperature=0.6),
    }
    return Sources(**{**values, **changes})


def make_versus(classes: Sequence[str], **changes: Any) -> Versus:
    """Two runs on the same 100 images, of which the second has more right."""
    first, second = (make_measured(len(classes), 100, right=right, seed=seed) for right, seed in ((0.6, 0), (0.9, 1)))
    verdict = Verdict(
        data="photos", split="test", num_images=100, num_left_out=0, difference=0.3, low=0.2, high=0.4, p_value=1e-5,
        better="B",
    )  # fmt: skip
    sources = make_sources(classes)
    return versus_of(
        dataclasses.replace(verdict, **changes),
        classes,
        (first, second),
        (page_of(sources), page_of(sources)),
        ("runs/one", "runs/other"),
        (sources.curves, sources.curves),
        ((0.6, 0.5, 0.7), (0.9, 0.83, 0.95)),
    )
