"""Whether this folder is whole and answers here as it did where it was made: python selftest.py

Every file's SHA-256, then every golden image: its pixels to the last bit, its probabilities within the tolerance, its
first class. A line each; exit status 0 if all is well, 1 if not, 2 if the model can't be loaded.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from classifier import HERE, Classifier
from manifest import ClassifierError, FolderError, check_file, is_inside, read_manifest
from pixels import ImageError

GOLDEN = HERE / "golden"


def main() -> int:
    """Run all checks; the exit status."""
    try:
        manifest = read_manifest(HERE)
        damaged = _check_files(manifest["files"])
        # what is damaged was told; what it answers is told all the same
        model = Classifier(HERE, verify=False)
        goldens = json.loads((GOLDEN / "golden.json").read_bytes())
        images, tolerance = _read_goldens(goldens, len(model.classes))
    except (ClassifierError, OSError, ValueError, RecursionError) as error:
        print(f"FAILED {error}")
        return 2
    failed = sum(not _check_golden(model, image, tolerance) for image in images)
    count = len(images)
    where = f"{manifest['runtime']} {manifest['precision']}"
    print(f"{'FAILED' if damaged or failed else 'ok'}: {where}, {count - failed} of {count} goldens, {damaged} damaged")
    return 1 if damaged or failed else 0


def _read_goldens(goldens: Any, num_classes: int) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """The images of golden.json, and how far answers may be from its own. Raises FolderError."""
    try:
        images, tolerance = goldens["images"], goldens["tolerance"]
        right = all(is_inside(image[key]) for image in images for key in ("file", "pixels")) and bool(images)
        for image in images:
            right &= all(np.array(image[key], float).shape == (num_classes,) for key in ("deployed", "pytorch"))
        right &= all(tolerance[key] is None or 0 <= tolerance[key] <= 1 for key in ("deployed", "pytorch"))
    except (TypeError, KeyError, ValueError, AttributeError):
        right = False
    if not right:
        raise FolderError(f"{GOLDEN / 'golden.json'} is wrong. Do not use the folder, or restore it from a copy.")
    return images, tolerance


def _check_files(files: dict[str, Any]) -> int:
    """How many files are damaged; a line for each, or one for all."""
    damaged = 0
    for name in files:
        try:
            check_file(HERE, name, files)
        except FolderError as error:
            damaged += 1
            print(f"FAILED {error}")
    if not damaged:
        print(f"ok     {len(files)} files have the SHA-256 that model.json tells")
    return damaged


def _check_golden(model: Classifier, image: dict[str, Any], tolerance: dict[str, float | None]) -> bool:
    path = GOLDEN / image["file"]
    try:
        found = model.pixels(path)
        expected = np.frombuffer((GOLDEN / image["pixels"]).read_bytes(), found.dtype).reshape(found.shape)
        probs_K = model.probs(found[None])[0]
    except (ImageError, ClassifierError, OSError, ValueError) as error:
        print(f"FAILED {path.name}: {error}")
        return False
    apart = float(np.abs(found.astype(float) - expected).max())
    deployed, pytorch = np.array(image["deployed"]), np.array(image["pytorch"])
    from_deployed, from_pytorch = (float(np.abs(probs_K - other).max()) for other in (deployed, pytorch))
    allowed, allowed_pytorch = tolerance["deployed"] or 0.0, tolerance["pytorch"]
    # where two classes are as likely as each other, which of them comes first is a matter of rounding
    same = bool(deployed.max() - deployed[probs_K.argmax()] <= allowed)
    if model.thresholds is not None:
        limits = np.array(model.thresholds)
        same = bool((((probs_K >= limits) == (deployed >= limits)) | (np.abs(deployed - limits) <= allowed)).all())
    within = from_deployed <= allowed and (allowed_pytorch is None or from_pytorch <= allowed_pytorch)
    ok = apart == 0 and same and within
    scale = " of 255" if found.dtype == np.uint8 else ""
    pixels = "pixels exact" if apart == 0 else f"PIXELS DIFFER by up to {apart:g}{scale}"
    answer = ", ".join(f"{label} {probability:.4f}" for label, probability in model.ranked(probs_K, 1)) or "no label"
    print(
        f"{'ok    ' if ok else 'FAILED'} {path.name}: {answer}{'' if same else ' IS ANOTHER CLASS'}, "
        f"{pixels}, probabilities within {from_deployed:.1e} of the recorded ones ({allowed:g} is allowed), "
        f"{from_pytorch:.1e} of PyTorch's"
    )
    return ok


if __name__ == "__main__":
    sys.exit(main())
