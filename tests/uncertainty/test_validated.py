"""What a bundle says of its answers to validation images: counted once, read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vivace.errors import BundleError
from vivace.uncertainty.validated import EDGES, VALIDATED, Validated, write_validated


def found() -> Validated:
    probs_NK = np.array([[0.9, 0.1], [0.25, 0.75], [0.05, 0.95], [0.0, 1.0]], np.float32)
    return Validated.of(probs_NK, variant="eager fp32", images="validation images")


def test_it_counts_classes_and_confidences_and_is_read_back(tmp_path: Path) -> None:
    one = found()
    assert (one.class_counts, one.num_images) == ((1, 3), 4)
    assert one.mean_confidence == pytest.approx(0.9)
    below = dict(zip(EDGES, one.below_counts, strict=True))
    # 0.95 as float32 is below 0.95
    assert (below[0.7], below[0.8], below[0.95], below[0.98], below[0.999]) == (0, 1, 3, 3, 3)
    write_validated(tmp_path, one)
    assert Validated.read(tmp_path / VALIDATED, 2) == one
    with pytest.raises(BundleError, match=r"got '2', expected 3 class_counts"):
        Validated.read(tmp_path / VALIDATED, 3)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("class_counts", [4, -1], "counts from 0"),
        ("class_counts", [0, 0], "images from 1"),
        ("class_counts", [2, 3], "confidence_counts of 5 images"),
        ("class_counts", "4", "class_counts"),
        ("edges", [0.5], "2 confidence_counts"),
        ("edges", sorted(EDGES, reverse=True), "ascending"),
        ("confidence_counts", [4], "15 confidence_counts"),
        ("mean_confidence", 1.5, "mean_confidence"),
        ("images", "a\x1b[2Jb", "text"),
        ("schema_version", 2, "a newer vivace"),
        ("more", 1, "more"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, field: str, value: Any, says: str) -> None:
    write_validated(tmp_path, found())
    path = tmp_path / VALIDATED
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(BundleError, match=says) as raised:
        Validated.read(path, 2)
    assert "\n" not in str(raised.value)
