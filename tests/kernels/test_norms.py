"""The fused kernel gives what torch's max-pooling, batch norm and activation give, and is used only where it may be."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vivace.errors import KernelError
from vivace.kernels import build, norms
from vivace.kernels.build import load_library
from vivace.kernels.call import Kernel
from vivace.kernels.norms import FusedSequential, fused_norms

ACTIVATIONS: dict[str, list[nn.Module]] = {
    "relu": [nn.ReLU()],
    "silu": [nn.SiLU()],
    "gelu": [nn.GELU()],
    "none": [],
    "tanh gelu": [nn.GELU(approximate="tanh")],
}
# odd sides, one channel, fewer images than threads, more channels than a vector holds
SHAPES = [(5, 16, 8, 8), (3, 40, 7, 5), (1, 1, 4, 4), (9, 3, 3, 6), (130, 8, 4, 4)]


def layers(channels: int, pool: bool, activation: str, seed: int = 0) -> FusedSequential:
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(channels, generator=generator) / 2)
    parts = [nn.MaxPool2d(2)] if pool else []
    return FusedSequential(*parts, norm, *ACTIVATIONS[activation])


def images(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(output, gradient of the input, gradients of the parameters) for a fixed gradient of the output."""
    x = x.clone().requires_grad_()
    out = model(x)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    # rounded for every precision alike
    out.backward(gradient.bfloat16().to(out.dtype))
    assert x.grad is not None
    return out.detach(), x.grad, [p.grad for p in model.parameters() if p.grad is not None]


def assert_near(actual: Tensor, exact: Tensor, what: str) -> None:
    """Within what bf16 rounds: 1/256 of the value, or of the largest one where terms cancel."""
    tolerance = float(exact.abs().max()) / 128 + 1e-6
    torch.testing.assert_close(actual.double(), exact.double(), rtol=1 / 128, atol=tolerance, msg=lambda m: what + m)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pool", [True, False], ids=["pool", "no pool"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_torch_in_float64(kernels: Path, shape: tuple[int, ...], pool: bool, activation: str) -> None:
    x = images(shape)
    model = layers(shape[1], pool, activation)
    exact = copy.deepcopy(model).double()
    with fused_norms(kernels):
        out, x_grad, grads = run(model, x)
    # the same winners of the pooling: the values are the same, the precision is not
    exact_out, exact_x_grad, exact_grads = run(exact, x.double())
    assert (out.dtype, x_grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert_near(out, exact_out, "output ")
    assert_near(x_grad, exact_x_grad, "gradient of the input ")
    for actual, wanted in zip(grads, exact_grads, strict=True):
        assert_near(actual, wanted, "gradient of a parameter ")
    norm, exact_norm = (next(m for m in net if isinstance(m, nn.BatchNorm2d)) for net in (model, exact))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(
            getattr(norm, name).double(), getattr(exact_norm, name).double(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pool", [True, False], ids=["pool", "no pool"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_eval_mode_the_kernel_equals_torch_in_float64(
    kernels: Path, shape: tuple[int, ...], pool: bool, activation: str
) -> None:
    x = images(shape)
    model = layers(shape[1], pool, activation)
    with fused_norms(kernels):
        # running statistics that are none of a fresh norm's
        run(model, x)
    exact = copy.deepcopy(model).double().eval()
    with fused_norms(kernels), torch.inference_mode():
        out = model.eval()(x)
    assert out.dtype == torch.bfloat16
    assert_near(out, exact(x.double()).detach(), "output ")


def test_a_channel_without_variance_gives_its_shift(kernels: Path) -> None:
    model = layers(1, True, "none")
    with fused_norms(kernels):
        out, x_grad, _ = run(model, images((1, 1, 2, 2)))
    torch.testing.assert_close(out.float().flatten(), model[1].bias.detach(), rtol=1 / 128, atol=0)
    assert x_grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_the_kernel_really_runs(kernels: Path, monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    called = []
    monkeypatch.setattr(Kernel, "__call__", lambda kernel, **values: called.append(kernel.name))
    with fused_norms(kernels), torch.set_grad_enabled(training):
        layers(8, True, "relu").train(training)(images((2, 8, 4, 4)))
    assert called == ["pool_and_sum", "apply"]


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (layers(8, True, "relu"), images((2, 8, 4, 4)).float()),
        (layers(8, True, "relu").eval(), images((2, 8, 4, 4))),
        (FusedSequential(nn.BatchNorm2d(8, affine=False)), images((2, 8, 4, 4))),
        (FusedSequential(nn.BatchNorm2d(8, momentum=None)), images((2, 8, 4, 4))),
        (FusedSequential(nn.BatchNorm2d(8, track_running_stats=False)), images((2, 8, 4, 4))),
    ],
    ids=["fp32", "eval with gradients", "not affine", "cumulative average", "no running statistics"],
)
def test_what_the_kernel_does_not_do_is_left_to_torch(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor
) -> None:
    monkeypatch.setattr(norms, "_norm", None)
    plain = nn.Sequential(*copy.deepcopy(model))
    with fused_norms(kernels):
        torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, padding=1)],
    ids=str,
)
def test_other_poolings_are_left_to_torch(kernels: Path, pool: nn.MaxPool2d) -> None:
    x = images((2, 8, 7, 7))
    model = FusedSequential(pool, nn.BatchNorm2d(8), nn.ReLU())
    with fused_norms(kernels):
        assert model(x).shape == pool(x).shape


def test_without_the_context_a_fused_sequential_is_a_plain_one() -> None:
    x = images((2, 8, 6, 6))
    model = layers(8, True, "silu")
    plain = nn.Sequential(*copy.deepcopy(model))
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


def test_the_results_are_the_same_to_the_last_bit_from_call_to_call(kernels: Path) -> None:
    x = images((130, 40, 6, 6))
    with fused_norms(kernels):
        first = run(layers(40, True, "gelu"), x)
        second = run(layers(40, True, "gelu"), x)
    for a, b in zip(itertools.chain(first[:2], first[2]), itertools.chain(second[:2], second[2]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("pool", [True, False])
def test_nan_and_infinity_are_not_lost(kernels: Path, value: float, pool: bool) -> None:
    x = images((4, 8, 4, 4))
    x[1, 3, 0, 1] = value
    with fused_norms(kernels):
        out, x_grad, _ = run(layers(8, pool, "relu"), x)
    assert not out[:, 3].isfinite().any()
    assert not x_grad.isfinite().all()
    assert out[:, :3].isfinite().all()


@pytest.mark.parametrize("position", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_pooling_keeps_a_nan_wherever_it_stands(kernels: Path, position: tuple[int, int]) -> None:
    x = images((2, 8, 2, 2))
    x[0, 0, position[0], position[1]] = float("nan")
    with fused_norms(kernels):
        assert layers(8, True, "none")(x)[:, 0].isnan().all()


def test_no_compiler_is_told_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(
        KernelError, match=r"no C compiler was found: looked for cc, gcc, clang\. Install one, or set CC"
    ):
        load_library("norms", tmp_path)


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(KernelError, match=r"the C compiler failed: false"):
        load_library("norms", tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match=r"can't be kept or loaded: .*file"):
        load_library("norms", tmp_path / "file")


def test_the_library_is_built_once(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library.cache_clear()
    monkeypatch.setattr(build, "_compile", None)
    load_library("norms", kernels)
