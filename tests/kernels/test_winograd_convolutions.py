"""Winograd's convolutions in a network: what learns in bf16 learns alike, and nothing else is touched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vivace.errors import KernelError
from vivace.hardware import autocast
from vivace.kernels import winograd_convolutions as winograd_module
from vivace.kernels.norms import FusedSequential
from vivace.kernels.winograd import Winograd
from vivace.kernels.winograd_convolutions import WinogradConvolutions
from vivace.models.zoo import create_model
from vivace.training.execution import ExecutionConfig, own_kernels


@pytest.fixture(scope="module")
def kernel() -> Iterator[Winograd]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Winograd(Path(folder))
        except KernelError as error:
            pytest.skip(str(error))


@pytest.fixture
def calls(kernel: Winograd, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all kernels that are called; on a machine with AMX too."""
    names: list[str] = []

    class Spy(Winograd):
        def __init__(self) -> None:
            pass

        def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
            if not name.startswith("_"):
                names.append(name)
            return getattr(kernel, name)

    monkeypatch.setattr(winograd_module, "winograd", lambda folder: Spy())
    return names


def close(found: Tensor, wanted: Tensor, error: float = 0.02) -> bool:
    return float((found.double() - wanted.double()).square().mean().sqrt()) < error * float(
        wanted.double().square().mean().sqrt()
    )


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_the_plain_convolution(calls: list[str], tmp_path: Path, bias: bool) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(32, 48, 3, padding=1, bias=bias)
    images, outer = torch.randn(64, 32, 10, 10), torch.randn(64, 48, 10, 10)

    def run(own: bool) -> list[Tensor]:
        x = images.clone().requires_grad_()
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if own:
                with WinogradConvolutions(tmp_path):
                    out = conv(x)
            else:
                out = conv(x)
        out.backward(outer.to(out.dtype))
        assert x.grad is not None
        return [out.detach(), x.grad, *(p.grad.clone() for p in conv.parameters() if p.grad is not None)]

    wanted = run(False)
    assert not calls
    found = run(True)
    assert calls == ["convolve", "input_gradient", "weight_gradient"]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert close(one, other)


def test_pooling_behind_it_is_done_with_it_and_learns_alike(calls: list[str], tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = FusedSequential(
        nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(48), nn.ReLU()
    )
    images, outer = torch.randn(64, 32, 9, 10).bfloat16(), torch.randn(64, 48, 4, 5)

    def run(execution: ExecutionConfig, *, watched: bool = False) -> list[Tensor]:
        x = images.float().requires_grad_()
        layers.zero_grad()
        hook = layers[0].register_forward_hook(lambda *_: None) if watched else None
        with torch.autocast("cpu", torch.bfloat16), own_kernels(execution, tmp_path):
            out = layers(x)
        out.backward(outer.to(out.dtype))
        if hook is not None:
            hook.remove()
        assert x.grad is not None
        return [out.detach(), x.grad, *(p.grad.clone() for p in layers.parameters() if p.grad is not None)]

    wanted = run(ExecutionConfig(precision="bf16", fuse_norms=True))
    assert not calls
    found = run(ExecutionConfig(precision="bf16", fuse_norms=True, winograd=True))
    assert calls == ["convolve_and_pool", "input_gradient", "weight_gradient"]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        # where maxima change places gradients do
        assert close(one, other, 0.15)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layers.eval()
        with own_kernels(ExecutionConfig(precision="bf16", fuse_norms=True, winograd=True), tmp_path):
            evaluated = layers(images)
        assert close(evaluated, layers(images))
    layers.train()
    # without fused norms, or where somebody looks at the convolution, one after the other
    for execution, watched in (
        (ExecutionConfig(precision="bf16", winograd=True), False),
        (ExecutionConfig(precision="bf16", fuse_norms=True, winograd=True), True),
    ):
        del calls[:]
        run(execution, watched=watched)
        assert calls == ["convolve", "input_gradient", "weight_gradient"]


def test_only_the_gradients_that_are_asked_for_are_taken(calls: list[str], tmp_path: Path) -> None:
    conv, x = nn.Conv2d(16, 16, 3, padding=1, bias=False), torch.randn(64, 16, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), WinogradConvolutions(tmp_path):
        with torch.no_grad():
            conv(x)
        assert calls == ["convolve"]
        conv(x.detach()).sum().backward()
        assert calls[1:] == ["convolve", "weight_gradient"]
        del calls[:]
        conv.requires_grad_(False)
        conv(x).sum().backward()
        assert calls == ["convolve", "input_gradient"]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.Conv2d(16, 8, 3, padding=1),
    ],
)
def test_other_convolutions_are_torchs(calls: list[str], tmp_path: Path, conv: nn.Conv2d) -> None:
    x = torch.randn(64, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = conv(x)
        with WinogradConvolutions(tmp_path):
            assert torch.equal(conv(x), wanted)
    assert not calls


def test_other_precisions_are_torchs(calls: list[str], tmp_path: Path) -> None:
    conv, x = nn.Conv2d(16, 16, 3, padding=1), torch.randn(64, 16, 8, 8)
    with WinogradConvolutions(tmp_path):
        conv(x)
        with torch.autocast("cpu", torch.float16):
            conv(x)
    assert not calls


def test_without_kernels_convolutions_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_module, "winograd", lambda folder: None)
    conv, x = nn.Conv2d(16, 16, 3, padding=1), torch.randn(64, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = conv(x)
        with WinogradConvolutions(tmp_path):
            assert torch.equal(conv(x), wanted)


def test_a_network_of_ours_takes_a_step_with_them(calls: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("fast_cnn", 10, in_channels=3, size=32, widths=[32, 64], depth=2).train()
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))

    def gradients(execution: ExecutionConfig) -> list[Tensor]:
        model.zero_grad()
        with autocast(torch.device("cpu"), execution.precision), own_kernels(execution, tmp_path):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    exact, in_bf16 = gradients(ExecutionConfig()), gradients(ExecutionConfig(precision="bf16"))
    assert not calls
    found = gradients(ExecutionConfig(precision="bf16", winograd=True))
    # four convolutions in groups, none of them the first of the network
    assert sorted(calls) == ["convolve"] * 4 + ["input_gradient"] * 4 + ["weight_gradient"] * 4
    likeness = lambda one, other: float(nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))  # noqa: E731
    for one, low, wanted in zip(found, in_bf16, exact, strict=True):
        # bf16 itself turns these gradients, by 0.98, as maxima change places
        assert likeness(one, wanted) > likeness(low, wanted) - 0.03
    del calls[:]
    gradients(ExecutionConfig(precision="bf16", winograd=True, fuse_norms=True))
    both = ["convolve", "convolve_and_pool"] * 2 + ["input_gradient"] * 4 + ["weight_gradient"] * 4
    assert sorted(calls) == sorted(both)
    del calls[:]
    gradients(ExecutionConfig(precision="bf16", winograd=True, compile=True))
    assert not calls, "a compiled network has kernels of its own"
