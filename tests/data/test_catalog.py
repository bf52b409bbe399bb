"""Named data sets: torchvision's real download code against a local server."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from vivace.data.layouts.catalog import _TORCHVISION, open_named
from vivace.errors import DownloadError


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """(folder, address) of files served over HTTP."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def idx(array: np.ndarray) -> bytes:
    """MNIST's own format, compressed."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + b"".join(struct.pack(">I", side) for side in array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def mnist(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, address = server
    rng = np.random.default_rng(0)
    resources = []
    for name, count in (("train", 20), ("t10k", 10)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", (np.arange(count) % 10).astype(np.uint8)),
        ):
            file = folder / f"{name}-{kind}-ubyte.gz"
            file.write_bytes(idx(array))
            resources.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return folder


def test_an_array_data_set_is_downloaded_checked_and_read(mnist: Path, tmp_path: Path) -> None:
    source = open_named("mnist", tmp_path / "root")
    assert source.channels == 1
    assert len(source.classes) == 10
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 20, "test": 10}
    arrays = source.splits["test"].arrays
    assert arrays is not None
    assert arrays.shape == (10, 28, 28, 1)
    assert arrays.dtype == np.uint8


def test_what_is_there_is_not_downloaded_again(mnist: Path, tmp_path: Path) -> None:
    open_named("mnist", tmp_path / "root")
    for file in mnist.iterdir():
        file.unlink()
    assert len(open_named("mnist", tmp_path / "root").splits["train"]) == 20


def test_a_wrong_checksum_is_refused_and_the_file_removed(mnist: Path, tmp_path: Path) -> None:
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"the data set mnist .* or put its files into .*root/mnist"):
        open_named("mnist", tmp_path / "root")
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == []


def test_a_missing_file_on_the_server_is_reported(mnist: Path, tmp_path: Path) -> None:
    (mnist / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DownloadError, match="the data set mnist could not be downloaded"):
        open_named("mnist", tmp_path / "root")


def test_no_network_is_reported_and_the_users_own_files_stay(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nothing listens there
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    kept = tmp_path / "root" / "mnist" / "notes.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    with pytest.raises(DownloadError, match="Connect to the network, or put its files into"):
        open_named("mnist", tmp_path / "root")
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == [kept]


def test_a_data_set_of_files_is_downloaded_and_read(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    tree = tmp_path / "imagenette2-160"
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            place = tree / split / wnid
            place.mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (20, 20), (index * 40, 9, 9)).save(place / f"{index}.JPEG")
                (place / f"{index}.JPEG").rename(place / f"{index}.jpeg")
    archive = folder / "imagenette2-160.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, tree.name)
    checksum = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", {"160px": (address + archive.name, checksum)})
    source = open_named("imagenette", tmp_path / "root")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "val": 6}
    assert source.classes[:1] == ("tench",)
    assert source.splits["train"].paths is not None


def test_every_name_is_a_class_of_torchvision() -> None:
    for name, row in _TORCHVISION.items():
        assert hasattr(torchvision.datasets, row.dataset), name
    assert {
        "cifar10",
        "cifar100",
        "mnist",
        "fashion-mnist",
        "svhn",
        "eurosat",
        "flowers102",
        "food101",
        "imagenette",
    } <= set(_TORCHVISION)
