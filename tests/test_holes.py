"""Sparse files are refused, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vivace import holes
from vivace.errors import BundleError
from vivace.files import read_regular, sha256_of
from vivace.holes import MAX_SPARSITY, SPARSE_BYTES, check_solid
from vivace.manifest import check_files
from vivace.runtimes.openvino_graph import check_ir


def made(path: Path, size: int, *pieces: int) -> Path:
    """A file of `size` bytes with a KiB of data at each of the places."""
    with path.open("wb") as file:
        for place in pieces:
            file.seek(place)
            file.write(b"x" * 1024)
        file.truncate(size)
    return path


def refused(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            check_solid(file.fileno())
        except OSError:
            return True
        finally:
            assert file.tell() == 0
    return False


@pytest.mark.parametrize("pieces", [(), (0,), (2**30,), (0, 2**29, 2**30)])
def test_a_large_sparse_file_is_refused(tmp_path: Path, pieces: tuple[int, ...]) -> None:
    path = made(tmp_path / "x", 2**31, *pieces)
    assert refused(path)
    with pytest.raises(OSError, match="holes"):
        sha256_of(path)
    with pytest.raises(OSError, match="holes"):
        read_regular(path, 2**40)


def test_small_and_dense_files_are_accepted(tmp_path: Path) -> None:
    assert not refused(made(tmp_path / "small", SPARSE_BYTES, 0))
    path = made(tmp_path / "large", SPARSE_BYTES + 4096)
    assert refused(path)
    with path.open("r+b") as file:
        file.write(b"x" * (2 * SPARSE_BYTES // MAX_SPARSITY))
    assert not refused(path)


def test_without_support_for_holes_all_files_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "x", 2**31)

    def refuse(descriptor: int, position: int, whence: int) -> int:
        if whence != os.SEEK_SET:
            raise OSError(22, "Invalid argument")
        return lseek(descriptor, position, whence)

    lseek = os.lseek
    monkeypatch.setattr(holes.os, "lseek", refuse)
    assert not refused(path)


def test_a_bundle_with_a_sparse_file_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    made(tmp_path / "model.safetensors", 2**38, 0)
    with pytest.raises(BundleError, match=r"model\.safetensors can't be read \(.* almost only holes\)"):
        check_files(tmp_path, {"model.safetensors": {"bytes": 2**38, "sha256": "0" * 64}})


def test_a_sparse_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the graph can't be read: .* almost only holes"):
        check_ir(made(tmp_path / "model.xml", 2**27))
