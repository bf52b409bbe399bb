"""Epochs made of the hardest images: which ones, when, and bitwise the same after a resume."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import restored_after_nan, unbroken_and_resumed
from same_weights import assert_same_weights

from colours import noisy_image
from vivace.config import override
from vivace.data.augmentation import augment
from vivace.data.loader import Batches
from vivace.errors import ConfigError
from vivace.training.loop.state import TrainState
from vivace.training.recipes.recipe import HardExamplesConfig, Recipe
from vivace.training.result import TrainResult
from vivace.training.techniques.hard_examples import HardExamples

RunTiny = Callable[..., TrainResult]
CONFIG = HardExamplesConfig(share=0.4, start=0.25, end=0.75)
# the middle one of three epochs; images are not mixed
CHANGES = {"focus.share": 0.5, "focus.start": 0.3, "focus.end": 0.7, "augment.mixup": 0.0}


def make(losses: list[float], begun_at: float = 0.0) -> HardExamples:
    """Before an epoch; the one before it began at `begun_at`."""
    return HardExamples(config=CONFIG, losses_N=torch.tensor(losses), begun_at=begun_at)


def test_the_hardest_images_fill_the_epoch_equally_often() -> None:
    hard = make([0.1, 5.0, 0.2, 4.0, 0.3, 9.0, 0.4, 0.5, 0.6, 8.0], begun_at=0.25)
    hard.begin_epoch(np.arange(10), progress=0.5, seed=(0, 3))
    assert hard.order_n is not None
    counts = np.bincount(hard.order_n, minlength=10)
    assert set(np.flatnonzero(counts)) == {1, 3, 5, 9}
    # 4 images fill 10 places: twice or three times
    assert sorted(counts[counts > 0]) == [2, 2, 3, 3]
    # each round is another order
    assert not np.array_equal(hard.order_n[:4], hard.order_n[4:8])


def test_only_images_of_the_split_are_chosen_and_those_not_seen_come_first() -> None:
    hard = make([9.0, 0.1, float("inf"), 0.3, 0.2])
    # position 0 is held out
    hard.begin_epoch(np.array([4, 1, 3, 2]), progress=0.25, seed=(0, 0))
    assert hard.order_n is not None
    assert set(hard.order_n) == {2, 3}


@pytest.mark.parametrize(
    ("epochs", "focused"),
    [
        (1, []),
        (2, []),
        (3, [1]),
        # from a quarter on, and the last of them ends at three quarters
        (4, [1, 2]),
        (8, [2, 3, 4, 5]),
        (9, [3, 4, 5]),
    ],
)
def test_the_first_and_the_last_epochs_see_all_images(epochs: int, focused: list[int]) -> None:
    hard = make([0.1, 0.2, 0.3])
    found = []
    for epoch in range(epochs):
        hard.begin_epoch(np.arange(3), progress=epoch / epochs, seed=(0, epoch))
        found += [epoch] if hard.order_n is not None else []
    assert found == focused


def test_the_losses_are_plain_and_each_image_has_its_own(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    record = HardExamples.record

    def recording(self: HardExamples, indices_B: torch.Tensor, losses_B: torch.Tensor) -> None:
        record(self, indices_B, losses_B)
        seen.append((indices_B, losses_B))
        assert torch.equal(self.losses_N[indices_B], losses_B)

    monkeypatch.setattr(HardExamples, "record", recording)
    run_tiny(changes={**CHANGES, "loss.label_smoothing": 0.5})
    assert all(len(indices) == len(losses) == 6 for indices, losses in seen)
    # with a smoothing of 0.5 over three classes no smoothed loss is below 0.86
    assert min(float(losses.min()) for _, losses in seen) < 0.8


def test_with_class_weights_an_image_is_as_hard_as_its_weighted_loss(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[int, float]] = []
    record = HardExamples.record

    def recording(self: HardExamples, indices_B: torch.Tensor, losses_B: torch.Tensor) -> None:
        record(self, indices_B, losses_B)
        seen.append(dict(zip(indices_B.tolist(), losses_B.tolist(), strict=True)))

    monkeypatch.setattr(HardExamples, "record", recording)
    data = tmp_path / "uneven"
    for label, colour, count in (("few", (210, 50, 40), 4), ("many", (40, 60, 200), 16)):
        (data / label).mkdir(parents=True)
        for index in range(count):
            noisy_image(colour, index).save(data / label / f"{index}.png")
    for name, weights in (("plain", "none"), ("weighted", "balanced")):
        run_tiny(name, {**CHANGES, "epochs": 1, "loss.class_weights": weights}, data=data)
    first = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    # the first batch is answered by the same untrained network
    ratios = sorted(round(first[1][0][index] / loss, 3) for index, loss in first[0][0].items())
    # 3 of 15 training images are of the rare class: 15 / (2 · 3) and 15 / (2 · 12)
    assert set(ratios) == {0.625, 2.5}


def test_the_run_trains_on_the_hardest_half_in_its_middle(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, np.ndarray | None]] = []
    epoch = Batches.epoch

    def recording(self: Batches, number: int, *, start: int = 0, order: np.ndarray | None = None) -> Any:
        orders.append((number, order))
        return epoch(self, number, start=start, order=order)

    monkeypatch.setattr(Batches, "epoch", recording)
    result = run_tiny(changes=CHANGES)
    assert [order is None for _, order in orders] == [True, False, True]
    chosen = orders[1][1]
    assert chosen is not None
    assert len(chosen) == 18
    assert len(set(chosen.tolist())) == 9
    assert result.num_images_seen == 3 * 18


def test_an_image_is_the_other_way_round_every_time_in_epochs_of_hard_images_too(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[bool]] = {}
    flips = augment.alternating_flips

    def recording(indices_B: torch.Tensor, times_seen: torch.Tensor, seed: int) -> torch.Tensor:
        mirrored_B = flips(indices_B, times_seen, seed)
        for index, mirrored in zip(indices_B.tolist(), mirrored_B.tolist(), strict=True):
            seen.setdefault(index, []).append(mirrored)
        return mirrored_B

    monkeypatch.setattr(augment, "alternating_flips", recording)
    # a third of 18 images is a batch: none has an image twice
    run_tiny(changes={**CHANGES, "augment.flip": "alternating", "focus.share": 1 / 3})
    assert sorted(map(len, seen.values())) == [2] * 12 + [5] * 6
    for turns in seen.values():
        assert all(turn != previous for previous, turn in itertools.pairwise(turns))
    # coins decide which way round an image comes first
    assert 0 < sum(turns[0] for turns in seen.values()) < len(seen)


@pytest.mark.parametrize("step", [3, 4, 5, 8])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_killed_run_is_resumed_bitwise_with_the_same_hard_images(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, step: int, micro_batch_size: int | None
) -> None:
    changes = {**CHANGES, "checkpoint_minutes": 1e-9, "micro_batch_size": micro_batch_size}
    assert_same_weights(*unbroken_and_resumed(run_tiny, monkeypatch, changes, step))


def test_a_roll_back_brings_the_losses_back(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(state: TrainState) -> torch.Tensor:
        assert state.hard_examples is not None
        return state.hard_examples.losses_N

    restored = restored_after_nan(lambda: run_tiny(changes=CHANGES), monkeypatch, HardExamples, losses)
    assert len(restored) == 1
    assert not restored[0].isnan().any()


@pytest.mark.parametrize("other", ["augment.mixup", "augment.cutmix", "data.balanced_sampling"])
def test_focus_is_refused_where_the_hardest_images_can_not_be_told(other: str) -> None:
    with pytest.raises(ConfigError, match=r"focus.share can't go with .*: got 0.5. Set focus.share=1"):
        override(Recipe(), {"focus.share": 0.5, other: True if other.startswith("data") else 0.2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0.0}, r"focus.share is out of range: got 0.0"),
        ({"start": 0.9}, r"focus.start is out of range: got 0.9"),
        ({"end": 1.5}, r"focus.end is out of range: got 1.5"),
    ],
)
def test_shares_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HardExamplesConfig(**changes)
