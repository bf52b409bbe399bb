"""Weight gradients of 3×3 convolutions by the matrix unit (AMX) of a CPU.

Shapes: x_BCHW the input of a convolution, g_BKHW the gradient of its output, both bf16.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vivace.errors import KernelError
from vivace.hardware import cpu_features
from vivace.kernels.build import load_library, say_unused
from vivace.kernels.call import Kernel

__all__ = ["WeightGradient", "is_faster", "weight_gradient"]

# (x_BCHW, g_BKHW) → float32 [K, C, 3, 3]
WeightGradient = Callable[[Tensor, Tensor], Tensor]

# what a tile holds: 32 images, 16 channels
IMAGES, CHANNELS = 32, 16
# minimum fraction of the tiles' image slots that hold an image
MIN_FILLED = 0.75
# pixels for each channel from which on the products outweigh the sums, which are as many whatever the size of the maps
MIN_PIXELS_PER_CHANNEL = 4


@functools.cache
def weight_gradient(folder: Path) -> WeightGradient | None:
    """What gives the gradient of 3×3 weights for stride 1 and padding 1, by a kernel kept in `folder`.

    None on a machine without AMX, and where the kernel can't be built or the system does not let a process use AMX.
    Sums are taken in float32, in an order that depends on the number of threads alone.
    """
    if "amx_bf16" not in cpu_features():
        return None
    try:
        library = load_library("gradients", folder)
    except KernelError as error:
        say_unused("gradients", error)
        return None
    if not library.usable():
        return None
    kernel = Kernel(library, "weight_gradient", pointers="x g out", sizes="N H W C K")

    def gradient(x_BCHW: Tensor, g_BKHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        g_BKHW = g_BKHW.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x_BCHW.shape
        out_K33C = torch.empty(g_BKHW.shape[1], 3, 3, channels)
        kernel(x=x_BCHW, g=g_BKHW, out=out_K33C, N=count, H=height, W=width, C=channels, K=g_BKHW.shape[1])
        return out_K33C.permute(0, 3, 1, 2)

    return gradient


def is_faster(x_BCHW: Tensor, num_filters: int) -> bool:
    """Whether the kernel is faster than what torch has, by timings on maps of 1 to 112 px with 6 to 512 channels."""
    count, channels, height, width = x_BCHW.shape
    filled = count / (IMAGES * math.ceil(count / IMAGES)) if count else 0.0
    return (
        filled >= MIN_FILLED
        and min(channels, num_filters) >= CHANNELS
        and count * height * width >= MIN_PIXELS_PER_CHANNEL * math.sqrt(channels * num_filters)
    )
