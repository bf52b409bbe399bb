"""What a model file says of itself: its classes and its preprocessing, so that a copy without its folder still knows.

ONNX has them as metadata_props, OpenVINO as rt_info under "vivace"; each value is JSON in ASCII, which any class name
fits. Both name their tensors "images" and "probs".
"""

from __future__ import annotations

import json
from typing import Any

from vivace.bundle import Bundle
from vivace.config import to_dict
from vivace.runtimes.table import INPUT, OUTPUT

__all__ = ["DESCRIBED", "DESCRIBED_SETS", "NAMESPACE", "description"]

NAMESPACE = "vivace"
DESCRIBED = ("model", "classes", "preprocess", "input", "output")
# of sets of labels
DESCRIBED_SETS = ("task", "thresholds")


def description(bundle: Bundle) -> dict[str, str]:
    """Key → JSON: model, classes in the order of the probabilities, preprocess, input and output."""
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    told: dict[str, Any] = {
        "model": bundle.info.architecture.name,
        "classes": list(bundle.classes),
        "preprocess": to_dict(bundle.preprocess),
        "input": {"name": INPUT, "dtype": bundle.preprocess.dtype, "shape": ["N", size, size, channels]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["N", len(bundle.classes)], "what": "probabilities"},
    }
    if bundle.info.multi_label:
        told |= {"task": bundle.info.task, "thresholds": list(bundle.info.thresholds)}
    return {key: json.dumps(value, ensure_ascii=True) for key, value in told.items()}
