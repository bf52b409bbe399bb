"""Weight gradients by AMX: the exact sums for maps of any size, only where faster, and nothing else affected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from whole_numbers import num_threads, whole_numbers

from vivace.errors import KernelError
from vivace.hardware import cpu_features
from vivace.kernels import gradients
from vivace.kernels.build import load_library
from vivace.kernels.gradients import WeightGradient, is_faster, weight_gradient
from vivace.kernels.tiling import TiledGradients


@pytest.fixture
def kernel(kernels: Path) -> WeightGradient:
    if not load_library("gradients", kernels).usable():
        pytest.skip("this machine has no AMX, or does not let a process use it")
    found = weight_gradient(kernels)
    assert found is not None
    return found


# one pixel, odd and uneven sides, rows longer than a band, channels and images that fill no tile, several of all
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 7, 5, 4, 9),
    (40, 4, 4, 4, 6),
    (50, 24, 30, 30, 64),
    (33, 64, 15, 15, 48),
    (70, 80, 7, 7, 96),
    (9, 33, 3, 3, 17),
    (5, 40, 1, 90, 48),
    (5, 16, 90, 1, 16),
]


@pytest.mark.parametrize(("count", "channels", "height", "width", "filters"), SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_is_the_sum_over_all_pixels(
    kernel: WeightGradient, count: int, channels: int, height: int, width: int, filters: int, threads: int
) -> None:
    x, g = whole_numbers(count, channels, height, width), whole_numbers(count, filters, height, width, seed=1)
    with num_threads(threads):
        found = kernel(x, g)
    exact = torch.nn.grad.conv2d_weight(x.double(), (filters, channels, 3, 3), g.double(), padding=1)
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), exact)


def test_maps_in_any_order_of_memory_will_do(kernel: WeightGradient) -> None:
    x, g = whole_numbers(40, 16, 6, 6), whole_numbers(40, 32, 6, 6, seed=1)
    assert torch.equal(kernel(x.contiguous(), g[:, :, ::1].contiguous()), kernel(x, g))


def test_sums_are_kept_in_float32_and_the_same_from_call_to_call(kernel: WeightGradient) -> None:
    x, g = (torch.randn(64, 32, 8, 8, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    found = kernel(x, g)
    exact = torch.nn.grad.conv2d_weight(x.double(), (32, 32, 3, 3), g.double(), padding=1)
    assert float((found - exact).abs().max()) < 1e-5 * float(exact.abs().max()), "bf16 would be off by 4e-3"
    assert torch.equal(kernel(x, g), found)


def test_who_used_tiles_before_can_go_on(kernel: WeightGradient) -> None:
    # torch's own convolutions use tiles of other shapes, in the same threads
    x, weight = whole_numbers(32, 48, 9, 9), whole_numbers(80, 48, 3, 3, seed=1)
    before = torch.conv2d(x, weight, padding=1)
    for _ in range(3):
        kernel(x, before)
        assert torch.equal(torch.conv2d(x, weight, padding=1), before)


def test_a_nan_stays_one(kernel: WeightGradient) -> None:
    x, g = whole_numbers(32, 16, 4, 4), whole_numbers(32, 16, 4, 4, seed=1)
    g[3, 5, 2, 2] = float("nan")
    found = kernel(x, g)
    assert found[5].isnan().all()
    assert found[torch.arange(16) != 5].isfinite().all()


def test_convolutions_get_it_in_the_precision_of_their_weights(kernel: WeightGradient, kernels: Path) -> None:
    x = whole_numbers(32, 16, 14, 14).float().requires_grad_()
    weight = whole_numbers(32, 16, 3, 3, seed=1).float().requires_grad_()
    g = whole_numbers(32, 32, 14, 14, seed=2)
    with torch.autocast("cpu", torch.bfloat16), TiledGradients(kernels):
        out = torch.nn.functional.conv2d(x, weight, None, 1, 1, 1, 1)
    out.backward(g)
    assert out.dtype == torch.bfloat16
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.equal(
        weight.grad.double(), torch.nn.grad.conv2d_weight(x.double(), weight.shape, g.double(), padding=1)
    )
    # what torch gives for the input, and it gives it in bf16
    exact = torch.nn.grad.conv2d_input(x.shape, weight.double(), g.double(), padding=1)
    torch.testing.assert_close(x.grad.double(), exact, rtol=1 / 128, atol=0)
    assert not torch.equal(weight.grad, weight.grad.bfloat16().float()), "these sums do not fit into bf16"


@pytest.mark.parametrize(
    ("count", "channels", "side", "filters", "gain"),
    [
        (1000, 24, 30, 64, True),
        (1000, 256, 3, 256, True),
        (64, 256, 4, 256, True),
        (32, 64, 56, 64, True),
        (24, 64, 56, 64, True),
        # tiles half empty
        (16, 256, 14, 256, False),
        (40, 64, 30, 64, False),
        (1000, 6, 30, 16, False),
        (1000, 64, 30, 10, False),
        # as many sums as products
        (64, 512, 2, 512, False),
        (500, 256, 1, 256, False),
        (0, 64, 30, 64, False),
    ],
)
def test_it_is_for_many_images_and_channels(count: int, channels: int, side: int, filters: int, gain: bool) -> None:
    assert is_faster(torch.empty(count, channels, side, side, device="meta"), filters) is gain


def test_without_amx_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "cpu_features", lambda: ("avx2", "avx512_bf16"))
    assert weight_gradient(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_or_leave_to_use_tiles_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "cpu_features", lambda: ("amx_bf16",))

    def fail(name: str, folder: Path) -> None:
        raise KernelError("no C compiler was found")

    monkeypatch.setattr(gradients, "load_library", fail)
    assert weight_gradient(tmp_path / "one") is None

    class Refused:
        @staticmethod
        def usable() -> int:
            return 0

    monkeypatch.setattr(gradients, "load_library", lambda name, folder: Refused())
    assert weight_gradient(tmp_path / "two") is None


def test_the_library_says_whether_tiles_can_be_used(kernels: Path) -> None:
    assert bool(load_library("gradients", kernels).usable()) == ("amx_bf16" in cpu_features())
