from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.data import loader
from vivace.data.loader import Batch, Batches, iterate_eval
from vivace.errors import ConfigError, DataError


def arrays(count: int, *, num_classes: int = 3, side: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Images whose pixels encode their position, and cyclic labels."""
    images_NHWC = np.zeros((count, side, side, 3), dtype=np.uint8)
    images_NHWC[..., 0] = (np.arange(count) % 256)[:, None, None]
    images_NHWC[..., 1] = (np.arange(count) // 256)[:, None, None]
    images_NHWC[..., 2] = np.arange(side)
    return images_NHWC, np.arange(count) % num_classes


def positions(batch: Batch) -> list[int]:
    """Where the pixels of a batch come from."""
    first = batch.images_BCHW[:, :, 0, 0].long()
    return (first[:, 0] + 256 * first[:, 1]).tolist()


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def seen(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    return [positions(batch) for batch in batches.epoch(epoch, start=start)]


@pytest.fixture(params=[True, False], ids=["resident", "mapped"])
def resident(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A read-only memory map of 600 images, and their labels."""
    images_NHWC, labels_N = arrays(600)
    np.save(tmp_path / "images.npy", images_NHWC)
    return np.load(tmp_path / "images.npy", mmap_mode="r"), labels_N


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vivace-prefetch")]


@pytest.mark.parametrize("num_images", [10, 11, 12, 13, 14, 15])
def test_an_epoch_holds_every_image_once_with_its_label(num_images: int, resident: bool) -> None:
    images_NHWC, labels_N = arrays(num_images)
    batches = Batches(images_NHWC, labels_N, batch_size=5, resident=resident)
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches)
    assert sorted(flat(map(positions, epoch))) == list(range(num_images))
    for batch in epoch:
        assert positions(batch) == batch.indices_B.tolist()
        assert batch.labels_B.tolist() == labels_N[batch.indices_B].tolist()
        assert torch.equal(batch.images_BCHW.permute(0, 2, 3, 1), torch.from_numpy(images_NHWC[batch.indices_B]))


@pytest.mark.parametrize("num_images", [180, 256, 257, 128])
def test_epochs_are_counted_by_images(num_images: int) -> None:
    batches = Batches(*arrays(num_images), batch_size=128)
    sizes = [len(batch.labels_B) for batch in (*batches.epoch(0), *batches.epoch(1))]
    for steps in range(len(sizes) + 1):
        assert batches.epochs_of(steps) == pytest.approx(sum(sizes[:steps]) / num_images)


def test_batches_are_uint8_with_channels_last_strides(mapped: tuple[np.ndarray, np.ndarray], resident: bool) -> None:
    for batch in [*Batches(*mapped, batch_size=100, resident=resident).epoch(0), *iterate_eval(*mapped, batch_size=70)]:
        assert batch.images_BCHW.dtype == torch.uint8
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels_B.dtype == batch.indices_B.dtype == torch.int64


def test_the_order_depends_on_the_seed_and_the_epoch_alone(resident: bool) -> None:
    data = arrays(40)
    first = Batches(*data, batch_size=8, seed=3, resident=resident)
    assert seen(first, 1) != seen(first, 0)
    # the order is the same when it is requested again, by a new object and out of sequence
    assert seen(Batches(*data, batch_size=8, seed=3), 1) == seen(first, 1)
    assert seen(Batches(*data, batch_size=8, seed=4), 1) != seen(first, 1)


def test_the_order_of_a_seed_never_changes_between_versions() -> None:
    # a run that is resumed by a newer version must continue with the same images
    batches = Batches(*arrays(12), batch_size=4, seed=1)
    assert batches.order(0).tolist() == [8, 11, 4, 7, 5, 0, 1, 9, 2, 10, 6, 3]


def test_the_mapped_order_is_the_resident_order(mapped: tuple[np.ndarray, np.ndarray]) -> None:
    from_map = list(Batches(*mapped, batch_size=64, resident=False).epoch(2))
    in_memory = list(Batches(*mapped, batch_size=64, resident=True).epoch(2))
    assert len(from_map) == len(in_memory)
    for left, right in zip(from_map, in_memory, strict=True):
        assert torch.equal(left.images_BCHW, right.images_BCHW)
        assert torch.equal(left.labels_B, right.labels_B)
        assert torch.equal(left.indices_B, right.indices_B)


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_start_continues_an_epoch_where_it_stood(start: int, resident: bool) -> None:
    batches = Batches(*arrays(40), batch_size=8, resident=resident)
    assert seen(batches, 3, start) == seen(batches, 3)[start:]


