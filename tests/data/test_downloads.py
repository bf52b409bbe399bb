"""Downloads that are damaged, truncated, killed or unnecessary; every kind of torchvision data set, in small."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import pickle
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from vivace.data.caching.contents import remove_caches
from vivace.data.layouts.catalog import open_named
from vivace.errors import DownloadError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; *.cut ends after half of the announced bytes, and *.noise is not HTTP."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith(".noise"):
            self.wfile.write(b"noise\r\n\r\n")
        elif self.path.endswith(".cut"):
            data = Path(self.directory, self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """(folder, address) of files served over HTTP."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def cifar(server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The served archive of a small CIFAR-10 in its own format; image i of a batch is all i, of class i."""
    folder, address = server
    tree = tmp_path / "tree" / "cifar-10-batches-py"
    tree.mkdir(parents=True)
    data = np.repeat(np.arange(10, dtype=np.uint8)[:, None], 3072, axis=1)
    data[:, :1024] += 100  # the red plane comes first
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        (tree / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}, protocol=2))
        lists["test_list" if name == "test_batch" else "train_list"].append([name, md5(tree / name)])
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (tree / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    archive = Path(shutil.make_archive(str(folder / "cifar-10-python"), "gztar", tree.parent))
    for attribute, value in lists.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, attribute, value)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(tree / "batches.meta")}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address + archive.name)
    return archive


@pytest.fixture
def eurosat(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The served archive of a small EuroSAT; its URL and checksum are constants inside torchvision's method."""
    folder, address = server
    archive = folder / "EuroSAT.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name in ("Forest", "River"):
            for index in range(3):
                with packed.open(f"2750/{name}/{name}_{index}.jpg", "w") as file:
                    Image.new("RGB", (16, 16), (index * 40, 9, 9)).save(file, "JPEG")
    module = torchvision.datasets.eurosat
    real = module.download_and_extract_archive

    def local(url: str, download_root: str, md5: str) -> None:
        real(address + archive.name, download_root=download_root, md5=hashlib.md5(archive.read_bytes()).hexdigest())

    monkeypatch.setattr(module, "download_and_extract_archive", local)
    return archive


def test_cifar10_comes_as_arrays_with_its_labels(cifar: Path, tmp_path: Path) -> None:
    source = open_named("cifar10", tmp_path / "root")
    assert source.classes[:2] == ("airplane", "automobile")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 20, "test": 10}
    train = source.splits["train"]
    assert train.paths is None
    assert train.arrays is not None
    assert (train.arrays.shape, train.arrays.dtype, train.labels.dtype) == ((20, 32, 32, 3), np.uint8, np.int64)
    assert train.arrays[3, 5, 7].tolist() == [103, 3, 3]
    assert train.labels.tolist() == [*range(10), *range(10)]
    assert train.names[17] == "train/000017"
    assert len(set(train.names)) == 20


def test_eurosat_comes_as_files(eurosat: Path, tmp_path: Path) -> None:
    source = open_named("eurosat", tmp_path / "root")
    train = source.splits["train"]
    assert (source.classes, list(source.splits), train.arrays) == (("Forest", "River"), ["train"], None)
    assert train.labels.tolist() == [0] * 3 + [1] * 3
    assert train.names[0] == "eurosat/2750/Forest/Forest_0.jpg"
    assert train.paths is not None
    assert all(Path(path).is_file() for path in train.paths)


def test_files_laid_out_for_torchvision_are_found_in_the_root_itself(cifar: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.unpack_archive(cifar, root)
    cifar.unlink()
    assert len(open_named("cifar10", root).splits["train"]) == 20
    assert not (root / "cifar10").exists()


def test_an_archive_put_there_by_hand_needs_no_network(cifar: Path, tmp_path: Path) -> None:
    place = tmp_path / "root" / "cifar10"
    place.mkdir(parents=True)
    shutil.move(cifar, place)
    assert len(open_named("cifar10", tmp_path / "root").splits["train"]) == 20


def test_a_download_truncated_is_refused_and_removed(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar.rename(cifar.with_suffix(".cut"))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", torchvision.datasets.CIFAR10.url[:-3] + ".cut")
    with pytest.raises(DownloadError, match="the data set cifar10 was downloaded with a wrong checksum, and removed"):
        open_named("cifar10", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_wrong_checksum_beside_files_of_the_user_removes_the_new_file_alone(cifar: Path, tmp_path: Path) -> None:
    place = tmp_path / "root" / "cifar10"
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    # a partial archive of an earlier attempt is overwritten and then counts as vivace's
    (place / cifar.name).write_bytes(b"partial")
    cifar.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="wrong checksum"):
        open_named("cifar10", tmp_path / "root")
    assert files_below(tmp_path / "root") == ["cifar10/notes.txt"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/x", "could not be downloaded .*Connection refused"),
        ("missing.tar.gz", "the server answered 404"),
        ("x.noise", "could not be downloaded"),
    ],
)
def test_what_goes_wrong_on_the_network_is_reported_on_one_line(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    address = torchvision.datasets.CIFAR10.url.rsplit("/", 1)[0]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url if url.startswith("http") else f"{address}/{url}")
    with pytest.raises(DownloadError, match=message) as error:
        open_named("cifar10", tmp_path / "root")
    text = str(error.value)
    assert text.startswith("the data set cifar10 could not be downloaded")
    assert f"or put its files into {tmp_path / 'root' / 'cifar10'}" in text
    assert "\n" not in text
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("how", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_unpacking_leaves_nothing_that_is_taken_for_whole(
    eurosat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    real = zipfile.ZipFile.extractall

    def half(self: zipfile.ZipFile, path: str) -> None:
        self.extract(self.namelist()[0], path)
        raise how

    monkeypatch.setattr(zipfile.ZipFile, "extractall", half)
    with pytest.raises(how):
        open_named("eurosat", tmp_path / "root")
    assert not (tmp_path / "root").exists()
    monkeypatch.setattr(zipfile.ZipFile, "extractall", real)
    assert len(open_named("eurosat", tmp_path / "root").splits["train"]) == 6


def test_a_killed_unpacking_is_not_taken_for_whole(eurosat: Path, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:

        def half(self: zipfile.ZipFile, path: str) -> None:
            self.extract(self.namelist()[0], path)
            os.kill(os.getpid(), 9)

        zipfile.ZipFile.extractall = half  # type: ignore[method-assign,assignment]
        with contextlib.suppress(BaseException):
            open_named("eurosat", tmp_path / "root")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert len(open_named("eurosat", tmp_path / "root").splits["train"]) == 6


def test_nothing_is_printed_to_stdout(cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_named("cifar10", tmp_path / "root")
    assert capsys.readouterr().out == ""


def test_the_timeout_of_sockets_is_put_back(cifar: Path, tmp_path: Path) -> None:
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(7)
        open_named("cifar10", tmp_path / "root")
        assert socket.getdefaulttimeout() == 7
    finally:
        socket.setdefaulttimeout(before)


def test_the_default_place_is_the_cache(cifar: Path, tmp_path: Path) -> None:
    source = open_named("cifar10", None, tmp_path / "cache")
    assert source.root == tmp_path / "cache" / "downloads" / "cifar10"
    assert [entry.title for entry in remove_caches(tmp_path / "cache", "all")] == ["downloads/cifar10"]
