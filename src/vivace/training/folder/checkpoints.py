"""Checkpoints: one safetensors file each, written atomically, with a SHA-256, without pickle.

A checkpoint is a tree of dicts, lists, tuples, numbers, strings and tensors. The tensors are stored as tensors; the
rest of the tree is JSON in the metadata of the file, with a SHA-256 of version, tree and tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vivace.errors import CheckpointError, TrainingError
from vivace.files import atomic_file, remove_leftovers
from vivace.holes import check_solid

__all__ = ["CHECKPOINT_VERSION", "load_checkpoint", "load_newest", "prune", "remove_all", "save_checkpoint"]

CHECKPOINT_VERSION = 1
# of the tree without its tensors: enough for the rows of 100,000 validations
MAX_TREE_CHARACTERS = 2**25


def save_checkpoint(path: Path, tree: Mapping[str, Any]) -> None:
    """Write `tree` to `path`; an existing file stays intact until the new one is on the disk.

    Raises TrainingError if it can't be written (a full disk, say); the previous checkpoints are intact.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_split(tree, tensors))
    version = str(CHECKPOINT_VERSION)
    metadata = {
        "format": "vivace-checkpoint",
        "version": version,
        "tree": skeleton,
        "sha256": _digest(version, skeleton, tensors),
    }
    try:
        with atomic_file(path) as file:
            file.write(to_safetensors(tensors, metadata))
    except OSError as error:
        is_first = not any(path.parent.glob("step-*.safetensors"))
        before = "It is the first one: nothing is saved yet" if is_first else "The previous one is whole"
        raise TrainingError(
            f"the checkpoint could not be written: {path} ({error.strerror}). {before}: "
            f"free some space and go on with `resume=True`{', which begins anew' if is_first else ''}."
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The tree that was saved, tensors on the CPU. Raises CheckpointError if it is damaged or no checkpoint."""
    try:
        # reading a pipe could block, and a sparse file could be endless
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("no regular file")
        with path.open("rb") as opened:
            check_solid(opened.fileno())
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint can't be read: {path} ({error}). Resume from an older one.") from None
    if metadata.get("format") != "vivace-checkpoint" or "tree" not in metadata:
        raise CheckpointError(f"not a checkpoint: {path}. Give one that 'vivace train' wrote.")
    version = metadata.get("version", "")
    # the hash first: a flipped bit must not look like another version
    if _digest(version, metadata["tree"], tensors) != metadata.get("sha256"):
        raise CheckpointError(f"the checkpoint is damaged: {path}, its SHA-256 is wrong. Resume from an older one.")
    if re.fullmatch(r"[1-9][0-9]{0,8}", version) is None:
        raise CheckpointError(f"the checkpoint has no version: {path} says {version!r:.40}. Resume from an older one.")
    if int(version) > CHECKPOINT_VERSION:
        raise CheckpointError(
            f"the checkpoint is newer: version {version}, this vivace reads up to {CHECKPOINT_VERSION}. "
            "Upgrade: pip install -U vivace."
        )
    try:
        if len(metadata["tree"]) > MAX_TREE_CHARACTERS:
            raise ValueError
        tree: dict[str, Any] = _join(json.loads(metadata["tree"]), tensors)
        tree.keys()
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        raise CheckpointError(f"the checkpoint makes no sense: {path}. Resume from an older one.") from None
    return tree


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, Path | None, list[str]]:
    """The newest intact checkpoint of a folder, its path, and a message for each newer one that was skipped."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            return load_checkpoint(path), path, damaged
        except CheckpointError as error:
            damaged.append(str(error))
    return None, None, damaged


def prune(folder: Path, newest: Path, *, keep: int = 2) -> None:
    """Keep `newest` and the one before it, `keep` in all, and remove partial files left by a crash.

    Checkpoints of later steps are removed too: they are damaged, or a run that went back to `newest` discarded them.
    """
    paths = sorted(folder.glob("step-*.safetensors"), reverse=True)
    kept = [path for path in paths if path <= newest][:keep]
    for path in paths:
        if path not in kept:
            path.unlink(missing_ok=True)
    remove_leftovers(folder, re.compile(r"(step-\d+|best|before|sound)\.safetensors"))


def remove_all(folder: Path) -> None:
    """Remove all checkpoints of a run, which starts again."""
    others = (folder / f"{name}.safetensors" for name in ("best", "before", "sound"))
    for path in (*folder.glob("step-*.safetensors"), *others):
        path.unlink(missing_ok=True)


def _digest(version: str, skeleton: str, tensors: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256(f"{version}\n{skeleton}".encode())
    for name in sorted(tensors):
        hasher.update(name.encode())
        tensor = tensors[name]
        hasher.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors`; dict keys keep their type, which plain JSON would lose."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        plain = value.detach().cpu()
        tensors[name] = plain.contiguous().clone() if plain.is_contiguous() else plain.contiguous()
        channels_last = plain.ndim == 4 and not plain.is_contiguous()
        return {"tensor": name, "channels_last": channels_last}
    if isinstance(value, Mapping):
        return {"dict": [[key, _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list):
        return {"list": [_split(item, tensors) for item in value]}
    if isinstance(value, tuple):
        return {"tuple": [_split(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint can't hold {type(value).__name__}: {value!r}")


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        # each tensor once: a forged file could request a thousand copies
        tensor = tensors.pop(value["tensor"])
        # some kernels sum in the order of the strides: bitwise resuming needs the same ones
        return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
    if "dict" in value:
        return {key: _join(item, tensors) for key, item in value["dict"]}
    if "list" in value:
        return [_join(item, tensors) for item in value["list"]]
    return tuple(_join(item, tensors) for item in value["tuple"])
