"""Depthwise convolutions: torch's sums for any map, filter and padding, in place of a network's own and back again."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from whole_numbers import num_threads, whole_numbers

from vivace.errors import KernelError
from vivace.kernels import depthwise as module
from vivace.kernels.depthwise import Depthwise, Padding, depthwise, restore, swap

F = nn.functional


@pytest.fixture(scope="module")
def kernel(kernels: Path) -> Depthwise:
    found = depthwise(kernels)
    assert found is not None
    return found


def torch_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Padding, g: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradients of x and of the weight, in float64."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    top, bottom, left, right = padding
    padded = F.pad(x, (left, right, top, bottom))
    bias = None if bias is None else bias.double()
    out = F.conv2d(padded, weight, bias, stride, groups=x.shape[1])
    out.backward(torch.ones_like(out) if g is None else g.double())
    assert x.grad is not None
    assert weight.grad is not None
    return out.detach(), x.grad, weight.grad


# images, channels, height, width, filter's height and width, stride, zeros above, below, left and right: channels that
# fill no vector, one or several blocks; sides below and above a run of columns; filters larger than the map
CASES = [
    (1, 1, 1, 1, 3, 3, 1, (1, 1, 1, 1)),
    (1, 37, 7, 7, 5, 5, 1, (2, 2, 2, 2)),
    (2, 32, 14, 14, 3, 3, 1, (1, 1, 1, 1)),
    (3, 70, 5, 9, 7, 7, 1, (3, 3, 3, 3)),
    (2, 33, 3, 2, 7, 7, 1, (3, 3, 3, 3)),
    (2, 16, 13, 23, 3, 5, 1, (0, 0, 2, 2)),
    (2, 20, 11, 6, 1, 7, 1, (0, 0, 3, 3)),
    # TensorFlow's padding: nothing above and left, one row and column behind
    (2, 40, 14, 14, 3, 3, 2, (0, 1, 0, 1)),
    (2, 40, 14, 14, 5, 5, 2, (1, 2, 1, 2)),
    (2, 17, 15, 9, 5, 5, 2, (2, 2, 2, 2)),
    (2, 17, 8, 11, 7, 3, 2, (3, 2, 0, 1)),
    (19, 8, 6, 6, 3, 3, 2, (1, 1, 1, 1)),
    # the last rows and columns are seen by no filter
    (2, 24, 8, 8, 3, 3, 2, (0, 0, 0, 0)),
    (2, 24, 7, 6, 1, 1, 2, (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("count", "channels", "height", "width", "down", "across", "stride", "padding"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_torch_computes(
    kernel: Depthwise,
    count: int,
    channels: int,
    height: int,
    width: int,
    down: int,
    across: int,
    stride: int,
    padding: Padding,
    dtype: torch.dtype,
) -> None:
    x = whole_numbers(count, channels, height, width, dtype=dtype)
    weight = whole_numbers(channels, 1, down, across, seed=1, dtype=torch.float32)
    bias = whole_numbers(channels, 1, 1, 1, seed=2, dtype=torch.float32).flatten()
    out = kernel.convolve(x, weight, bias, stride, padding)
    g = whole_numbers(*out.shape, seed=3, dtype=dtype)
    exact, x_grad, weight_grad = torch_convolution(x, weight, bias, stride, padding, g)
    for threads in (1, 2, 5):
        with num_threads(threads):
            # in bf16 the sums are whole numbers that are rounded once
            assert torch.equal(kernel.convolve(x, weight, bias, stride, padding), exact.to(dtype))
            assert torch.equal(kernel.input_gradient(g, weight, x.shape, stride, padding), x_grad.to(dtype))
            assert torch.equal(kernel.weight_gradient(x, g, weight, stride, padding), weight_grad.float())
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == dtype


def test_sums_are_taken_in_float32_and_do_not_depend_on_the_run_or_its_threads(kernel: Depthwise) -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(35, 48, 14, 14, generator=generator).bfloat16() for _ in range(2))
    weight, padding = torch.randn(48, 1, 5, 5, generator=generator), (2, 2, 2, 2)

    def results(threads: int) -> list[Tensor]:
        with num_threads(threads):
            return [
                kernel.convolve(x.float(), weight, None, 1, padding),
                kernel.input_gradient(g.float(), weight, x.shape, 1, padding),
                kernel.weight_gradient(x, g, weight, 1, padding),
            ]

    first = results(1)
    for found, exact in zip(first, torch_convolution(x, weight, None, 1, padding, g), strict=True):
        assert float((found - exact).abs().max()) < 1e-6 * float(exact.abs().max())
    for threads in (1, 2, 2, 7):
        assert all(map(torch.equal, first, results(threads)))


def test_a_nan_stays_one_and_infinities_too(kernel: Depthwise) -> None:
    x = whole_numbers(2, 40, 6, 6)
    weight = torch.ones(40, 1, 3, 3)
    x[1, 3, 2, 2], x[0, 35, 0, 0] = float("nan"), float("inf")
    out = kernel.convolve(x, weight, None, 1, (1, 1, 1, 1))
    assert int(out.isnan().sum()) == 9
    assert int(out.isinf().sum()) == 4
    assert kernel.weight_gradient(x, torch.ones_like(x), weight, 1, (1, 1, 1, 1))[3].isnan().any()


class Block(nn.Module):
    """What surrounds depthwise convolutions in mobile networks; one of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(8, 40, 1, bias=False)
        self.norm = nn.BatchNorm2d(40)
        self.deep = nn.Conv2d(40, 40, 5, 2, 2, groups=40)
        self.same = nn.Conv2d(40, 40, 3, padding="same", groups=40, bias=False)
        # the kernels do not do these
        self.dilated = nn.Conv2d(40, 40, 3, padding=2, dilation=2, groups=40)
        self.grouped = nn.Conv2d(40, 40, 3, padding=1, groups=20)
        self.project = nn.Conv2d(40, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.expand(x)))
        x = self.same(F.silu(self.deep(x)))
        out: Tensor = self.project(self.grouped(self.dilated(x)))
        return out


