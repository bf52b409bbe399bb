"""What would break the proof for a module is noticed: repeated samples, metrics that cheat, samples that are mixed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_modules import SPEEDS, Net, accelerate, exact, images, labelled, made, tell_speeds
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, TensorDataset

from vivace.acceleration.modules.batches import Batch, Batches, batch_of
from vivace.acceleration.modules.digests import sample_digests
from vivace.acceleration.modules.metric_checks import check_metric
from vivace.acceleration.modules.metrics import Scorer
from vivace.acceleration.modules.signature import Signature
from vivace.errors import DataError, ModelError

CPU = torch.device("cpu")
X, Y = torch.arange(16.0).reshape(8, 2), torch.tensor([0, 1] * 4)


class Same(nn.Module):
    def forward(self, x: Tensor, y: Any = None) -> Tensor:
        return x


SIGNATURE = Signature(Same())


@pytest.fixture
def openvino_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino int8", "eager bf16"):
        monkeypatch.delitem(SPEEDS, name)
    tell_speeds(monkeypatch)


def counted(data: Any, **options: Any) -> tuple[Batches, list[float]]:
    """The first values of the samples that count, in order."""
    batches = Batches(data, SIGNATURE, CPU, **options)
    select, certify = batches.deal(lambda batch: True)
    found = []
    for batch in [*select, *certify]:
        rows = batch.call.kwargs["x"]
        found += [float(row[0]) for row in (rows if batch.counted_B is None else rows[batch.counted_B])]
    return batches, sorted(found)


def test_a_sample_that_was_in_another_batch_counts_once() -> None:
    once = [float(row[0]) for row in X]
    data = ConcatDataset([TensorDataset(X)] * 10)
    batches, found = counted(DataLoader(data, 3, shuffle=True, generator=torch.Generator().manual_seed(0)))
    assert (found, batches.num_repeated) == (once, 72)
    assert batches.notices() == ["72 samples were there before: each counts once"]

    def drawn() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield X[torch.randint(0, 8, (4,), generator=generator)]

    # without an end, and with replacement
    assert counted(drawn())[1] == once


def test_samples_are_equal_where_all_that_a_call_says_of_them_is() -> None:
    def digests(*inputs: Any) -> list[bytes]:
        return sample_digests(SIGNATURE.call(inputs, {}), 2)

    one, two = X[:2], X[2:4]
    assert digests(one)[0] == digests(torch.stack([one[0], two[0]]))[0]
    assert len({*digests(one), *digests(two), *digests(one, two), *digests(one, 1), *digests(one, 2)}) == 10
    # a list has an item for each sample, unless it is several inputs
    assert digests(one, ["a", "b"])[0] == digests(one, ["a", "c"])[0] != digests(one, ["b", "a"])[0]
    three = torch.zeros(3)
    assert digests([three, three])[1] == digests([three + 1, three])[1] != digests([three, three + 1])[1]
    assert len({*digests([one, two]), *digests([two, one])}) == 4
    # nothing has a row for each sample: the batch as a whole, whose samples differ
    assert digests(X) == digests(X.clone()) != digests(X + 1)
    assert len(set(digests(X))) == 2
    assert not {*digests(one.to_sparse())} & {*digests(one.to_sparse())}


def test_a_loader_may_write_the_next_batch_into_the_memory_of_the_last() -> None:
    def reused() -> Iterator[Any]:
        inputs, targets, array = torch.empty(2, 2), torch.empty(2, dtype=torch.long), np.zeros(2)
        for start in range(0, 8, 2):
            inputs.copy_(X[start : start + 2])
            targets.copy_(Y[start : start + 2] + start)
            array[:] = start
            yield inputs, {"label": targets, "more": [array]}

    select, certify = Batches(reused(), SIGNATURE, CPU).deal(lambda batch: batch.size == 2)
    found = sorted([*select, *certify], key=lambda batch: float(batch.call.kwargs["x"][0, 0]))
    assert torch.equal(torch.cat([batch.call.kwargs["x"] for batch in found]), X)
    assert [batch.targets["label"].tolist() for batch in found] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [batch.targets["more"][0].tolist() for batch in found] == [[0, 0], [2, 2], [4, 4], [6, 6]]


class Failing(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield X[0], Y[0]
        raise OSError("bad file\nand more")


def test_what_a_worker_of_a_loader_raises_is_told() -> None:
    with pytest.raises(DataError, match=r"the data could not be read: OSError: bad file\. Batches"):
        Batches(DataLoader(Failing(), 2), SIGNATURE, CPU)
    raised = OSError("Caught KeyError in DataLoader worker process 0.\nOriginal Traceback:\n  x.py\nKeyError: 'gone'")

    def failing() -> Iterator[Any]:
        raise raised
        yield

    with pytest.raises(DataError, match=r"could not be read: KeyError: 'gone'\. Batches"):
        Batches(failing(), SIGNATURE, CPU)


def test_samples_that_were_calibrated_on_prove_nothing(openvino_alone: None) -> None:
    data = images(320)
    result = accelerate(made(Net), data, metric=exact, calibration=data[4:6])
    assert (result.accelerated, result.num_certify_samples) == (True, 192)
    assert "64 samples are in `calibration`, which was fitted to them: none counts" in result.warnings


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (lambda: images(320), "all samples of the data are in `calibration`"),
        (list, "`calibration` holds no batch"),
        (lambda: [3], r"`calibration`: batches of \(inputs, targets\) are needed: got int"),
        (lambda: [torch.full((2, 3, 12, 12), torch.nan)], "`calibration` holds NaN"),
        (lambda: [torch.ones(2, 1, 3, 3)], r"`calibration` does not fit: the module failed on a batch of 2"),
        (lambda: (1 / 0 for _ in "a"), "`calibration` could not be read: ZeroDivisionError: division by zero"),
    ],
)
def test_calibration_that_is_refused(calibration: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        accelerate(made(Net), images(160), calibration=calibration())


LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def checked(metric: Any, targets: Any = Y, outputs: Tensor = LOGITS) -> tuple[list[str], Scorer, Batch]:
    scorer = Scorer(metric, has_targets=targets is not None)
    batch = batch_of((X, targets), SIGNATURE, CPU)
    return check_metric(scorer, outputs.clone(), batch), scorer, batch


def changes_outputs(outputs: Tensor, targets: Any) -> Tensor:
    return outputs.clamp_(0, 1)[:, 0]


def changes_targets(outputs: Tensor, targets: Any) -> Any:
    targets -= 1
    return outputs[:, 0].sigmoid()


def distance(outputs: Tensor, original: Tensor) -> Tensor:
    return (outputs - original).norm(dim=1).clamp(0, 1)


class Nameless:
    @property
    def __name__(self) -> str:
        raise RuntimeError

    def __call__(self, outputs: Tensor, targets: Any) -> Tensor:
        return outputs.softmax(1)[:, 0]


def test_a_metric_may_be_an_object_without_a_name() -> None:
    assert checked(Nameless())[1].name == "Nameless"


CALLS: list[int] = []


def by_the_clock(outputs: Tensor, targets: Any) -> Tensor:
    CALLS.append(0)
    return torch.full((len(outputs),), (len(CALLS) % 2) / 2)


@pytest.mark.parametrize(
    ("metric", "targets", "message"),
    [
        (changes_outputs, Y, "changes_outputs changes its outputs in place"),
        (changes_targets, Y, "changes_targets changes its targets in place"),
        (changes_targets, Y.numpy(), "changes_targets changes its targets in place"),
        (by_the_clock, Y, r"gives other scores when it is called again with the same outputs: 0\.5 and 0\."),
        (distance, None, r"distance is lower for the module's outputs \(0\) than .* Of a loss in \[0, 1\], return 1 -"),
        (lambda outputs, targets: torch.ones(8, dtype=torch.complex64), Y, "returned no numbers: got Tensor"),
        ("top1", Y - 1, "none of the module's 3 classes: got -1. Correct it; of data without labels, `metric="),
        ("top1", ["cat"] * 8, "an integer for each of 8 samples as targets: got "),
        ("top1", Y + 0.5, "an integer for each of 8 samples as targets: got float32"),
    ],
)
def test_metrics_that_break_a_proof_are_refused(metric: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(metric, targets)


def test_doubtful_metrics_are_told_of() -> None:
    right = LOGITS.argmax(1)
    (said,), *_ = checked(lambda outputs, targets: (outputs.argmax(1) != targets).half(), right)
    assert "is lower for the module's outputs (0) than for those of other samples" in said
    assert said.endswith("If it is a loss, return 1 - loss: a drop of it is no harm")
    (said,), *_ = checked(lambda outputs, targets: np.full(8, 0.25))
    assert "is 0.25 for each sample of the first batch, whatever the outputs are" in said
    # of one class, all right: the metric does see the outputs
    of_class = LOGITS.index_fill(1, torch.tensor([1]), 9.0)
    assert checked(lambda outputs, targets: outputs.argmax(1) == targets, torch.ones(8), of_class)[0] == []
    for honest in (
        lambda outputs, targets: [one.requires_grad_() for one in (outputs.argmax(1) == targets).float()],
        lambda outputs, targets: outputs.softmax(1)[range(8), targets].bfloat16(),
        lambda outputs, targets: (outputs.argmax(1) == targets).numpy(),
    ):
        assert checked(honest, right)[0] == []
    # whole numbers, as some data sets have them
    assert checked("top1", right.float())[1].scores(LOGITS, batch_of((X, right.float()), SIGNATURE, CPU), None).all()


def test_one_batch_and_no_time_are_undecided(openvino_alone: None) -> None:
    result = accelerate(made(Net), images(64, 64), metric=exact, within=0.01)
    assert (result.accelerated, result.status) == (False, "undecided")


def ranks(outputs: Tensor, targets: Any) -> Tensor:
    return outputs[:, 0].argsort().argsort() / len(outputs)


def test_scores_that_depend_on_the_batch_count_once_a_batch() -> None:
    (said,), scorer, batch = checked(ranks)
    assert "scores a sample by the others in its batch" in said
    assert scorer.units(np.arange(8.0), batch).tolist() == [3.5]
    of_four = Batch(batch.call, batch.targets, 8, np.array([True] * 4 + [False] * 4))
    assert scorer.units(np.arange(8.0), of_four).tolist() == [1.5]
    assert not checked(lambda outputs, targets: outputs[:, 0].sigmoid())[1].by_batch


class OfTheBatch(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(4, track_running_stats=False), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(1)
        return self.norm(self.body(images))


def test_a_module_that_mixes_samples_is_compared_by_batches(openvino_alone: None) -> None:
    module = made(OfTheBatch)
    # one image alone would not show it
    result = accelerate(module, images(320, 8), metric=exact, max_drop=60.0, example=images()[0][:2])
    assert any("depend on the other samples of the batch" in warning for warning in result.warnings)
    assert any("its forward changes 'calls'" in warning for warning in result.warnings)
    assert any("its forward draws random numbers" in warning for warning in result.warnings)
    assert result.num_certify_samples == 30
    assert module.calls == 0


def test_an_accelerated_module_refuses_what_its_program_would_not_follow(openvino_alone: None) -> None:
    module = made(Net)
    faster = accelerate(module, images(), metric=exact).module
    outer, batch = nn.Sequential(faster), images()[0]
    expected = faster(batch)
    with pytest.raises(ModelError, match=r"is accelerated already\. Give the one that it replaces"):
        accelerate(faster, images())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(faster, batch)
    # not what the program computed as it was traced
    assert torch.allclose(traced(batch + 1), module(batch + 1), atol=1e-4)
    # what changes nothing
    outer.to("cpu").float().load_state_dict(outer.state_dict())
    assert torch.equal(outer(batch), expected)
    with pytest.raises(TypeError, match=r"compiled for float32 on cpu, got float16 on cpu\. Convert the original"):
        outer.half()
    other = {name: tensor + 1 for name, tensor in outer.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"differs from the weights that the accelerated module was compiled with"):
        outer.load_state_dict(other)
    assert torch.equal(outer(batch), expected)
    assert torch.equal(faster.original.body[0].weight, module.body[0].weight)


def test_repeated_samples_do_not_tighten_a_bound(openvino_alone: None) -> None:
    module = made(Net)
    data = labelled(module, images(320))
    loader = DataLoader(ConcatDataset([TensorDataset(*map(torch.cat, zip(*data, strict=True)))] * 3), 32, shuffle=True)
    result = accelerate(module, loader, metric="top1")
    assert 200 < result.num_certify_samples < 320
    assert any("samples were there before" in warning for warning in result.warnings)
