"""Images at URLs: over HTTP and in a store, files, folders, globs, tars and parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from streams import encoded, listening, make_images, make_tar, outcomes

from vivace.data.layouts.listing import Skipped
from vivace.errors import ConfigError, DataError
from vivace.prediction import Failure
from vivace.predictor import Prediction
from vivace.sources import fetching
from vivace.sources.items import content_of
from vivace.sources.stream import Sources


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))


@pytest.fixture
def store() -> Iterator[str]:
    """A store like those of objects, in memory: a bucket with images, a tar and a parquet file."""
    system = fsspec.filesystem("memory")
    for name, content in {
        "photos/b.png": encoded(200),
        "photos/a.png": encoded(10),
        "photos/deep/c.png": encoded(90),
        "photos/notes.txt": b"text",
        "photos/.hidden.png": b"",
    }.items():
        system.pipe(f"/bucket/{name}", content)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A folder over HTTP."""
    pytest.importorskip("aiohttp")
    (tmp_path / "www").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with listening(partial(Quiet, directory=str(tmp_path / "www"))) as url:
        yield url


def test_a_remote_folder_and_a_glob_are_streams_of_images(store: str, tmp_path: Path) -> None:
    skipped = Skipped()
    sources = Sources([f"{store}/photos", f"{store}/photos/*.png"], left=skipped)
    items = list(sources)
    # those of the glob are in the folder, but for one
    names = ("a.png", "b.png", "deep/c.png", ".hidden.png")
    assert [item.name for item in items] == [f"memory:///bucket/photos/{name}" for name in names]
    assert sources.num_repeated == 2
    assert content_of(items[0]) == encoded(10)
    assert len(skipped) == 1
    assert [getattr(row, "label", None) for row in outcomes(tmp_path, f"{store}/photos")] == ["dark", "light", "dark"]


def test_remote_tars_and_parquet_files_are_read(store: str, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    tar = make_tar(tmp_path / "s.tar", {"a.png": encoded(10), "a.cls": b"1", "b.png": encoded(222)}, "w:gz")
    table = pyarrow.table({"image": [encoded(3), encoded(250)]})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    system.pipe("/bucket/s.tar", tar.read_bytes())
    system.pipe("/bucket/cut.tar", make_tar(tmp_path / "c.tar", {"a.png": encoded(10)}).read_bytes()[:550])
    system.pipe("/bucket/r.parquet", (tmp_path / "r.parquet").read_bytes())
    found = outcomes(tmp_path, f"{store}/s.tar", f"{store}/r.parquet", f"{store}/cut.tar")
    assert [(row.path.removeprefix(store), getattr(row, "label", "")) for row in found] == [
        ("/s.tar/a.png", "dark"),
        ("/s.tar/b.png", "light"),
        ("/r.parquet#0", "dark"),
        ("/r.parquet#1", "light"),
        ("/cut.tar", ""),
    ]


def test_images_over_http_are_those_of_their_files(server: str, tmp_path: Path) -> None:
    make_images(tmp_path / "www" / "images", 4, damaged=(2,))
    make_tar(tmp_path / "www" / "shard.tar", {"a.png": encoded(10), "b.png": encoded(222)})
    urls = [f"{server}/images/00{number}.png" for number in (3, 0, 2)]
    found = outcomes(tmp_path, *urls, f"{server}/gone.png", f"{server}/shard.tar")
    assert [row.path for row in found] == [*urls, f"{server}/gone.png", *(f"{server}/shard.tar/{n}.png" for n in "ab")]
    assert [getattr(row, "label", None) or row.problem for row in found] == [  # type: ignore[union-attr]
        "light",
        "dark",
        "not_an_image",
        "unreadable",
        "dark",
        "light",
    ]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of moto's S3 server. Its pins and those of s3fs do not go with the others of constraints.txt."""
    servers = pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    served = servers.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    served.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*served.get_host_and_port()))
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    served.stop()


def test_images_in_s3_are_classified(bucket: Any, tmp_path: Path) -> None:
    for number in range(5):
        bucket.pipe(f"bucket/photos/{number}.png", encoded(number * 50))
    tar = make_tar(tmp_path / "s.tar.gz", {"a.png": encoded(10), "b.png": encoded(222)}, "w:gz")
    bucket.pipe("bucket/shard.tar.gz", tar.read_bytes())
    found = outcomes(tmp_path, "s3://bucket/photos", "s3://bucket/shard.tar.gz", "s3://bucket/gone.jpg")
    assert [getattr(row, "label", None) for row in found] == ["dark"] * 3 + ["light"] * 2 + ["dark", "light", None]


def test_what_fails_is_tried_again(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = Sources([f"{store}/photos/a.png"], left=[])
    calls = []
    original = fsspec.filesystem("memory").__class__.open

    def shaky(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) < 3:
            raise RuntimeError("connection lost")
        return original(self, *arguments, **options)

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "open", shaky)
    assert content_of(item) == encoded(10)
    assert len(calls) == 3


def test_urls_that_lead_nowhere_are_refused_or_failures(store: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no images in 'memory://bucket/\*\.jpg'"):
        outcomes(tmp_path, f"{store}/*.jpg")
    with pytest.raises(ConfigError, match=r"the URL is unknown: got 'nosuch://x/a\.jpg'"):
        outcomes(tmp_path, "nosuch://x/a.jpg")
    (failure,) = outcomes(tmp_path, f"{store}/gone.png")
    assert isinstance(failure, Failure)
    assert failure.problem == "unreadable"


def test_a_file_of_such_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:").mkdir()
    Path("memory:/a.png").write_bytes(encoded(1))
    (row,) = outcomes(tmp_path, "memory://a.png")
    assert isinstance(row, Prediction)
