"""Images at URLs are fetched within limits of time and memory, and what is wrong with one ends no run."""

from __future__ import annotations

import gc
import gzip
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from streams import encoded, listening, make_images, make_tar, outcomes

from vivace.data.decoding.memory import READING, Budget
from vivace.errors import ConfigError, ImageError
from vivace.prediction import Failure
from vivace.predictor import Prediction
from vivace.sources import fetching
from vivace.sources.items import content_of
from vivace.sources.stream import Sources

Answer = Callable[[Any], None]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))


def answers(body: bytes, status: int = 200, *, length: int | None = None, packed: str | None = None) -> Answer:
    """Answers with these bytes; the length and how they are packed may be a lie."""

    def answer(request: Any) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        if packed is not None:
            request.send_header("Content-Encoding", packed)
        request.end_headers()
        request.wfile.write(body)

    return answer


def endless(request: Any) -> None:
    """Sends what has no end, and never says how long it is."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(1 << 16))


def dripping(request: Any) -> None:
    """A byte now and then of very many."""
    request.send_response(200)
    request.send_header("Content-Length", "15000000")
    request.end_headers()
    while True:
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.05)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Answer], list[str]]]:
    """(URL, path → what answers it, paths that were asked for)."""
    pytest.importorskip("aiohttp")
    pages: dict[str, Answer] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            try:
                pages[self.path](self)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as url:
        yield url, pages, asked


def listed(tmp_path: Path, *names: str) -> list[str]:
    """What became of the names of a list: a label or the message of a failure."""
    stdin = io.BytesIO("".join(f"{name}\n" for name in names).encode())
    found = outcomes(tmp_path, "-", stdin=stdin)
    return [row.label if isinstance(row, Prediction) else row.message for row in found]


def test_an_image_over_http_is_one_request(server: Any, tmp_path: Path) -> None:
    url, pages, asked = server
    pages["/a.png?size=2*"] = answers(encoded(200))
    (row,) = outcomes(tmp_path, f"{url}/a.png?size=2*")
    assert isinstance(row, Prediction)
    assert row.label == "light"
    assert asked == ["/a.png?size=2*"]


def large_buffers() -> int:
    """How many buffers of over a megabyte are alive."""
    # isinstance would ask lazy objects of libraries for their class, which warn
    buffers = [found for found in gc.get_objects() if type(found) is io.BytesIO and not found.closed]
    return sum(found.tell() > 1 << 20 for found in buffers)


def test_more_than_an_image_may_have_is_not_held(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a server says so, sends without end, or packs it."""
    monkeypatch.setattr(fetching, "FIRST_BYTES", 1 << 20)
    monkeypatch.setattr(fetching, "MAX_BYTES", 4 << 20)
    url, pages, asked = server
    before = large_buffers()
    pages["/endless.png"] = endless
    pages["/told.png"] = answers(b"x", length=10**12)
    pages["/packed.png"] = answers(gzip.compress(bytes(64 << 20)), packed="gzip")
    for name in ("endless", "told", "packed"):
        (item,) = Sources([f"{url}/{name}.png"], left=[])
        with pytest.raises(ImageError, match=r"too large for an image: .* has over 4,194,304 bytes") as caught:
            content_of(item)
        assert caught.value.problem == "bomb"
        # nor kept by the error
        del item
        gc.collect()
        assert large_buffers() <= before
    # once for most images, and again with the memory for a large one
    assert asked == [f"/{name}.png" for name in ("endless", "told", "packed") for _ in range(2)]
    assert READING._held == 0