def test_batches_before_start_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(*arrays(40), batch_size=8, resident=False)
    read: list[int] = []
    gather = batches._gather
    monkeypatch.setattr(batches, "_gather", lambda chunk: (read.append(len(chunk)), gather(chunk))[1])
    assert len(seen(batches, 0, 3)) == 2
    assert len(read) == 2


def test_only_the_given_indices_are_used(resident: bool) -> None:
    indices = np.array([1, 5, 7, 30, 39])
    batches = Batches(*arrays(40), indices=indices, batch_size=2, resident=resident)
    assert batches.num_images == 5
    assert sorted(flat(seen(batches, 0))) == indices.tolist()


def test_a_last_batch_of_one_joins_the_one_before(resident: bool) -> None:
    data = arrays(11)
    assert [len(batch) for batch in seen(Batches(*data, batch_size=5, resident=resident), 0)] == [5, 6]
    in_order = Batches(*data, batch_size=5, shuffle=False, resident=resident)
    assert [len(batch) for batch in seen(in_order, 0)] == [5, 5, 1]
    assert len(in_order) == 3


def test_without_shuffle_images_come_in_the_given_order(resident: bool) -> None:
    batches = Batches(*arrays(9), indices=np.array([7, 2, 5]), batch_size=2, shuffle=False, resident=resident)
    assert seen(batches, 0) == seen(batches, 1) == [[7, 2], [5]]


def test_balanced_epochs_hold_every_class_equally_often(resident: bool) -> None:
    images_NHWC, _ = arrays(100)
    labels_N = np.array([0] * 90 + [1] * 7 + [2] * 3)
    batches = Batches(images_NHWC, labels_N, batch_size=10, balanced=True, num_classes=3, resident=resident)
    epoch = list(batches.epoch(0))
    counts = torch.bincount(torch.cat([batch.labels_B for batch in epoch]))
    assert counts.sum() == batches.num_images == 100
    assert counts.max() - counts.min() <= 1
    # classes are mixed: no batch has a single class
    assert min(len(batch.labels_B.unique()) for batch in epoch) > 1
    assert seen(batches, 0) == seen(batches, 0) != seen(batches, 1)


def test_balanced_draws_use_all_images_of_a_class_over_the_epochs() -> None:
    images_NHWC, _ = arrays(40)
    labels_N = np.array([0] * 30 + [1] * 10)
    batches = Batches(images_NHWC, labels_N, indices=np.arange(2, 40), batch_size=8, balanced=True)
    drawn = np.concatenate([batches.order(epoch) for epoch in range(20)])
    assert set(drawn.tolist()) == set(range(2, 40))


