"""Out of memory halves the micro-batch and keeps the batch (fault 28); a last batch of one survives (fault 31)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_weights import bundle_weights
from torch import Tensor, nn

from vivace.data.augment import Augment
from vivace.data.config import AugmentConfig
from vivace.data.loader import Batch
from vivace.errors import OutOfMemoryError
from vivace.models.normalize import Normalize
from vivace.training.result import TrainResult
from vivace.training.state import TrainState
from vivace.training.step import Setup, Stepper

RunTiny = Callable[..., TrainResult]

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


def make_stepper(model: nn.Module, messages: list[str], **options: Any) -> Stepper:
    state = TrainState(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        generator=torch.Generator().manual_seed(0),
    )
    return Stepper(
        state,
        Setup(**options),
        loss=nn.functional.cross_entropy,
        normalize=Normalize((0.5,) * 3, (0.25,) * 3),
        augment=Augment(AugmentConfig(flip="random"), size=8, num_classes=4, seed=0),
        device=torch.device("cpu"),
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


def test_uneven_micro_batches_weigh_each_image_alike() -> None:
    plain, divided = Hungry(100, ERRORS[0]), Hungry(100, ERRORS[0])
    make_stepper(plain, []).step(make_batch(14), 0)
    make_stepper(divided, [], micro_batch_size=4).step(make_batch(14), 0)
    assert divided.sizes == [4, 4, 4, 2]
    torch.testing.assert_close(divided.layer.weight, plain.layer.weight, rtol=1e-5, atol=1e-7)


def test_memory_that_does_not_suffice_for_one_image_is_an_error_with_a_mend() -> None:
    hungry = Hungry(0, ERRORS[0])
    with pytest.raises(OutOfMemoryError, match=r"^out of memory even with 1 images at a time .*Give a smaller --size"):
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
    with pytest.raises(OutOfMemoryError, match=r"even with (2|3) images"):
        make_stepper(model, []).step(make_batch(4), 0)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    hungry = Hungry(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        make_stepper(hungry, []).step(make_batch(4), 0)
    assert hungry.sizes == [4]


def test_a_last_batch_of_one_survives_batch_norm(run_tiny: RunTiny, make_folder: Callable[..., Path]) -> None:
    # 3 × 9 images, a quarter held out: 21 train, and batches of 5 leave one
    result = run_tiny(data=make_folder("odd", per_class=9), changes={"batch_size": 5})
    assert result.num_images_seen == 3 * 21
    assert all(bool(tensor.isfinite().all()) for tensor in bundle_weights(result).values())
