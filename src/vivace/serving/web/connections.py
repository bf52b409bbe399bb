"""Connections of uvicorn with the bounds that it lacks: on all that is sent, on time, on what is sent ahead, on their
number.

httptools' parser has no limit on the size of a header, of a trailer or of all, and uvicorn waits for headers for ever
and reads what follows an answer without end. Both Content-Length and Transfer-Encoding, and what else lets two servers
read different requests, the parser itself refuses.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vivace.serving.metrics import Meters
from vivace.serving.settings import Settings
from vivace.serving.web.bodies import DISCARD_SECONDS, MAX_DISCARDED
from vivace.serving.web.exchange import AUTHORITY, BROKEN, TELLS, WHOLE, Exchange
from vivace.serving.web.guard import note_request
from vivace.serving.web.logs import Log
from vivace.serving.web.refusals import Refusal

__all__ = ["connection_class", "sweep"]

MAX_HEADERS, MAX_HEAD_BYTES, MAX_URL_BYTES = 64, 32 << 10, 4 << 10
# lengths of chunks, what is said beside them, and trailers: so much in a row, and so much for each byte of the body
MAX_FRAMING_BYTES, FRAMING_PER_BODY_BYTE = 32 << 10, 8
# requests that are sent before the first is answered
MAX_PIPELINED = 16
SWEEP_SECONDS = 0.25
# a connection is given so long to bring a request that was sent before the server stopped
LINGER_SECONDS = 0.3
REFUSALS = {
    "no_http": (400, "the request is no HTTP. Send HTTP/1.1."),
    "no_body": (400, "the body does not follow its own lengths. Send Content-Length, or chunks as HTTP/1.1 has them."),
    "framing": (
        400,
        f"over {MAX_FRAMING_BYTES:,} bytes are not the body's: extensions of chunks, trailers. Send the body alone.",
    ),
    "slow": (408, "the request line and headers come too slowly. Send them faster."),
    "long_url": (414, f"the URL is too long: over {MAX_URL_BYTES:,} bytes. Send images in the body."),
    "pipelined": (
        429,
        f"more than {MAX_PIPELINED + 1} requests are sent ahead of their answers. Wait for these, and send the rest.",
    ),
    "many_headers": (
        431,
        f"the headers are too many or too long. Send up to {MAX_HEADERS}, {MAX_HEAD_BYTES:,} bytes.",
    ),
    "connections": (503, "too many connections are open. Try again in 1 s, or open fewer."),
    # of bodies that nobody reads; their answer has been sent
    "unread": (400, "the body was not asked for and is too large or too slow: the connection ends."),
}


class _Bounded(HttpToolsProtocol):
    """A connection; its subclasses have `settings`, `meters` and `log`."""

    settings: Settings
    meters: Meters
    log: Log

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head, self._num_head_bytes, self._bad = True, 0, "no_http"
        # of the body that is coming
        self._num_body_bytes = self._num_framing_bytes = self._num_in_row = 0
        # of a body that comes although its request is answered: since when, and when more of it came
        self._unread_since: float | None = None
        self._unread_moved, self._num_unread_bytes = 0.0, 0
        self._waiting_since: float | None = self.loop.time()
        self._stalled_since: float | None = None
        self._closing_since: float | None = None
        self._lingering_since: float | None = None
        self._has_sent = False
        # nothing more is parsed; what is said once all that was taken before is answered
        self._ended, self._num_discarded_bytes = False, 0
        self._last_words: str | None = None
        if len(self.connections) > self.settings.max_connections:
            self._refuse("connections")
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._has_sent = True
        if self._ended:
            self._num_discarded_bytes += len(data)
            if self._num_discarded_bytes > MAX_DISCARDED:
                self.transport.abort()
            return
        if self._in_head:
            self._num_head_bytes += len(data)
            if self._waiting_since is None:
                self._waiting_since = self.loop.time()
        in_body, before = not self._in_head, self._num_body_bytes
        self._is_new = False
        super().data_received(data)
        if self._ended or self.transport.is_closing():
            return
        if self._in_head:
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse("many_headers")
        elif in_body and not self._is_new:
            self._bound(len(data), self._num_body_bytes - before)

    def _bound(self, num_bytes: int, num_body_bytes: int) -> None:
        """Bound what belongs to the body that is coming: so many bytes came, so many of which are its own."""
        framing = num_bytes - num_body_bytes
        self._num_framing_bytes += framing
        # behind the last byte of the body it can't be told how much came: at most what is read at once
        self._num_in_row = 0 if num_body_bytes else self._num_in_row + framing
        allowed = MAX_FRAMING_BYTES + FRAMING_PER_BODY_BYTE * self._num_body_bytes
        if self._num_in_row > MAX_FRAMING_BYTES or self._num_framing_bytes > allowed:
            self._refuse("framing")
        elif self._unread_since is not None:
            self._unread_moved = self.loop.time()
            self._num_unread_bytes += num_bytes
            if self._num_unread_bytes > self.settings.max_body_bytes:
                self._refuse("unread")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.cycle is None or self.cycle.response_complete:
            return
        exchange: Exchange | None = _keys(self.cycle.scope).get("vivace")
        if exchange is not None and exchange.leave is not None:
            exchange.leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        _keys(self.scope)[TELLS] = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._bad = "long_url"
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # after a chunked body: the application has its headers already
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS or len(name) + len(value) > MAX_HEAD_BYTES:
            self._bad = "many_headers"
            raise ValueError

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._bad = "pipelined"
            raise ValueError
        super().on_headers_complete()
        self._in_head, self._waiting_since, self._unread_since = False, None, None
        self._num_body_bytes = self._num_framing_bytes = self._num_in_row = 0
        self._is_new, self._bad = True, "no_body"
        if not self.url.startswith((b"/", b"*")):
            _keys(self.scope)[AUTHORITY] = self.url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        _keys(self.scope)[WHOLE] = True
        self._in_head, self._num_head_bytes, self._bad = True, 0, "no_http"
        self._unread_since = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self._last_words is not None:
            self._say(self._last_words)
        elif not self._in_head:
            self._unread_since = self._unread_moved = self.loop.time()
            self._num_unread_bytes = 0

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._bad)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled_since = None

    def shutdown(self) -> None:
        """End it once it has answered what is under way, or what a client may just be sending."""
        if self.cycle is None or self.cycle.response_complete:
            # twice: where the loop was late, the first finds it before what has come meanwhile is read
            self.loop.call_later(LINGER_SECONDS, self.loop.call_later, LINGER_SECONDS / 4, self._end_if_idle)
        else:
            super().shutdown()

    def _end_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """End it if it is too slow."""
        if self.transport is None:
            return
        settings = self.settings
        if self.transport.is_closing():
            # a client that does not read its last answer
            self._closing_since = self._closing_since or now
            if now - self._closing_since > settings.idle_seconds:
                self.transport.abort()
        elif self._stalled_since is not None and now - self._stalled_since > settings.idle_seconds:
            self.transport.abort()
        elif self._lingering_since is not None:
            if now - self._lingering_since > DISCARD_SECONDS:
                self.transport.close()
        elif self._ended:
            # what was taken before is answered
            return
        elif self._waiting_since is not None and now - self._waiting_since > settings.header_seconds:
            if self._has_sent:
                self._refuse("slow")
            else:
                self.transport.close()
        elif self._unread_since is not None:
            allowed = settings.header_seconds + self._num_unread_bytes / settings.min_bytes_per_second
            if now - self._unread_moved > settings.idle_seconds or now - self._unread_since > allowed:
                self._refuse("unread")

    def _refuse(self, code: str) -> None:
        """Take nothing more, and say so once all that was taken before is answered."""
        self._ended, self._waiting_since = True, None
        answered = self.cycle is None or self.cycle.response_complete
        if self._in_head:
            self._last_words = code
            if answered:
                self._say(code)
        elif answered:
            # whatever is said now would be taken for the answer to another request
            self._note(code, detail="its answer was sent before")
            self.transport.close()
        else:
            # it is the request's own answer
            status, message = REFUSALS[code]
            _keys(self.cycle.scope)[BROKEN] = Refusal(status, code, message, close=True)
            self.cycle.keep_alive = False
            self.cycle.message_event.set()

    def _say(self, code: str) -> None:
        status, message = REFUSALS[code]
        exchange = self._note(code)
        body = json.dumps({"error": message, "code": code, "request_id": exchange.id}).encode()
        head = [
            STATUS_LINE[status],
            b"content-type: application/json\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n",
            b"connection: close\r\nx-request-id: %b\r\n" % exchange.id.encode(),
            b"retry-after: 1\r\n" if status in (429, 503) else b"",
            b"content-length: %d\r\n\r\n" % len(body),
        ]
        self.transport.write(b"".join([*head, body]))
        # the system throws the answer away if the connection is closed while the client still sends
        self._lingering_since = self.loop.time()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _note(self, code: str, *, detail: str = "") -> Exchange:
        """Count and log a refusal that the application knows nothing of."""
        exchange = Exchange({})
        exchange.code, exchange.detail = code, detail
        path = getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")[:200]
        note_request(self.meters, self.log, exchange, method="", path=path, status=REFUSALS[code][0], failed=False)
        return exchange


def _keys(scope: Any) -> dict[str, Any]:
    """A scope with keys of our own."""
    return scope


def connection_class(settings: Settings, meters: Meters, log: Log) -> type[HttpToolsProtocol]:
    """The class of connections of a server with these settings."""
    return type("Connection", (_Bounded,), {"settings": settings, "meters": meters, "log": log})


async def sweep(connections: set[Any]) -> None:
    """End the connections that are too slow, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        for connection in list(connections):
            connection.sweep(loop.time())