def test_images_too_large_for_memory_are_read_from_the_map(
    mapped: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    images_NHWC, labels_N = mapped
    monkeypatch.setattr(loader, "available_memory_bytes", lambda: 4 * images_NHWC.nbytes)
    assert Batches(images_NHWC, labels_N, batch_size=64).resident
    monkeypatch.setattr(loader, "available_memory_bytes", lambda: 4 * images_NHWC.nbytes - 4)
    batches = Batches(images_NHWC, labels_N, batch_size=64)
    assert not batches.resident
    assert len(seen(batches, 0)) == len(batches)
    assert prefetch_threads() == []


def test_an_error_of_the_reading_thread_is_raised_where_the_batch_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = Batches(*arrays(60), batch_size=5, resident=False)
    gather, calls = batches._gather, []

    def fail_later(chunk: np.ndarray) -> Batch:
        calls.append(chunk)
        if len(calls) == 4:
            raise OSError(5, "Input/output error")
        return gather(chunk)

    monkeypatch.setattr(batches, "_gather", fail_later)
    received = []
    with pytest.raises(OSError, match="Input/output error"):
        received.extend(batch for batch in batches.epoch(0))
    assert prefetch_threads() == []
    assert len(calls) <= 4 + loader.PREFETCH


def test_an_abandoned_epoch_ends_its_thread() -> None:
    batches = Batches(*arrays(600), batch_size=5, resident=False)
    iterator = batches.epoch(0)
    next(iterator)
    assert len(prefetch_threads()) == 1
    iterator.close()
    assert prefetch_threads() == []
    for _ in batches.epoch(0):
        break  # as an engine does that has done its last step
    assert prefetch_threads() == []


def test_what_was_to_be_read_ahead_is_dropped_with_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(*arrays(60), batch_size=5, resident=False)
    gather, read = batches._gather, []
    closing = threading.Event()

    def slow(chunk: np.ndarray) -> Batch:
        read.append(1)
        if len(read) > 1:
            # the epoch is abandoned in the middle of the second read
            closing.wait(5)
        return gather(chunk)

    monkeypatch.setattr(batches, "_gather", slow)
    iterator = batches.epoch(0)
    next(iterator)
    threading.Timer(0.1, closing.set).start()
    iterator.close()
    assert len(read) <= 2


def test_the_thread_reads_ahead_but_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(*arrays(600), batch_size=5, resident=False)
    gather, read = batches._gather, threading.Semaphore(0)
    monkeypatch.setattr(batches, "_gather", lambda chunk: (read.release(), gather(chunk))[1])
    iterator = batches.epoch(0)
    next(iterator)
    for _ in range(1 + loader.PREFETCH):
        assert read.acquire(timeout=200)
    # no more, however long one waits
    assert not read.acquire(timeout=0.1)
    iterator.close()


def test_a_resident_copy_is_apart_from_the_array() -> None:
    images_NHWC, labels_N = arrays(8)
    batches = Batches(images_NHWC, labels_N, batch_size=4, resident=True)
    before = seen(batches, 0)
    images_NHWC[:] = 0
    assert seen(batches, 0) == before


def test_evaluation_sees_all_images_once_and_in_order(mapped: tuple[np.ndarray, np.ndarray]) -> None:
    batches = list(iterate_eval(*mapped, batch_size=250))
    assert [len(batch.labels_B) for batch in batches] == [250, 250, 100]
    assert flat(map(positions, batches)) == list(range(600))
    assert torch.cat([batch.indices_B for batch in batches]).tolist() == list(range(600))
    assert torch.cat([batch.labels_B for batch in batches]).tolist() == mapped[1].tolist()


def test_evaluation_of_chosen_indices_keeps_their_order(mapped: tuple[np.ndarray, np.ndarray]) -> None:
    chosen = np.array([599, 3, 300, 3, 17])
    batches = list(iterate_eval(*mapped, batch_size=2, indices=chosen))
    assert flat(map(positions, batches)) == chosen.tolist()
    assert torch.cat([batch.labels_B for batch in batches]).tolist() == mapped[1][chosen].tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size is out of range: got 0. Give a value in [2, inf)."),
        ({"batch_size": 1}, ConfigError, "batch_size is out of range: got 1. Give a value in [2, inf)."),
        (
            {"batch_size": 4, "balanced": True, "shuffle": False},
            ConfigError,
            "balanced sampling is random: got shuffle=False. Give shuffle=True.",
        ),
        (
            {"batch_size": 4, "indices": np.array([], dtype=np.int64)},
            DataError,
            "too few images for a batch: got 0. Give at least 2.",
        ),
        (
            {"batch_size": 4, "indices": np.array([3])},
            DataError,
            "too few images for a batch: got 1. Give at least 2.",
        ),
        (
            {"batch_size": 4, "num_classes": 2},
            DataError,
            "a label is out of range: got 0 to 2 for 2 classes. Give labels from 0 to 1.",
        ),
    ],
)
def test_what_can_not_be_batched_is_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Batches(*arrays(10), **options)
    assert str(caught.value) == message


def test_images_and_labels_that_differ_in_number_are_refused() -> None:
    images_NHWC, labels_N = arrays(10)
    with pytest.raises(DataError, match="images and labels differ in number: got 10 and 9"):
        Batches(images_NHWC, labels_N[:9], batch_size=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_lie_on_the_device(mapped: tuple[np.ndarray, np.ndarray], resident: bool) -> None:
    on_cpu = Batches(*mapped, batch_size=64)
    on_gpu = Batches(*mapped, batch_size=64, device="cuda", resident=resident)
    for left, right in zip(on_cpu.epoch(1), on_gpu.epoch(1), strict=True):
        assert right.images_BCHW.is_cuda
        assert right.labels_B.is_cuda
        assert right.indices_B.is_cuda
        assert right.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(left.images_BCHW, right.images_BCHW.cpu())
        assert torch.equal(left.labels_B, right.labels_B.cpu())