def gradients_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of x and of the parameters."""
    x = x.detach().requires_grad_()
    out = model(x)
    found = torch.autograd.grad(out.float().square().sum(), [x, *model.parameters()])
    return [out.detach(), *found]


def test_a_network_learns_the_same_and_gets_its_own_back(kernels: Path) -> None:
    torch.manual_seed(0)
    model = Block().to(memory_format=torch.channels_last).eval()
    x = torch.randn(4, 8, 12, 12).contiguous(memory_format=torch.channels_last)
    before, keys = gradients_of(model, x), list(model.state_dict())
    seen: list[torch.Size] = []
    model.deep.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert swap(model, kernels) == ["deep", "same"]
    assert swap(model, kernels) == []
    assert isinstance(model.deep, nn.Conv2d)
    assert list(model.state_dict()) == keys
    found = gradients_of(model, x)
    for ours, theirs in zip(found, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert seen == [torch.Size((4, 40, 6, 6))]
    # a copy, as an average of weights is, keeps it
    assert type(copy.deepcopy(model).deep) is type(model.deep)
    model.load_state_dict(torch.load(_saved(model.state_dict()), weights_only=True))
    restore(model)
    assert type(model.deep) is type(model.same) is nn.Conv2d
    assert all(map(torch.equal, gradients_of(model, x), before))


def _saved(state: dict[str, Tensor]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_under_autocast_it_is_as_exact_as_torch(kernels: Path) -> None:
    torch.manual_seed(0)
    model = Block().to(memory_format=torch.channels_last)
    x = torch.randn(16, 8, 12, 12).contiguous(memory_format=torch.channels_last)
    exact = gradients_of(copy.deepcopy(model).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        theirs = gradients_of(model, x)
        assert swap(model, kernels)
        ours = gradients_of(model, x)
    assert [found.dtype for found in ours] == [found.dtype for found in theirs]
    for our, their, right in zip(ours, theirs, exact, strict=True):
        # both round maps to bf16; what one rounding more or less does is within the errors of all of them
        error, usual = (float((found.double() - right).norm() / right.norm().clamp(1e-6)) for found in (our, their))
        assert error < max(1.5 * usual, 0.02)


def test_timm_same_padding_and_frozen_weights(kernels: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    block = timm.create_model("tf_efficientnet_lite0").blocks[3].eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 40, 15, 18).contiguous(memory_format=torch.channels_last)
    before = gradients_of(block, x)
    names = swap(block, kernels)
    assert names == [f"{index}.conv_dw" for index in range(3)]
    for ours, theirs in zip(gradients_of(block, x), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    block.requires_grad_(False)
    out = block(x)
    assert not out.requires_grad
    assert torch.equal(out, before[0]) or torch.allclose(out, before[0], rtol=1e-4, atol=1e-5)
    restore(block)
    assert type(block[0].conv_dw).__name__ == "Conv2dSame"


def test_what_the_kernels_do_not_do_is_done_as_before(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(40, 40, 3, padding=1, groups=40)
    model = nn.Sequential(conv)
    inputs = [torch.randn(2, 40, 5, 5), torch.randn(40, 5, 5), torch.randn(0, 40, 5, 5)]
    before = [model(x) for x in inputs]
    swap(model, kernels)

    def refuse(*args: object) -> None:
        raise AssertionError("our kernel was called")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_kernels", refuse)
        assert all(map(torch.equal, map(model, inputs), before))
        half = copy.deepcopy(model).half()
        assert half(inputs[0].half().contiguous(memory_format=torch.channels_last)).dtype == torch.float16
        exported = torch.export.export(model.eval(), (inputs[0].contiguous(memory_format=torch.channels_last),))
        assert "vivace" not in str(exported.graph)
        with pytest.raises(RuntimeError, match="expected input"):
            model(torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last))
        with pytest.raises(AssertionError, match="our kernel was called"):
            model(inputs[0].contiguous(memory_format=torch.channels_last))


def test_as_an_operator_it_holds_what_operators_promise(kernels: Path) -> None:
    x = torch.randn(2, 5, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(5, 1, 3, 3, requires_grad=True), torch.randn(5, requires_grad=True)
    args = (x, weight, bias, 2, [0, 1, 0, 1], str(kernels))
    torch.library.opcheck(torch.ops.vivace.depthwise.default, args, test_utils=("test_schema", "test_faketensor"))
    with torch.inference_mode():
        assert torch.ops.vivace.depthwise(*args).shape == (2, 5, 3, 3)


def test_without_a_compiler_modules_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, folder: Path) -> None:
        raise KernelError("no C compiler is there")

    monkeypatch.setattr(module, "load_library", fail)
    model = Block()
    assert swap(model, tmp_path) == []
    assert type(model.deep) is nn.Conv2d
    assert "depthwise.c" in capsys.readouterr().err
