"""Starting weights from a local file: safetensors, or a `.pth` of plain tensors, never code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivace.errors import ModelError
from vivace.models.parts import head_parameters
from vivace.models.timm_models import fit_to_timm

__all__ = ["load_weights", "weights_file"]

# where common checkpoints keep the state dict (averaged weights first, as timm does), and prefixes that wrappers add
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")
# dtypes of a network's tensors, and of those that are converted to them
FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
DTYPES = FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
MAX_SHOWN = 120
# of the size of a file, the most that what it holds may have
MAX_INFLATED = 4


def load_weights(model: nn.Module, path: str | Path, *, head: list[str] | None = None) -> list[str]:
    """Load a state dict into `model` in place and return the keys that were left out: a head of another size, sorted.

    path: a .safetensors or .pth file, or the folder of a bundle, or of a run that has one.
    head: names of the classifier's parameters, the only ones that may be left out; None: `head_parameters(model)`.
    Understands the wrappers of common checkpoints, and converts what timm converts for its networks (number of
    channels, input size). fp16 and bf16 are converted to fp32. Raises ModelError, and leaves the network as it was, for
    a file that is no plain state dict, and naming the first key that is missing, foreign, not finite, or of another
    shape or dtype.
    """
    path = weights_file(path)
    expected = model.state_dict()
    weights = _unwrapped(_read(path), expected, path)
    if any(name not in weights or weights[name].shape != tensor.shape for name, tensor in expected.items()):
        weights = fit_to_timm(model, weights)
    modules = {name.rpartition(".")[0] for name in (head_parameters(model) if head is None else head)}
    of_head = [name for name in expected if name.rpartition(".")[0] in modules]
    # the head is loaded completely or not at all
    fits = all(name in weights and weights[name].shape == expected[name].shape for name in of_head)
    left_out = set() if fits else set(of_head)
    chosen: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        if name in left_out:
            continue
        found = weights.get(name)
        if found is None and name.endswith("num_batches_tracked"):
            # older files lack this counter, which nothing reads
            found = tensor
        _check(name, found, tensor, path)
        assert found is not None
        chosen[name] = found
    foreign = [name for name in weights if name not in expected and name.rpartition(".")[0] not in modules]
    if foreign:
        raise _unfit(f"{path} has {foreign[0]}, which the network lacks")
    model.load_state_dict(chosen, strict=False)
    return sorted(left_out)


def weights_file(path: str | Path) -> Path:
    """The weights within a bundle's folder, or a run's; any other path as it is."""
    path = Path(path)
    within = (path / "model.safetensors", path / "bundle" / "model.safetensors")
    return next((file for file in within if path.is_dir() and file.is_file()), path)


def _strange(value: Any) -> str | None:
    """What something in a state dict is, if it is no plain tensor in memory; None if it is one."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    # checked in this order: some of these tensors do not even have a shape
    if value.is_nested:
        return "a nested tensor"
    if value.is_quantized:
        return "a quantized tensor"
    if value.layout != torch.strided:
        return f"a tensor of layout {str(value.layout).removeprefix('torch.')}"
    if value.device.type != "cpu":
        return f"a tensor on the device {value.device.type}, which holds no numbers here"
    return None if value.dtype in DTYPES else f"a tensor of {_dtype(value)}"


def _check(name: str, found: Tensor | None, expected: Tensor, path: Path) -> None:
    if found is None:
        raise _unfit(f"{path} lacks {name}")
    if found.shape != expected.shape:
        raise _unfit(f"{name} in {path} is {tuple(found.shape)}, expected {tuple(expected.shape)}")
    converts = found.is_floating_point() and torch.promote_types(found.dtype, expected.dtype) == expected.dtype
    if found.dtype != expected.dtype and not converts:
        raise _unfit(f"{name} in {path} is {_dtype(found)}, expected {_dtype(expected)}")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise ModelError(f"the weights hold NaN or Inf: {name} in {path}. Give weights of a run that did not diverge.")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _unfit(cause: str) -> ModelError:
    return ModelError(f"the weights do not fit: {cause}. Give weights of this network, or another `model.name`.")


def _read(path: Path) -> Any:
    """What the file holds, on the CPU."""
    if not path.is_file():
        problem = "file was not found" if not path.exists() else "are in no regular file"
        raise ModelError(f"the weights {problem}: {path}. Give a .safetensors or .pth file, or a bundle's folder.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError) as error:
            raise _unreadable(path, error) from None
    _check_stored(path)
    try:
        with warnings.catch_warnings():
            # about pickles of another protocol: either it is read, or refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # damaged files raise this too; only refused types are reported as such
        refused = re.search(r"(?:GLOBAL|Unsupported class) ([A-Za-z_]\w*(?:\.\w+)*)(?![\w.])", str(error))
        if refused is None:
            raise _unreadable(path, error) from None
        raise ModelError(
            f"the weights hold more than tensors, which could run code: {path} asks for "
            f"{refused[1]}. Save the plain state dict: torch.save(model.state_dict(), ...)."
        ) from None
    except Exception as error:
        # bytes that are no checkpoint can raise anything
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split()).split(". ")[0][:120]
    return ModelError(
        f"the weights can't be read: {path} ({type(error).__name__}: {reason}). "
        "Give a .safetensors file, or a state dict that torch.save wrote."
    )


def _unwrapped(loaded: Any, expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without containers and prefixes."""
    for name in CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping) and name not in expected:
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"no state dict was found in {path}. Save it by torch.save(model.state_dict(), ...).")
    for name, value in loaded.items():
        if reason := _strange(value):
            raise ModelError(
                f"no state dict was found in {path}: {str(name)[:MAX_SHOWN]} is {reason}, expected a plain tensor. "
                "Save it by torch.save(model.state_dict(), ...)."
            )
    weights = {str(name): value for name, value in loaded.items()}
    while True:
        # wrappers may be nested; a network whose own names start with a prefix keeps it
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None)
        if prefix is None or all(name.startswith(prefix) for name in expected):
            return weights
        weights = {name[len(prefix) :]: value for name, value in weights.items()}


def _check_stored(path: Path) -> None:
    """Raise ModelError for an archive that inflates: torch stores its tensors as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # no archive: torch says what it is
        return
    size = path.stat().st_size
    if inflated > MAX_INFLATED * size:
        raise ModelError(
            f"the weights are compressed, which torch never does: {path} has {size:,} bytes and becomes {inflated:,}. "
            "Save them by torch.save, or as safetensors."
        )
