"""Connections in this process, on a transport that keeps what is written: whatever a client sends is bounded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from served import Client, answering, png, until
from uvicorn.server import ServerState

from vivace.serving.web.bodies import DISCARD_SECONDS, MAX_DISCARDED
from vivace.serving.web.connections import MAX_FRAMING_BYTES, MAX_PIPELINED, connection_class

HOST = b"Host: 127.0.0.1\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\n" + HOST
PREDICT = b"POST /predict HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
# what is read at once from a socket
READ = 1 << 16


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 8000), "peername": ("127.0.0.1", 9)})
        self.written, self.closed, self.aborted, self.has_eof, self.paused = b"", False, False, False, False

    def write(self, data: Any) -> None:
        assert not self.has_eof
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    @property
    def is_ended(self) -> bool:
        return self.closed or self.aborted or self.has_eof


class Connection:
    """A connection of an application, and its transport."""

    def __init__(self, client: Client) -> None:
        app, self.transport = client.app, Transport()
        kind = connection_class(app.settings, app.meters, app.log)
        config = uvicorn.Config(app, http=kind, ws="none", lifespan="off", log_config=None)
        self.protocol: Any = kind(config, ServerState(), {}, asyncio.get_running_loop())
        self.protocol.connection_made(self.transport)

    async def send(self, data: bytes) -> None:
        """Send it, and let what it starts go on."""
        self.protocol.data_received(data)
        for _ in range(20):
            await asyncio.sleep(0)

    async def flood(self, piece: bytes, at_most: int) -> int:
        """Send a piece again and again until the connection ends; how many bytes were taken."""
        sent = 0
        while not self.transport.is_ended and sent < at_most:
            await self.send(piece)
            sent += len(piece)
        await self.answered()
        return sent

    async def answered(self) -> bytes:
        """All that was written, once nothing more is under way."""
        await until(lambda: self.protocol.cycle is None or not self.protocol.tasks)
        return self.transport.written


def refused(answer: bytes) -> tuple[int, str]:
    """(status, code) of the last answer; it has a request id, as all refusals do."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    told = json.loads(body)
    head = head[head.rindex(b"HTTP/1.1 ") :]
    assert b"x-request-id: " + told["request_id"].encode() in head
    assert b"connection: close" in head
    return int(head.split()[1]), told["code"]


