"""Validation, against a plain loop over images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vivace
from vivace.models.normalize import Normalize
from vivace.training.execution import ExecutionConfig
from vivace.training.loop import validation
from vivace.training.loop.validation import central_view, eval_batch_size, split_logits
from vivace.training.result import TrainResult

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 7, 10])
def test_validation_is_the_plain_loop_over_images_the_partial_batch_included(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 10, 10, 3), generator=generator, dtype=torch.uint8).numpy()
    labels = np.arange(12) % 4
    indices = np.arange(12)[::-1][:count].copy()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Dropout(0.5)).train()
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    logits, found = split_logits(
        model,
        images,
        labels,
        size=8,
        normalize=normalize,
        execution=ExecutionConfig(),
        device=CPU,
        batch_size=4,
        indices=indices,
    )
    assert found.tolist() == labels[indices].tolist()
    model.eval()
    for row, index in enumerate(indices):
        pixels = torch.from_numpy(images[index, 1:9, 1:9]).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor((0.4, 0.5, 0.6)).view(3, 1, 1), torch.tensor((0.2, 0.25, 0.3)).view(3, 1, 1)
        expected = model(((pixels - mean) / std)[None])
        torch.testing.assert_close(logits[row], expected[0], rtol=1e-4, atol=1e-5)


def test_the_central_view_of_an_image_of_the_right_size_is_the_image() -> None:
    images = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6)
    assert torch.equal(central_view(images, 6), images)
    assert torch.equal(central_view(images, 4), images[..., 1:5, 1:5])


def test_large_images_are_passed_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [eval_batch_size(size) for size in (8, 32, 64, 128, 224, 2048)] == [500, 500, 500, 125, 40, 1]
    monkeypatch.setattr(validation, "MAX_BATCH", 3)
    counts: list[int] = []

    class Counting(nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            counts.append(len(images_BCHW))
            return images_BCHW.mean((2, 3))

    split_logits(
        Counting(),
        np.zeros((7, 8, 8, 3), np.uint8),
        np.zeros(7, np.int64),
        size=8,
        normalize=Normalize((0.5,) * 3, (0.25,) * 3),
        execution=ExecutionConfig(),
        device=CPU,
    )
    assert counts == [3, 3, 1]


def test_the_accuracies_of_a_run_are_those_of_a_plain_loop_over_its_files(
    run_tiny: Callable[..., TrainResult], make_folder: Callable[..., Path]
) -> None:
    data = make_folder("splits", per_class=5, splits=("train", "val", "test"))
    result = run_tiny(data=data, changes={"epochs": 1})
    bundle = vivace.load(result.bundle)
    model, preprocess = bundle.build_model(), bundle.info.preprocess
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (preprocess.mean, preprocess.std))
    found = {}
    for split in ("val", "test"):
        correct = []
        for path in sorted((data / split).glob("*/*.png")):
            pixels = torch.tensor(preprocess.load(path)).permute(2, 0, 1).float() / 255
            with torch.no_grad():
                logits = model(((pixels - mean) / std)[None])
            correct.append(bundle.info.classes[int(logits.argmax())] == path.parent.name)
        found[split] = sum(correct) / len(correct)
    assert (result.val_top1, result.test_top1) == (found["val"], found["test"])
    # neither a guess that is always right nor one that is never
    assert 0 < result.val_top1 < 1
