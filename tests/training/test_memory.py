"""Out of memory halves the micro-batch and keeps the batch (fault 28); a last batch of one survives (fault 31)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed, die_after
from same_weights import assert_same_weights, bundle_weights
from torch import Tensor, nn

from vivace.data.augmentation.augment import Augment
from vivace.data.config import AugmentConfig
from vivace.data.loader import Batch
from vivace.errors import ConfigError, OutOfMemoryError
from vivace.models.config import ModelConfig
from vivace.models.normalize import Normalize
from vivace.training.execution import ExecutionConfig
from vivace.training.loop.state import TrainState
from vivace.training.loop.step import Stepper
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]

CPU = torch.device("cpu")

ERRORS: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError("Unable to allocate 3 GiB"),
]


class Hungry(nn.Module):
    """A linear network that runs out of memory above so many images."""

    def __init__(self, limit: int, error: Exception) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 8 * 8, 4)
        self.limit, self.error = limit, error
        self.sizes: list[int] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.sizes.append(len(images_BCHW))
        if len(images_BCHW) > self.limit:
            raise self.error
        return self.layer(images_BCHW.flatten(1))


def make_stepper(model: nn.Module, messages: list[str], device: torch.device = CPU, **options: Any) -> Stepper:
    state = TrainState(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        generator=torch.Generator(device).manual_seed(0),
    )
    return Stepper(
        state,
        ExecutionConfig(**options),
        loss=nn.functional.cross_entropy,
        normalize=Normalize((0.5,) * 3, (0.25,) * 3).to(device),
        augment=Augment(AugmentConfig(flip="random"), size=128 if device.type == "cuda" else 8, num_classes=4, seed=0),
        device=device,
        kernels=Path("not used"),
        on_message=messages.append,
    )


def make_batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 4, torch.arange(count))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_micro_batch_is_halved_and_the_update_stays_that_of_the_whole_batch(error: Exception) -> None:
    messages: list[str] = []
    plain, hungry = Hungry(100, error), Hungry(5, error)
    expected = make_stepper(plain, []).step(make_batch(16), 0)
    result = make_stepper(hungry, messages).step(make_batch(16), 0)
    # 16 → 8 → 4, then four of four
    assert hungry.sizes == [16, 8, 4, 4, 4, 4]
    torch.testing.assert_close(hungry.layer.weight, plain.layer.weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result.loss_sum, expected.loss_sum)
    assert result.correct_sum == expected.correct_sum
    assert messages[-1] == "out of memory: 4 images at a time from here on; the batch stays 16"


def test_micro_batches_that_were_asked_for_are_halved_too() -> None:
    model = Hungry(3, ERRORS[0])
    make_stepper(model, [], micro_batch_size=4).step(make_batch(8), 0)
    assert model.sizes == [4, 2, 2, 2, 2]


def test_uneven_micro_batches_weigh_each_image_alike() -> None:
    plain, divided = Hungry(100, ERRORS[0]), Hungry(100, ERRORS[0])
    make_stepper(plain, []).step(make_batch(14), 0)
    make_stepper(divided, [], micro_batch_size=4).step(make_batch(14), 0)
    assert divided.sizes == [4, 4, 4, 2]
    torch.testing.assert_close(divided.layer.weight, plain.layer.weight, rtol=1e-5, atol=1e-7)


def test_memory_that_does_not_suffice_for_one_image_is_an_error_with_a_mend() -> None:
    hungry = Hungry(0, ERRORS[0])
    with pytest.raises(OutOfMemoryError, match=r"^out of memory even with 1 images at a time .*Give a smaller `size`"):
        make_stepper(hungry, []).step(make_batch(4), 0)


def test_batch_norm_is_never_given_a_single_image() -> None:
    class Normed(Hungry):
        def __init__(self) -> None:
            super().__init__(2, ERRORS[0])
            self.norm = nn.BatchNorm1d(4)

        def forward(self, images_BCHW: Tensor) -> Tensor:
            return self.norm(super().forward(images_BCHW))

    model = Normed()
    model.limit = 3
    make_stepper(model, []).step(make_batch(5), 0)
    # a rest of one joins the chunk before it
    assert model.sizes[-2:] == [3, 2]
    model.limit = 1
    with pytest.raises(OutOfMemoryError, match=r"even with 2 images"):
        make_stepper(model, []).step(make_batch(4), 0)


def test_three_images_are_divided_into_two_and_one() -> None:
    model = Hungry(2, ERRORS[0])
    make_stepper(model, []).step(make_batch(6), 0)
    assert model.sizes == [6, 3, 2, 2, 2]


def test_micro_batches_of_one_image_are_refused_with_batch_norm(run_tiny: RunTiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^micro_batch_size is too small: got 1, and fast_cnn has batch norm"):
        run_tiny(changes={"micro_batch_size": 1})
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_in_the_update_is_an_error_and_no_weight_moves_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def starving(*_: Any) -> None:
        calls.append(1)
        raise ERRORS[0]

    stepper = make_stepper(Hungry(100, ERRORS[0]), [])
    monkeypatch.setattr(stepper.state.optimizer, "step", starving)
    with pytest.raises(
        OutOfMemoryError, match=r"^out of memory while updating the weights \(.*Give a smaller `model.name`"
    ):
        stepper.step(make_batch(4), 0)
    assert len(calls) == 1


def test_memory_that_runs_out_in_the_augmentation_is_an_error_with_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def starving(*_: Any, **__: Any) -> None:
        raise ERRORS[1]

    stepper = make_stepper(Hungry(100, ERRORS[0]), [])
    monkeypatch.setattr(stepper, "_augment", starving)
    with pytest.raises(OutOfMemoryError, match=r"^out of memory while augmenting the images .*smaller `batch_size`\.$"):
        stepper.step(make_batch(4), 0)


@pytest.fixture
def hungry_above_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network runs out of memory when it trains on more than four images at a time."""
    accumulate = Stepper._accumulate

    def hungry(self: Stepper, images_BCHW: Tensor, *arguments: Tensor) -> Any:
        if min(len(images_BCHW), self.micro_batch_size or 99) > 4:
            raise ERRORS[0]
        return accumulate(self, images_BCHW, *arguments)

    monkeypatch.setattr(Stepper, "_accumulate", hungry)