FLOODS = {
    "a trailer that never ends": (CHUNKED + b"0\r\nX: ", b"b" * READ),
    "trailers without end": (CHUNKED + b"0\r\n", b"X: y\r\n" * (READ // 6)),
    "an extension that never ends": (CHUNKED + b"5;a=", b"b" * READ),
    "chunks that are mostly extension": (CHUNKED, b"1;" + b"a" * 1000 + b"\r\nx\r\n"),
    "what follows an upgrade": (b"Connection: Upgrade\r\nUpgrade: x\r\n\r\n", b"b" * READ),
    "a header that never ends": (b"X: ", b"b" * READ),
    "lines before a next request": (b"\r\n", b"\r\n" * (READ // 2)),
}


@pytest.mark.parametrize("path", [b"GET /healthz", b"GET /", b"GET /v2/health/live", b"POST /predict", b"PUT /none"])
@pytest.mark.parametrize("what", FLOODS)
def test_what_is_not_the_body_is_bounded_on_every_path(shared: Client, path: bytes, what: str) -> None:
    async def flood() -> int:
        connection = Connection(shared)
        begin, more = FLOODS[what]
        await connection.send(path + b" HTTP/1.1\r\n" + HOST + begin)
        return await connection.flood(more, 64 * READ)

    assert shared.run(flood()) <= 2 * MAX_FRAMING_BYTES + READ


def test_a_trailer_that_never_ends_is_refused_where_no_answer_was_sent(shared: Client) -> None:
    async def flood() -> bytes:
        connection = Connection(shared)
        await connection.send(PREDICT + CHUNKED + b"0\r\nX: ")
        await connection.flood(b"b" * READ, 64 * READ)
        return await connection.answered()

    assert refused(shared.run(flood())) == (400, "framing")


def test_small_chunks_and_a_few_trailers_are_taken(shared: Client) -> None:
    async def ask() -> bytes:
        connection = Connection(shared)
        await connection.send(PREDICT + CHUNKED)
        image = png(0)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in image)
        for start in range(0, len(chunks), 1000):
            await connection.send(chunks[start : start + 1000])
        await connection.send(b"0\r\nX: y\r\nHost: evil.example\r\n\r\n")
        return await connection.answered()

    assert shared.run(ask()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("head", [b"Content-Length: 99999999999\r\n\r\n", CHUNKED])
@pytest.mark.parametrize("path", [b"GET /healthz", b"POST /none", b"GET /predict"])
def test_a_body_that_nobody_reads_is_bounded_in_bytes_and_time(folder: Path, path: bytes, head: bytes) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 10 * READ, "idle_seconds": 5.0, "header_seconds": 10.0}
    piece = b"x" * READ if head != CHUNKED else b"%x\r\n%b\r\n" % (READ, b"x" * READ)

    async def ask(client: Client) -> None:
        connection = Connection(client)
        await connection.send(path + b" HTTP/1.1\r\n" + HOST + head)
        await connection.send(piece)
        assert (await connection.answered()).startswith(b"HTTP/1.1 ")
        assert not connection.transport.is_ended
        assert await connection.flood(piece, 100 * READ) <= 11 * READ
        # its answer was sent: nothing more is said
        assert connection.transport.written.count(b"HTTP/1.1 ") == 1
        for seconds, is_ended in ((4.0, False), (6.0, True)):
            waiting = Connection(client)
            await waiting.send(path + b" HTTP/1.1\r\n" + HOST + head)
            await waiting.send(piece)
            await waiting.answered()
            waiting.protocol.sweep(client_now() + seconds)
            assert waiting.transport.is_ended is is_ended

    def client_now() -> float:
        return asyncio.get_running_loop().time()

    with answering({"plain": folder}, **limits) as client:
        client.run(ask(client))
        line = client.log()[-1]
    assert (line["event"], line["code"], line["detail"]) == ("request", "unread", "its answer was sent before")


def test_a_short_body_on_a_get_is_passed_over_and_the_connection_goes_on(shared: Client) -> None:
    async def ask() -> bytes:
        connection = Connection(shared)
        await connection.send(HEALTH + b"Content-Length: 5\r\n\r\nabc")
        await connection.send(b"de" + HEALTH + b"\r\n")
        assert not connection.transport.is_ended
        return await connection.answered()

    assert shared.run(ask()).count(b"HTTP/1.1 200 ") == 2


def test_a_client_that_does_not_stop_or_read_after_a_refusal_is_let_go(shared: Client) -> None:
    async def ask() -> None:
        connection = Connection(shared)
        await connection.send(b"nothing of HTTP\r\n\r\n")
        assert refused(connection.transport.written) == (400, "no_http")
        assert connection.transport.has_eof
        now = asyncio.get_running_loop().time()
        connection.protocol.sweep(now)
        assert not connection.transport.is_closing()
        for _ in range(MAX_DISCARDED // (1 << 20) + 1):
            connection.protocol.data_received(bytes(1 << 20))
        assert connection.transport.aborted
        connection = Connection(shared)
        await connection.send(b"nothing of HTTP\r\n\r\n")
        connection.protocol.sweep(now + DISCARD_SECONDS + 1)
        assert connection.transport.closed
        connection.protocol.sweep(now + 100)
        assert not connection.transport.aborted
        connection.protocol.sweep(now + 200)
        assert connection.transport.aborted

    shared.run(ask())


@pytest.mark.parametrize("count", [MAX_PIPELINED + 1, MAX_PIPELINED + 2, 100])
def test_of_requests_that_are_sent_ahead_those_that_were_taken_are_answered(folder: Path, count: int) -> None:
    async def ask(client: Client) -> bytes:
        connection = Connection(client)
        await connection.send((HEALTH + b"\r\n") * count)
        answer = await connection.answered()
        assert connection.transport.is_ended is (count > MAX_PIPELINED + 1)
        return answer

    with answering({"plain": folder}) as client:
        answer = client.run(ask(client))
        codes = [line["code"] for line in client.log() if line["event"] == "request"]
    assert answer.count(b"HTTP/1.1 200 ") == MAX_PIPELINED + 1
    if count > MAX_PIPELINED + 1:
        assert refused(answer) == (429, "pipelined")
        assert codes == ["pipelined"]


def test_a_request_that_is_none_is_refused_once_those_before_it_are_answered(shared: Client) -> None:
    async def ask() -> bytes:
        connection = Connection(shared)
        await connection.send((HEALTH + b"\r\n") * 2 + b"nothing of HTTP\r\n\r\n")
        return await connection.answered()

    answer = shared.run(ask())
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert refused(answer) == (400, "no_http")


BODIES = {
    "no number": b"zz\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "too large a number": b"f" * 20 + b"\r\nhello\r\n0\r\n\r\n",
    "ended by LF alone": b"5\nhello\n0\n\n",
}


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_body_that_does_not_follow_its_lengths_is_refused_as_such(folder: Path, what: str, at_once: bool) -> None:
    async def ask(client: Client) -> bytes:
        connection = Connection(client)
        if at_once:
            await connection.send(PREDICT + CHUNKED + BODIES[what])
        else:
            await connection.send(PREDICT + CHUNKED)
            await connection.send(BODIES[what])
        answer = await connection.answered()
        assert connection.transport.is_ended
        return answer

    with answering({"plain": folder}) as client:
        assert refused(client.run(ask(client))) == (400, "no_body")
        lines = [line for line in client.log() if line["event"] == "request"]
    assert [(line["status"], line["code"], line["path"]) for line in lines] == [(400, "no_body", "/predict")]


@pytest.mark.parametrize("coding", [b"xchunked", b"gzip, chunked", b"identity", b"chunked;q=1"])
def test_an_encoding_that_is_not_taken_is_said(shared: Client, coding: bytes) -> None:
    async def ask() -> bytes:
        connection = Connection(shared)
        await connection.send(PREDICT + b"Transfer-Encoding: " + coding + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        return await connection.answered()

    assert refused(shared.run(ask())) == (501, "transfer_encoding")


@pytest.mark.parametrize(
    ("data", "status", "code", "path"),
    [
        (b"GET /" + b"a" * 8000 + b"?secret HTTP/1.1\r\n\r\n", 414, "long_url", "/aaa"),
        (HEALTH + b"".join(b"X-%d: y\r\n" % n for n in range(100)) + b"\r\n", 431, "many_headers", "/healthz"),
        (b"\x16\x03\x01\x02\x00", 400, "no_http", None),
        (b"GET /healthz?secret HTTP/1.1\r\nHo", 408, "slow", "/healthz"),
    ],
)
def test_what_is_refused_before_it_is_a_request_has_an_id_and_a_line(
    folder: Path, data: bytes, status: int, code: str, path: str | None
) -> None:
    async def ask(client: Client) -> bytes:
        connection = Connection(client)
        await connection.send(data)
        connection.protocol.sweep(asyncio.get_running_loop().time() + 11)
        return await connection.answered()

    with answering({"plain": folder}) as client:
        answer = client.run(ask(client))
        (line,) = [line for line in client.log() if line["event"] == "request"]
    assert refused(answer) == (status, code)
    assert (line["status"], line["code"]) == (status, code)
    assert line["id"].encode() in answer
    assert line.get("path", "").startswith(path or "")
    assert "secret" not in str(line)


def test_a_url_with_a_host_must_have_that_of_the_header(shared: Client) -> None:
    async def ask(url: bytes) -> bytes:
        connection = Connection(shared)
        await connection.send(b"GET " + url + b" HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
        return await connection.answered()

    for url in (
        b"http://evil.example/bundles",
        b"http://127.0.0.1@evil.example/bundles",
        b"http://127.0.0.1:1/bundles",
    ):
        assert refused(shared.run(ask(url))) == (400, "two_hosts")
    for url in (b"/bundles", b"http://127.0.0.1/bundles", b"HTTP://127.0.0.1/bundles?"):
        assert shared.run(ask(url)).startswith(b"HTTP/1.1 200 ")


def test_too_many_connections_are_refused_at_once(folder: Path) -> None:
    async def ask(client: Client) -> None:
        first = Connection(client)
        other = Connection(client)
        other.protocol.connections |= {first.protocol}
        transport = Transport()
        other.protocol.connection_made(transport)
        assert refused(transport.written) == (503, "connections")
        assert transport.closed

    with answering({"plain": folder}, max_connections=1) as client:
        client.run(ask(client))


def test_a_parameter_that_is_given_twice_is_refused(shared: Client) -> None:
    refused_ = shared.post("/predict?topk=1&topk=2", content=png(0))
    assert (refused_.status_code, refused_.json()["code"]) == (400, "repeated_parameter")
    assert "'topk' comes twice" in refused_.json()["error"]
