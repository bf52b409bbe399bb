"""Limits on the size and cost of a network, checked on torch's meta device before any memory is allocated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.flop_counter import flop_registry

from vivace.errors import ModelError
from vivace.hardware import available_memory_bytes
from vivace.torch_private import DispatchMode
from vivace.trust import say_once

__all__ = ["blank_network", "check_forward"]

# the largest networks of timm: 7·10⁹ weights in 2,000 tensors, 6·10¹² operations for an image
MAX_PARAMETERS = 10**10
MAX_TENSORS = 5_000
MAX_OPERATIONS = 2 * 10**13
# of one tensor: ViT-L at 518 px and ResNet-152 at 1024 px have less than 0.2 GiB
LARGE_TENSOR_BYTES = 2**29
HOW_TO_FIX = "Give smaller arguments, or a smaller `size`."


def blank_network(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` gives, on the meta device: layers and shapes without values. Random numbers are left as they were.

    Raises ModelError as soon as it has more weights than MAX_PARAMETERS or than fit into this machine's memory, or
    more than MAX_TENSORS tensors; and what `build` raises.
    """
    state = torch.get_rng_state()
    try:
        with torch.device("meta"), _counted(name):
            return build()
    finally:
        torch.set_rng_state(state)


@contextmanager
def _counted(name: str) -> Iterator[None]:
    """Within, this thread's modules are counted as they are made."""
    thread, memory = threading.get_ident(), available_memory_bytes()
    tensors = values = num_bytes = 0

    def count(module: nn.Module, key: str, tensor: Any) -> None:
        nonlocal tensors, values, num_bytes
        if threading.get_ident() != thread or tensor is None:
            return
        tensors, values = tensors + 1, values + tensor.numel()
        num_bytes += tensor.numel() * tensor.element_size()
        if tensors > MAX_TENSORS:
            raise ModelError(f"{name} would have more than {MAX_TENSORS:,} tensors. {HOW_TO_FIX}")
        if values > MAX_PARAMETERS or (memory and num_bytes > memory):
            raise ModelError(
                f"{name} would have more than {values / 1e9:,.1f} · 10⁹ weights, {num_bytes / 2**30:,.0f} GiB: the "
                f"limit is {MAX_PARAMETERS / 1e9:.0f} · 10⁹ weights and the {memory / 2**30:,.0f} GiB of free memory "
                f"here. {HOW_TO_FIX}"
            )

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_forward(name: str, blank: nn.Module, in_channels: int, size: int) -> None:
    """Raises ModelError if an image of `size` px takes more than MAX_OPERATIONS or a tensor larger than memory.

    A network that fits but has a tensor of more than LARGE_TENSOR_BYTES for one image is reported once: a file of a few
    megabytes can need that, which is not obvious to someone who was given the file.
    blank: from `blank_network`; it is put into eval mode.
    """
    with _Costs(name, size) as costs:
        blank.eval()(torch.empty(1, in_channels, size, size, device="meta"))
    if costs.largest > LARGE_TENSOR_BYTES:
        say_once(
            f"{name} takes much memory: its largest tensor has {costs.largest / 2**30:,.1f} GiB for each image of "
            f"{size} px, and there are others beside it. A network for smaller images (`size`) takes less."
        )


class _Costs(DispatchMode):
    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self._name, self._size, self._operations = name, size, 0
        self.largest = 0
        """Bytes of the largest tensor so far."""
        self._memory = available_memory_bytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self._operations += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        num_bytes = out.numel() * out.element_size() if isinstance(out, torch.Tensor) else 0
        self.largest = max(self.largest, num_bytes)
        if self._operations > MAX_OPERATIONS:
            raise ModelError(
                f"{self._name} would take more than {MAX_OPERATIONS:.0e} operations for an image of {self._size} px. "
                f"{HOW_TO_FIX}"
            )
        # its input takes memory too
        if self._memory and num_bytes > self._memory // 2:
            raise ModelError(
                f"{self._name} would need a tensor of {num_bytes / 2**30:,.1f} GiB for an image of {self._size} px, "
                f"and {self._memory / 2**30:,.0f} GiB of memory are free here. {HOW_TO_FIX}"
            )
        return out