def test_a_large_image_is_fetched_again_with_its_memory_held(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_BYTES", 1000)
    url, pages, _ = server
    pages["/a.png"] = answers(encoded(1) + bytes(5000))
    pages["/b.png"] = answers(gzip.compress(encoded(2)), packed="gzip")
    pages["/c.png"] = answers(b"", packed="br")
    items = list(Sources([f"{url}/{name}.png" for name in "abc"], left=[]))
    assert content_of(items[0]) == encoded(1) + bytes(5000)
    assert content_of(items[1]) == encoded(2)
    with pytest.raises(ImageError, match="the server compresses it by 'br'"):
        content_of(items[2])


def test_memory_is_held_until_an_image_is_decoded(server: Any, tmp_path: Path) -> None:
    url, pages, _ = server
    pages["/a.png"] = answers(encoded(1) + bytes(3000))
    (item,) = Sources([f"{url}/a.png"], left=[])
    from vivace.batch.pipeline import decoded

    held = []

    def load(data: Any) -> Any:
        held.append((len(data), READING._held))

    decoded([item], load)
    assert held == [(len(encoded(1)) + 3000,) * 2]
    assert READING._held == 0


def test_what_is_not_needed_of_a_budget_is_given_back() -> None:
    budget = Budget(10)
    with budget.hold_at_most(10) as keep:
        keep(4)
        with budget.hold_at_most(6):
            assert budget._held == 10
        assert budget._held == 4
    assert budget._held == 0


@pytest.mark.parametrize(
    ("seconds", "idle", "told"), [(0.6, 9.0, "not there after 1 s"), (9.0, 0.6, "no byte came for 1 s")]
)
def test_a_server_that_hangs_or_drips_stalls_nothing(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, idle: float, told: str
) -> None:
    monkeypatch.setattr(fetching, "SECONDS", seconds)
    monkeypatch.setattr(fetching, "IDLE_SECONDS", idle)
    url, pages, asked = server
    ended = threading.Event()
    pages["/slow.png"] = dripping if seconds < idle else lambda request: ended.wait(60)
    pages["/good.png"] = answers(encoded(200))
    failure, row = outcomes(tmp_path, f"{url}/slow.png", f"{url}/good.png")
    ended.set()
    assert isinstance(failure, Failure)
    assert told in failure.message
    assert isinstance(row, Prediction)
    # it is not waited for again
    assert asked.count("/slow.png") == 1


def test_the_cause_is_told_of_what_can_not_be_fetched(server: Any, tmp_path: Path) -> None:
    url, pages, asked = server
    for status in (404, 403, 500):
        pages[f"/{status}.png"] = pages[f"/{status}.tar"] = answers(b"", status)
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
    *found, refused = listed(tmp_path, *(f"{url}/{status}.png" for status in (404, 403, 500)), f"{url}/404.tar", closed)
    assert [message.partition("(")[2].partition(")")[0] for message in found] == [
        "nothing is there: not found",
        "the server answers 403 Forbidden",
        "the server answers 500 Internal Server Error",
        "nothing is there: not found",
    ]
    assert "Restore" not in "".join(found)
    assert "ClientConnectorError" in refused or "Connect" in refused
    assert [asked.count(f"/{status}.png") for status in (404, 403, 500)] == [1, 1, 3]


def test_no_line_of_a_list_ends_the_run(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 2, damaged=())
    lines = [
        "reference://x",
        "gopher://x/a.png",
        "nosuch://x/a.jpg",
        "ftp://127.0.0.1:1/x.png",
        "zip://*.png::file:///none.zip",
        "jupyter://127.0.0.1:1/x",
        "memory://none/*.png",
    ]
    first, *found, last = listed(tmp_path, str(images / "000.png"), *lines, str(images / "001.png"))
    assert (first, last) == ("dark", "dark")
    # the pattern that nothing matches is no image: a line tells of it
    assert len(found) == len(lines) - 1
    assert all(name in message for name, message in zip(lines[:-1], found, strict=True))
    with pytest.raises(ConfigError, match=r"the URL is unknown: got 'nosuch://x/a\.jpg'"):
        outcomes(tmp_path, "nosuch://x/a.jpg")


def test_the_scheme_of_a_url_may_have_capitals(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 1, damaged=())
    tar = make_tar(tmp_path / "s.tar", {"a.png": encoded(200)})
    names = (f"FILE://{images}/000.png", f"file://{images}/000.png", f"Tar://a.png::File://{tar}")
    assert listed(tmp_path, *names) == ["dark", "light"]