@pytest.mark.usefixtures("hungry_above_four")
def test_a_run_that_ran_out_of_memory_is_resumed_with_its_micro_batches(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unbroken = run_tiny("unbroken", quiet=False)
    assert capfd.readouterr().err.count("out of memory: 3 images at a time from here on; the batch stays 6") == 1
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed")
    resumed = run_tiny("killed", resume=True, quiet=False)
    assert "out of memory" not in capfd.readouterr().err
    assert_same_weights(unbroken, resumed)


@pytest.mark.gpu
def test_a_gpu_that_runs_out_of_memory_gives_the_gradient_of_the_whole_batch() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    weights = []
    for limited in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).cuda()
        messages: list[str] = []
        stepper = make_stepper(model, messages, device=device)
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (256, 3, 128, 128), generator=generator, dtype=torch.uint8).cuda()
        batch = Batch(images, torch.arange(256).cuda() % 4, torch.arange(256).cuda())
        torch.cuda.empty_cache()
        # 256 × 512 × 128² floats are 8 GiB, and there are several of them
        share = 6 * 2**30 / torch.cuda.get_device_properties(0).total_memory if limited else 1.0
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
        stepper.step(batch, 0)
        weights.append(model[0].weight.detach().clone())
        assert bool(messages) == limited
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    hungry = Hungry(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        make_stepper(hungry, []).step(make_batch(4), 0)
    assert hungry.sizes == [4]


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_last_batch_of_one_survives_batch_norm(
    run_tiny: RunTiny, make_folder: Callable[..., Path], micro_batch_size: int | None
) -> None:
    # 3 × 9 images, a quarter held out: 21 train, and batches of 5 leave one, as do micro-batches of 4 of a batch.
    # The last block of this network sees 1 × 1, where batch norm needs two images
    changes = {
        "model": ModelConfig(name="simple_cnn"),
        "data.size": 32,
        "data.store_size": 36,
        "batch_size": 5,
        "micro_batch_size": micro_batch_size,
    }
    result = run_tiny(data=make_folder("odd", per_class=9), changes=changes)
    assert result.num_images_seen == 3 * 21
    assert all(bool(tensor.isfinite().all()) for tensor in bundle_weights(result).values())
