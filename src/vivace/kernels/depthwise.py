"""Depthwise convolutions on a CPU: those of a network, and both of their gradients, by kernels of our own.

torch's gradients of a depthwise convolution take many times as long as the convolution itself. Shapes: x_BCHW the
input, g_BCHW the gradient of the output, both bf16 or both float32, channels_last; weight [C, 1, KH, KW].
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vivace.errors import KernelError
from vivace.kernels.build import load_library, say_unused
from vivace.kernels.call import Kernel

__all__ = ["Depthwise", "Padding", "depthwise", "restore", "swap"]

# the longest filter whose loops are unrolled
MAX_SIDE = 7
STRIDES = (1, 2)
DTYPES = (torch.float32, torch.bfloat16)
# zeros above, below, left and right of a map
Padding = tuple[int, int, int, int]


class Depthwise:
    """The kernels: filters of at most 7 × 7, stride 1 or 2, any padding, no dilation. What they give is channels_last.

    Weights are not rounded, sums are taken in float32 in an order that depends neither on the run nor on the number of
    threads.
    """

    def __init__(self, folder: Path) -> None:
        """Raises KernelError where they can't be built into `folder`."""
        convolutions, gradients = load_library("depthwise", folder), load_library("depthwise_gradients", folder)
        sizes = "N H W C out_h out_w kernel_h kernel_w stride top left is_bf16"
        self._convolve = Kernel(convolutions, "convolve", pointers="x weights bias out", sizes=sizes)
        self._input_gradient = Kernel(convolutions, "input_gradient", pointers="g weights out", sizes=sizes)
        self._weight_gradient = Kernel(gradients, "weight_gradient", pointers="x g out", sizes=sizes)

    def convolve(self, x_BCHW: Tensor, weight: Tensor, bias_C: Tensor | None, stride: int, padding: Padding) -> Tensor:
        """The convolution, in the dtype of x."""
        x_BCHW = _channels_last(x_BCHW)
        out = _empty_output(x_BCHW, weight, stride, padding)
        bias_C = None if bias_C is None else bias_C.float().contiguous()
        sizes = _sizes(x_BCHW.shape, out, weight, stride, padding)
        self._convolve(x=x_BCHW, weights=_by_tap(weight), bias=bias_C, out=out, **sizes)
        return out

    def input_gradient(
        self, g_BCHW: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: Padding
    ) -> Tensor:
        """The gradient of x, which has this shape, in the dtype of g."""
        g_BCHW = _channels_last(g_BCHW)
        out = g_BCHW.new_empty(shape).contiguous(memory_format=torch.channels_last)
        self._input_gradient(
            g=g_BCHW, weights=_by_tap(weight), out=out, **_sizes(shape, g_BCHW, weight, stride, padding)
        )
        return out

    def weight_gradient(self, x_BCHW: Tensor, g_BCHW: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
        """float32 [C, 1, KH, KW]: the gradient of the weights."""
        x_BCHW, g_BCHW = _channels_last(x_BCHW), _channels_last(g_BCHW)
        height, width = weight.shape[2:]
        out_TC = torch.empty(height * width, len(weight))
        self._weight_gradient(x=x_BCHW, g=g_BCHW, out=out_TC, **_sizes(x_BCHW.shape, g_BCHW, weight, stride, padding))
        return out_TC.t().reshape(weight.shape)


@functools.cache
def depthwise(folder: Path) -> Depthwise | None:
    """The kernels, kept in `folder`; None where they can't be built, which is said once on stderr."""
    try:
        return Depthwise(folder)
    except KernelError as error:
        say_unused("depthwise", error)
        return None


def swap(model: nn.Module, folder: Path) -> list[str]:
    """Let depthwise convolutions of `model` use the kernels, kept in `folder`; returns the names of these modules.

    Each gets a subclass of its class, in place: parameters, keys of the state dict and hooks stay as they are. What the
    kernels do not do (on a GPU, in fp16, channels not last, while a graph is exported or compiled …) is done as before.
    Empty where they can't be built.
    """
    if depthwise(folder) is None:
        return []
    names = [name for name, module in model.named_modules() if _is_depthwise(module)]
    for name in names:
        module = model.get_submodule(name)
        kind: Any = type(module)
        _set_class(module, _swapped_class(kind, str(folder)))
    return names


def restore(model: nn.Module) -> None:
    """Undo `swap`."""
    for module in model.modules():
        if isinstance(module, _DepthwiseForward):
            _set_class(module, module.replaced_class)


def _set_class(module: nn.Module, kind: type) -> None:
    object.__setattr__(module, "__class__", kind)


if TYPE_CHECKING:
    _Conv2d = nn.Conv2d
else:
    _Conv2d = object


class _DepthwiseForward(_Conv2d):
    """Comes before a class of convolutions in a subclass of it, see `swap`."""

    replaced_class: type[nn.Conv2d]
    kernels: str

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Its convolution."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCHW.dtype
        if _takes(self, x_BCHW, dtype):
            padding = _padding(self, x_BCHW, is_same=_is_same(self.replaced_class))
            # what torch refuses, it shall refuse in its own words
            if min(_out_sides(x_BCHW, self.weight, self.stride[0], padding)) > 0:
                taken: Tensor = torch.ops.vivace.depthwise(
                    x_BCHW.to(dtype), self.weight, self.bias, self.stride[0], list(padding), self.kernels
                )
                return taken
        out: Tensor = super().forward(x_BCHW)
        return out


@functools.cache
def _swapped_class(replaced: type[nn.Conv2d], folder: str) -> type[nn.Conv2d]:
    fields = {"replaced_class": replaced, "kernels": folder, "__module__": __name__}
    return type(f"Depthwise{replaced.__name__}", (_DepthwiseForward, replaced), fields)


def _is_same(replaced: type) -> bool:
    """Whether it is timm's convolution whose padding depends on the size of the map, as in TensorFlow."""
    return replaced.__name__ == "Conv2dSame" and replaced.__module__.partition(".")[0] == "timm"


def _is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or isinstance(module, _DepthwiseForward):
        return False
    return (
        # other classes may do more than convolve
        (type(module) is nn.Conv2d or _is_same(type(module)))
        and "forward" not in vars(module)
        and module.groups == module.in_channels == module.out_channels > 1
        and module.stride[0] == module.stride[1]
        and module.stride[0] in STRIDES
        and all(side % 2 and side <= MAX_SIDE for side in module.kernel_size)
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
    )


def _takes(module: nn.Conv2d, x_BCHW: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels convolve this, in `dtype`."""
    return (
        x_BCHW.device.type == "cpu"
        and module.weight.device.type == "cpu"
        and x_BCHW.ndim == 4
        and x_BCHW.shape[1] == module.in_channels
        and x_BCHW.numel() > 0
        and x_BCHW.is_contiguous(memory_format=torch.channels_last)
        and {dtype, x_BCHW.dtype, module.weight.dtype} <= set(DTYPES)
        and (torch.is_autocast_enabled("cpu") or module.weight.dtype == x_BCHW.dtype)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def _padding(module: nn.Conv2d, x_BCHW: Tensor, *, is_same: bool) -> Padding:
    if is_same:
        # as many outputs as there are steps; where zeros are odd in number, one more follows than precedes
        sides = zip(x_BCHW.shape[2:], module.kernel_size, module.stride, strict=True)
        zeros = [max(-(-side // stride) * stride - stride + kernel - side, 0) for side, kernel, stride in sides]
        return zeros[0] // 2, zeros[0] - zeros[0] // 2, zeros[1] // 2, zeros[1] - zeros[1] // 2
    if isinstance(module.padding, str):
        down, across = (side // 2 if module.padding == "same" else 0 for side in module.kernel_size)
    else:
        down, across = module.padding
    return down, down, across, across


def _out_sides(x_BCHW: Tensor, weight: Tensor, stride: int, padding: Padding) -> tuple[int, int]:
    top, bottom, left, right = padding
    height, width = x_BCHW.shape[2:]
    return (
        (height + top + bottom - weight.shape[2]) // stride + 1,
        (width + left + right - weight.shape[3]) // stride + 1,
    )


def _empty_output(x_BCHW: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
    sides = _out_sides(x_BCHW, weight, stride, padding)
    return torch.empty(
        (*x_BCHW.shape[:2], *sides), dtype=x_BCHW.dtype, device=x_BCHW.device, memory_format=torch.channels_last
    )


def _channels_last(maps_BCHW: Tensor) -> Tensor:
    return maps_BCHW.contiguous(memory_format=torch.channels_last)


def _by_tap(weight: Tensor) -> Tensor:
    """float32 [KH · KW, C]."""
    return weight.float().reshape(len(weight), -1).t().contiguous()


def _sizes(shape: torch.Size, out_BCHW: Tensor, weight: Tensor, stride: int, padding: Padding) -> dict[str, int]:
    """Fields of the structs; `shape` is that of x."""
    names = ("N", "C", "H", "W", "out_h", "out_w", "kernel_h", "kernel_w")
    sizes = dict(zip(names, itertools.chain(shape, out_BCHW.shape[2:], weight.shape[2:]), strict=True))
    is_bf16 = int(out_BCHW.dtype == torch.bfloat16)
    return {**sizes, "stride": stride, "top": padding[0], "left": padding[2], "is_bf16": is_bf16}


def _kernels(folder: str) -> Depthwise:
    found = depthwise(Path(folder))
    if found is None:
        raise KernelError(f"the depthwise kernels can't be built in {folder}. Run `vivace doctor`, which says why.")
    return found


@torch.library.custom_op(
    "vivace::depthwise",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int stride, int[] padding, str folder) -> Tensor",
)
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int], folder: str) -> Tensor:
    return _kernels(folder).convolve(x, weight, bias, stride, _as_padding(padding))


@torch.library.custom_op(
    "vivace::depthwise_backward",
    mutates_args=(),
    schema="(Tensor g, Tensor x, Tensor weight, int stride, int[] padding, bool[] needs, str folder) -> Tensor[]",
)
def _backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], needs: list[bool], folder: str
) -> list[Tensor]:
    """The gradients that are needed, of x and of the weight: one, two or none."""
    kernels, zeros = _kernels(folder), _as_padding(padding)
    found = [kernels.input_gradient(g, weight, x.shape, stride, zeros)] if needs[0] else []
    if needs[1]:
        found.append(kernels.weight_gradient(x, g, weight, stride, zeros).to(weight.dtype))
    return found


def _as_padding(padding: list[int]) -> Padding:
    top, bottom, left, right = padding
    return top, bottom, left, right


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int], folder: str) -> Tensor:
    return _empty_output(x, weight, stride, _as_padding(padding))


@_backward.register_fake
def _(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], needs: list[bool], folder: str
) -> list[Tensor]:
    of_x = [torch.empty_like(x, memory_format=torch.channels_last)] if needs[0] else []
    return of_x + ([torch.empty_like(weight, memory_format=torch.contiguous_format)] if needs[1] else [])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.stride, ctx.padding, ctx.folder = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    found = iter(torch.ops.vivace.depthwise_backward(g, x, weight, ctx.stride, ctx.padding, needs, ctx.folder))
    of_x, of_weight = (next(found) if needed else None for needed in needs)
    of_bias = g.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
    return of_x, of_weight, of_bias, None, None, None


_convolve.register_autograd(_gradients, setup_context=_keep)
