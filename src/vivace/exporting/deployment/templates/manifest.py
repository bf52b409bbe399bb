"""What model.json says, taken at its word in nothing: whoever changes it can seal it again.

So nothing in it names a file outside this folder, a setting that makes a runtime write files, or more memory than
images of this size need; and what is printed of it fits on a line.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from image_decoder.decode import shown

__all__ = ["GRAPHS", "ClassifierError", "FolderError", "check_file", "is_inside", "read_manifest"]

MANIFEST = "model.json"
GRAPHS = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}
FITS = ("crop", "squash", "pad")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
HINTS = ("f32", "bf16", "f16")
PIXELS = ("uint8", "uint16", "float32")
MAX_BYTES, MAX_SIDE, MAX_CLASSES, MAX_PIXELS = 64 << 20, 4096, 1_000_000, 2_000_000_000
MAX_CHANNELS = 256
METHODS, MAX_RATES, MAX_NUMBER = ("lac", "aps", "raps"), 100, 1e9
SHA256 = re.compile("[0-9a-f]{64}")


class ClassifierError(Exception):
    """Base of every error raised here on purpose; a message is the cause, the value received, how to fix it."""


class FolderError(ClassifierError):
    """This folder is damaged, or a library that it needs is not installed."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What model.json says, after its own SHA-256 and every field were checked. Raises FolderError."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        manifest = json.loads(text)
        expected = manifest.pop("sha256")
        plain = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise FolderError(f"{path} can't be read ({shown(str(error))}). Restore the folder from a copy.") from None
    if hashlib.sha256(plain.encode()).hexdigest() != expected:
        raise FolderError(f"{path} was changed after it was written: its SHA-256 is wrong. Restore it from a copy.")
    if manifest.get("schema_version") != 1 or manifest.get("runtime") not in tuple(GRAPHS):
        raise FolderError(f"{path} is of another version than classifier.py. Take both from one folder.")
    for what, right in _checks(manifest):
        if not right:
            raise FolderError(f"{path} is wrong in {what}. Do not use the folder, or restore it from a copy.")
    return dict(manifest)


def _checks(manifest: dict[str, Any]) -> list[tuple[str, bool]]:
    classes, preprocess, files = (manifest.get(key) for key in ("classes", "preprocess", "files"))
    precision, settings = manifest.get("precision"), manifest.get("settings")
    return [
        ("classes", isinstance(classes, list) and 0 < len(classes) <= MAX_CLASSES and _are_names(classes)),
        ("task", "task" not in manifest or _is_task(manifest["task"], manifest.get("thresholds"), classes)),
        ("uncertainty", "uncertainty" not in manifest or _is_uncertainty(manifest["uncertainty"])),
        ("precision", isinstance(precision, str) and precision.isprintable() and len(precision) <= 20),
        ("settings", isinstance(settings, dict) and all(_is_setting(*setting) for setting in settings.items())),
        ("files", isinstance(files, dict) and all(_is_file(*facts) for facts in files.items())),
        ("files", isinstance(files, dict) and all(name in files for name in GRAPHS[manifest["runtime"]])),
        ("preprocess", isinstance(preprocess, dict) and _is_preprocess(preprocess)),
    ]


def _is_task(task: Any, thresholds: Any, classes: Any) -> bool:
    # sets of labels, with a threshold for each
    return (
        task == "multi_label"
        and isinstance(thresholds, list)
        and isinstance(classes, list)
        and len(thresholds) == len(classes)
        and all(type(value) in (int, float) and 0 <= value <= 1 for value in thresholds)
    )


def _is_uncertainty(told: Any) -> bool:
    # thresholds for some rates each, and a score of unlike images
    if not isinstance(told, dict) or told.get("method") not in METHODS:
        return False
    ood, rates = told.get("ood", 0), [told.get(key) for key in ("coverage", "risk")]
    scored = isinstance(ood, dict) and ood.get("score") == "entropy" and _is_number(ood.get("threshold"))
    return (
        all(_is_table(told.get(key)) for key in ("set_thresholds", "answered_from"))
        and all(_is_rate(rate) for rate in rates)
        and all(_is_number(told.get(key)) and 0 <= told[key] <= MAX_CLASSES for key in ("penalty", "free_ranks"))
        and (ood is None or scored)
    )


def _is_table(table: Any) -> bool:
    return isinstance(table, list) and 0 < len(table) <= MAX_RATES and all(_is_entry(entry) for entry in table)


def _is_entry(entry: Any) -> bool:
    is_pair = isinstance(entry, list) and len(entry) == 2 and _is_rate(entry[0])
    return is_pair and (entry[1] is None or _is_number(entry[1]))


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


def _is_number(value: Any) -> bool:
    # json reads NaN and Infinity
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def _are_names(classes: list[Any]) -> bool:
    return all(isinstance(name, str) for name in classes) and len(set(classes)) == len(classes)


def _is_setting(name: str, value: Any) -> bool:
    # others let OpenVINO write files where they say
    return name == "INFERENCE_PRECISION_HINT" and value in HINTS


def is_inside(name: Any) -> bool:
    """Whether a name is that of a file in this folder, or in a folder in it, on every system."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    return not any(part in ("", ".", "..") or set(part) & set("\\:") for part in name.split("/"))


def _is_file(name: str, facts: Any) -> bool:
    digest = facts.get("sha256") if isinstance(facts, dict) else None
    return is_inside(name) and isinstance(digest, str) and SHA256.fullmatch(digest) is not None


def _is_preprocess(preprocess: dict[str, Any]) -> bool:
    size, side, most = (preprocess.get(key, MAX_PIXELS) for key in ("size", "store_size", "max_pixels"))
    if not (type(size) is type(side) is type(most) is int and type(preprocess.get("channels")) is int):
        return False
    return (
        1 <= size <= side <= MAX_SIDE
        and 1 <= preprocess["channels"] <= MAX_CHANNELS
        and preprocess.get("pixels", "uint8") in PIXELS
        and 1 <= most <= MAX_PIXELS
        and preprocess.get("fit") in FITS
        and preprocess.get("interpolation") in INTERPOLATIONS
    )


def check_file(folder: Path, name: str, files: dict[str, Any]) -> None:
    """Raise FolderError unless the file is the one that model.json tells of."""
    path = folder / name
    try:
        # a pipe or a device would be read for ever
        if not path.is_file():
            raise FolderError(f"{path} is not there, or no file. Restore the folder from a copy.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FolderError(f"{path} can't be read ({error.strerror}). Restore the folder from a copy.") from None
    if found != files[name]["sha256"]:
        raise FolderError(f"{path} is damaged: its SHA-256 is not the recorded one. Restore it from a copy.")
