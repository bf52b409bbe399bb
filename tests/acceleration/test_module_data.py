"""A user's data and metric: read once, dealt to choosing and proving, and refused with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vivace.acceleration.modules.batches import SELECT_SAMPLES, Batch, Batches, batch_of
from vivace.acceleration.modules.metrics import Scorer
from vivace.acceleration.modules.signature import Signature
from vivace.errors import ConfigError, DataError

CPU = torch.device("cpu")


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x


SIGNATURE = Signature(Two())
X, Y = torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 0, 1])


def read(data: Any, **options: Any) -> Batches:
    return Batches(data, SIGNATURE, CPU, **options)


def samples(batches: Any) -> list[float]:
    return [float(row[0]) for batch in batches for row in batch.call.kwargs["x"]]


@pytest.mark.parametrize(
    ("item", "names", "has_targets"),
    [
        ((X, Y), ["x"], True),
        ([X, Y], ["x"], True),
        (X, ["x"], False),
        ([X], ["x"], False),
        ((X, None), ["x"], False),
        (((X, X), Y), ["x", "y"], True),
        (({"y": X, "x": X}, Y), ["x", "y"], True),
        ({"x": X, "labels": Y}, ["x"], True),
    ],
)
def test_forms_of_a_batch(item: Any, names: list[str], has_targets: bool) -> None:
    batch = batch_of(item, SIGNATURE, CPU)
    assert list(batch.call.kwargs) == names
    assert (batch.targets is not None, batch.size) == (has_targets, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data hold no batch"),
        ("photos", r"batches of \(inputs, targets\): got 'photos'"),
        (5, "batches of .* got 5"),
        ([(X, Y, Y)], r"got 3 parts. Several inputs are a tuple"),
        ([(X, Y[:3])], "a batch has 4 samples and 3 targets"),
        ([("text", Y)], "a tensor, a tuple or a dict: got str"),
        ([(np.zeros(3), Y)], "got ndarray"),
        ([((1, 2), Y)], "hold no tensor"),
        ([({1: X}, Y)], r"keyword arguments: got the keys \[1\]"),
        ([X[:0]], "holds no samples"),
        ((1 / 0 for _ in "a"), "could not be read: ZeroDivisionError: division by zero"),
    ],
)
def test_data_that_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(data)


def test_a_list_of_tensors_is_as_many_samples() -> None:
    pictures = [torch.zeros(3, 4, 4) for _ in range(5)]
    for targets in (None, [{"boxes": torch.zeros(2, 4)}] * 5):
        batch = batch_of(((pictures,), targets), SIGNATURE, CPU)
        assert batch.size == 5
        assert batch.part(0, 2) is None
    with pytest.raises(DataError, match="5 samples and 3 targets"):
        batch_of(((pictures,), [0, 1, 2]), SIGNATURE, CPU)


def test_no_sample_is_for_choosing_and_proving() -> None:
    data = DataLoader(TensorDataset(torch.arange(4000.0)[:, None]), batch_size=30, shuffle=True)
    select, certify = read(data).deal(lambda batch: True)
    chosen, proven = samples(select), samples(certify)
    assert SELECT_SAMPLES <= len(chosen) < SELECT_SAMPLES + 30
    assert sorted(chosen + proven) == list(range(4000))


def test_a_generator_is_read_once_and_only_as_far_as_needed() -> None:
    taken = []

    def endless() -> Iterator[Tensor]:
        for start in itertools.count(0, 100):
            taken.append(start)
            yield torch.arange(start, start + 100.0)[:, None]

    batches = read(endless())
    select, certify = batches.deal(lambda batch: True)
    assert batches.one_shot
    assert len(taken) == 21
    assert not set(samples(select)) & set(samples(itertools.islice(certify, 30)))
    assert taken == list(range(0, 100 * len(taken), 100))


@pytest.mark.parametrize("data", [[X], [X, X + 10], [(X, Y)]])
def test_a_few_batches_are_cut(data: Any) -> None:
    select, certify = read(data).deal(lambda batch: True)
    proving = list(certify)
    assert [batch.size for batch in select] == [1] * len(data)
    assert [batch.size for batch in proving] == [3] * len(data)
    assert len({*samples(select), *samples(proving)}) == 4 * len(data)
    if proving[0].targets is not None:
        assert proving[0].targets.tolist() == [1, 0, 1]


def test_a_module_of_one_batch_size_gets_whole_batches() -> None:
    select, certify = read([X, X + 10, X + 20]).deal(lambda batch: batch.size == 4)
    assert (samples(select), samples(certify)) == ([0, 2, 4, 6], [10, 12, 14, 16, 20, 22, 24, 26])
    for data in ([X], [X[:1]]):
        with pytest.raises(DataError, match=r"one batch of . that can't be cut in two"):
            read(data).deal(lambda batch: batch.size == 4)


def test_a_batch_that_was_there_counts_once() -> None:
    batches = read(itertools.cycle([X, X + 10, X]))
    select, certify = batches.deal(lambda batch: True)
    assert len(samples(select)) + len(samples(certify)) == 8
    assert batches.num_repeated == 4 * 100


def scores(metric: Any, outputs: Any, targets: Any, *, original: Any = None, size: int = 4) -> list[float]:
    batch = Batch(SIGNATURE.call((X,), {}), targets, size)
    return Scorer(metric, has_targets=targets is not None).scores(outputs, batch, original).tolist()


LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])


def test_the_metrics_with_a_name() -> None:
    assert scores("top1", LOGITS, Y) == scores(None, LOGITS, Y) == [1, 1, 0, 0]
    assert scores("top1", {"logits": LOGITS}, Y.tolist()) == scores("top1", (LOGITS, X), Y.numpy()) == [1, 1, 0, 0]
    # of logits the class counts, of other outputs how near they are
    assert scores(None, LOGITS, None, original=LOGITS * 3) == [1, 1, 1, 1]
    assert scores("agreement", LOGITS.flip(1), Y, original=LOGITS) == [0, 0, 0, 0]
    maps = torch.ones(4, 2, 3)
    moved = maps * torch.tensor([1.0, 1.04, 1.1, 1.0])[:, None, None]
    assert scores(None, moved, None, original=maps) == [1, 1, 0, 1]
    # regression, and a state that has no row for each sample
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert scores(None, values * 1.02, None, original=values) == [1, 1, 1, 1]
    assert scores(None, (values, torch.ones(2, 4)), None, original=(values, torch.zeros(2, 4))) == [0, 0, 0, 0]
    masked = maps.index_fill(1, torch.tensor([0]), -torch.inf)
    assert scores(None, masked, None, original=masked) == [1, 1, 1, 1]


def test_a_metric_of_ones_own_gets_targets_or_what_the_original_computed() -> None:
    assert scores(lambda outputs, targets: (outputs[:, 0] / 2).clamp(0, 1), LOGITS, Y) == [1, 0, 0, 0.5]
    assert scores(lambda outputs, original: outputs[:, 0] == original[:, 0], LOGITS, None, original=LOGITS) == [1] * 4


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "message"),
    [
        (lambda outputs, targets: outputs.mean(), LOGITS, Y, r"returned the shape \[\] for a batch of 4"),
        (lambda outputs, targets: outputs, LOGITS, Y, r"returned the shape \[4, 2\]"),
        (lambda outputs, targets: 2 * targets, LOGITS, Y, r"a score outside \[0, 1\]: got 2"),
        (lambda outputs, targets: targets * torch.nan, LOGITS, Y, r"outside \[0, 1\]: got nan"),
        (lambda outputs, targets: "good", LOGITS, Y, "returned no numbers: got str"),
        (lambda outputs, targets: targets.none, LOGITS, Y, "failed: AttributeError"),
        ("top1", LOGITS[:, :1], Y, r"needs outputs of floats \[B, K\], K ≥ 2: got float32 \[4, 1\]"),
        ("top1", None, Y, "got no tensor"),
        ("top1", LOGITS, Y * 7, "none of the module's 2 classes: got 7"),
        ("top1", LOGITS, Y * 0.5, r"an integer for each of 4 samples as targets: got float32 \[4\]"),
        ("agreement", LOGITS[None, :, :1], None, r"with a tensor of floats \[B, …\], B = 4: got \[\[1, 4, 1\]\]"),
        ("top1", LOGITS, None, "needs targets, and the data have none"),
    ],
)
def test_metrics_that_are_refused(metric: Any, outputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scores(metric, outputs, targets, original=outputs)


def test_names_of_metrics_that_are_none() -> None:
    with pytest.raises(ConfigError, match=r"got 'top5'\. Did you mean 'top1'"):
        Scorer("top5", has_targets=True)
    with pytest.raises(ConfigError, match="Give a name or a function"):
        Scorer(5, has_targets=True)  # type: ignore[arg-type]
