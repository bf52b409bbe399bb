"""Connections of uvicorn with the bounds that it lacks: on headers, on time, on what is sent ahead, on their number.

httptools' parser has no limit on the size of a header or of all, and uvicorn waits for headers for ever. Both
Content-Length and Transfer-Encoding, and what else lets two servers read different requests, the parser itself refuses.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vivace.serving.metrics import Meters
from vivace.serving.settings import Settings
from vivace.serving.web.exchange import TELLS, WHOLE, Exchange

__all__ = ["connection_class", "sweep"]

MAX_HEADERS, MAX_HEAD_BYTES, MAX_URL_BYTES = 64, 32 << 10, 4 << 10
# requests that are sent before the first is answered
MAX_PIPELINED = 16
SWEEP_SECONDS = 0.25
# a connection is given so long to bring a request that was sent before the server stopped
LINGER_SECONDS = 0.3
REFUSALS = {
    400: ("no_http", "the request is no HTTP. Send HTTP/1.1."),
    408: ("slow", "the request line and headers come too slowly. Send them faster."),
    414: ("long_url", f"the URL is too long: over {MAX_URL_BYTES:,} bytes. Send images in the body."),
    431: ("many_headers", f"the headers are too many or too long. Send up to {MAX_HEADERS}, {MAX_HEAD_BYTES:,} bytes."),
    503: ("connections", "too many connections are open. Try again in 1 s, or open fewer."),
}


class _Bounded(HttpToolsProtocol):
    """A connection; its subclasses have `settings` and `meters`."""

    settings: Settings
    meters: Meters

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head, self._num_head_bytes, self._bad_status = True, 0, 400
        self._waiting_since: float | None = self.loop.time()
        self._stalled_since: float | None = None
        self._has_sent = False
        if len(self.connections) > self.settings.max_connections:
            self._refuse(503)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._has_sent = True
        if self._in_head:
            self._num_head_bytes += len(data)
            if self._waiting_since is None:
                self._waiting_since = self.loop.time()
        super().data_received(data)
        if self._in_head and self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431)

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
            self._bad_status = 414
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # after a chunked body: the application has its headers already
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS or len(name) + len(value) > MAX_HEAD_BYTES:
            self._bad_status = 431
            raise ValueError

    def on_headers_complete(self) -> None:
        self._in_head, self._waiting_since = False, None
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        _keys(self.scope)[WHOLE] = True
        self._in_head, self._num_head_bytes = True, 0

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._bad_status)

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
        if self.transport is None or self.transport.is_closing():
            return
        settings = self.settings
        if self._stalled_since is not None and now - self._stalled_since > settings.idle_seconds:
            self.transport.abort()
        elif self._waiting_since is not None and now - self._waiting_since > settings.header_seconds:
            if self._has_sent:
                self._refuse(408)
            else:
                self.transport.close()

    def _refuse(self, status: int) -> None:
        code, message = REFUSALS[status]
        body = json.dumps({"error": message, "code": code}).encode()
        head = [
            STATUS_LINE[status],
            b"content-type: application/json\r\nconnection: close\r\n",
            b"retry-after: 1\r\n" if status == 503 else b"",
            b"content-length: %d\r\n\r\n" % len(body),
        ]
        self.meters.of_request("none", status, 0.0)
        # else it would be taken for the answer to an earlier request
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"".join([*head, body]))
        self.transport.close()


def _keys(scope: Any) -> dict[str, Any]:
    """A scope with keys of our own."""
    return scope


def connection_class(settings: Settings, meters: Meters) -> type[HttpToolsProtocol]:
    """The class of connections of a server with these settings."""
    return type("Connection", (_Bounded,), {"settings": settings, "meters": meters})


async def sweep(connections: set[Any]) -> None:
    """End the connections that are too slow, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        for connection in list(connections):
            connection.sweep(loop.time())
