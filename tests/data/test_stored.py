"""Images in a file: indexed like an array, verified block by block; damage is an error and never kills the process."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vivace.data.caching import stored
from vivace.data.caching.stored import StoredImages, checksums, first_changed_block
from vivace.errors import CacheDamaged


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    array = np.random.default_rng(0).integers(0, 256, (50, 5, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    return array


@pytest.mark.parametrize(
    "rows",
    [
        0,
        -1,
        np.int64(7),
        slice(None),
        slice(3, 20),
        slice(40, 3, -7),
        slice(10, 10),
        [],
        [4],
        [3, 4, 5, 1, 2, 49, 49, -50],
        np.array([30, 31, 32, 2]),
        np.array([], dtype=np.int64),
        np.arange(50) % 3 == 0,
        np.zeros(50, dtype=bool),
    ],
    ids=str,
)
def test_stored_images_index_like_an_array(images: np.ndarray, tmp_path: Path, rows: Any) -> None:
    found, expected = StoredImages(tmp_path / "x.npy")[rows], images[rows]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    # torch warns of read-only arrays
    assert found.flags.writeable


@pytest.mark.parametrize("rows", [50, -51, [0, 50], np.ones(49, dtype=bool)], ids=str)
def test_a_row_out_of_range_is_an_error(images: np.ndarray, tmp_path: Path, rows: Any) -> None:
    with pytest.raises(IndexError, match="there are 50 images"):
        StoredImages(tmp_path / "x.npy")[rows]


def test_stored_images_have_the_attributes_of_an_array(images: np.ndarray, tmp_path: Path) -> None:
    found = StoredImages(tmp_path / "x.npy")
    assert (found.shape, found.dtype, found.ndim, found.nbytes) == (
        images.shape,
        images.dtype,
        images.ndim,
        images.nbytes,
    )
    for one, other in zip(found, images, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.array(found), images)
    np.testing.assert_array_equal(np.asarray(found, dtype=np.float32), images)


def test_zero_images_are_allowed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.empty((0, 5, 4, 3), dtype=np.uint8))
    assert np.array(StoredImages(tmp_path / "x.npy")).shape == (0, 5, 4, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3, 3), np.uint8),
        np.zeros((2, 3, 3, 3), np.int8),
        np.asfortranarray(np.zeros((2, 3, 4, 3), np.uint8)),
    ],
)
def test_what_holds_no_images_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=r"x\.npy holds"):
        StoredImages(tmp_path / "x.npy")


@pytest.mark.parametrize("size", [127, 128, 3000, 3127, 3129])
def test_a_file_whose_length_differs_from_its_header_is_refused(images: np.ndarray, tmp_path: Path, size: int) -> None:
    os.truncate(tmp_path / "x.npy", size)
    with pytest.raises(ValueError, match=r"bytes|header"):
        StoredImages(tmp_path / "x.npy")


@pytest.mark.parametrize("size", [0, 128, 1000])
def test_a_truncated_file_is_an_error_and_does_not_kill_the_process(
    images: np.ndarray, tmp_path: Path, size: int
) -> None:
    found = StoredImages(tmp_path / "x.npy")
    os.truncate(tmp_path / "x.npy", size)
    with pytest.raises(
        CacheDamaged, match=rf"^the cache was damaged while .*x\.npy \(it ends at byte {size:,}\)\. Start"
    ):
        found[20:]
    assert CacheDamaged("").exit_status == 1


def test_a_disk_that_fails_is_an_error(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    found = StoredImages(tmp_path / "x.npy")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CacheDamaged, match=r"\(Input/output error\)"):
        found[0]


def test_short_reads_are_continued(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    # as a single call does for more than 2 GiB
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:7]], offset))
    np.testing.assert_array_equal(StoredImages(tmp_path / "x.npy")[[3, 4, 9]], images[[3, 4, 9]])


def test_a_file_that_replaces_it_is_ignored(images: np.ndarray, tmp_path: Path) -> None:
    found = StoredImages(tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", np.zeros_like(images))
    (tmp_path / "y.npy").replace(tmp_path / "x.npy")
    np.testing.assert_array_equal(np.array(found), images)


def test_stored_images_are_pickled_as_a_reference(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(StoredImages(Path("x.npy")))
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(np.array(pickle.loads(pickled)), images)
    np.save(tmp_path / "y.npy", images)
    (tmp_path / "y.npy").replace(tmp_path / "x.npy")
    with pytest.raises(CacheDamaged, match="it was replaced by another file"):
        pickle.loads(pickled)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(CacheDamaged, match="No such file"):
        pickle.loads(pickled)


def test_the_file_is_closed_with_the_object(images: np.ndarray, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(10):
        StoredImages(tmp_path / "x.npy")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_changed_byte_is_found_in_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "BLOCK_BYTES", 100)
    contents = np.random.default_rng(0).integers(0, 256, 950, dtype=np.uint8)
    contents.tofile(tmp_path / "x")
    expected = checksums(tmp_path / "x")
    assert len(expected) == 10
    assert first_changed_block(tmp_path / "x", expected) is None
    for position in (0, 99, 100, 555, 949):
        changed = contents.copy()
        changed[position] ^= 4
        changed.tofile(tmp_path / "y")
        assert first_changed_block(tmp_path / "y", expected) == position // 100
    # two blocks swapped
    swapped = np.concatenate([contents[100:200], contents[:100], contents[200:]])
    swapped.tofile(tmp_path / "y")
    assert first_changed_block(tmp_path / "y", expected) == 0
