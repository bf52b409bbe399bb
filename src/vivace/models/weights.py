"""Starting weights from a local file: safetensors, or a `.pth` of plain tensors, never code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivace.errors import ModelError

__all__ = ["load_weights"]

# where common checkpoints keep the state dict, and what wrappers put before its keys
CONTAINERS = ("state_dict", "model", "model_state_dict", "model_ema", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")


def load_weights(model: nn.Module, path: str | Path, *, head: list[str] | None = None) -> list[str]:
    """Load a state dict into `model` in place and return the keys that were left out: a head of another size.

    head: names of the classifier's parameters, the only ones that may be left out. Raises ModelError naming the first
    key that is missing, foreign, or of another shape; for a file that is no plain state dict; never unpickles code.
    """
    weights = _unwrapped(_read(Path(path)), path)
    expected = model.state_dict()
    may_differ = set(head or ())
    left_out = [name for name in may_differ if name in weights and weights[name].shape != expected[name].shape]
    left_out += [name for name in may_differ if name not in weights]
    for name, tensor in expected.items():
        if name in left_out:
            continue
        found = weights.get(name)
        if found is None:
            raise ModelError(
                f"the weights do not fit: {path} lacks {name}. Give weights of this network, or another --model."
            )
        if found.shape != tensor.shape:
            raise ModelError(
                f"the weights do not fit: {name} in {path} is {tuple(found.shape)}, expected {tuple(tensor.shape)}. "
                "Give weights of this network, or another --model."
            )
    heads = _stems(may_differ)
    foreign = [name for name in weights if name not in expected and name.rpartition(".")[0] not in heads]
    if foreign:
        raise ModelError(
            f"the weights do not fit: {path} has {foreign[0]}, which the network has not. Give another --model."
        )
    model.load_state_dict({name: weights[name] for name in expected if name not in left_out}, strict=False)
    return sorted(left_out)


def _stems(names: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"the weights file was not found: {path}. Give a .safetensors or .pth file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the weights can't be read: {path} ({error}). Restore the file.") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"the weights hold more than tensors, which could run code: {path}. Save the plain state dict: "
            "torch.save(model.state_dict(), ...)."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the weights can't be read: {path} ({reason}). Restore the file.") from None


def _unwrapped(loaded: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without containers and prefixes."""
    for name in CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"no state dict was found in {path}. Save it by torch.save(model.state_dict(), ...).")
    weights = dict(loaded)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name[len(prefix) :]: value for name, value in weights.items()}
    return weights
