"""One request on its way, and what every endpoint shares of it."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["Endpoint", "Exchange", "Handler", "exchange_of", "json_response"]

Handler = Callable[[Request], Awaitable[Response]]
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# https://www.w3.org/TR/trace-context/: version, trace, parent, flags
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_prefix, _numbers = secrets.token_hex(4), itertools.count(1)
JSON_HEADERS = {"content-type": "application/json", "cache-control": "no-store"}


class Exchange:
    """What is noted of one request, for its log line, its metrics and its answer's headers."""

    __slots__ = ("bundle", "code", "detail", "held_bytes", "id", "images", "route", "started", "traceparent")

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"x-request-id", b"")
        # of a client's own only what can do no harm in a log or header
        self.id = given.decode() if REQUEST_ID.fullmatch(given) else f"{_prefix}-{next(_numbers):x}"
        trace = headers.get(b"traceparent", b"")
        self.traceparent = trace.decode() if TRACEPARENT.fullmatch(trace) else None
        self.started = time.perf_counter()
        self.route = "none"
        self.bundle: str | None = None
        self.images = 0
        self.code: str | None = None
        self.detail = ""
        self.held_bytes = 0
        """Of its body, in memory."""


class Endpoint:
    """The ASGI application of one route: notes the route, and sends what the handler answers."""

    def __init__(self, route: str, handler: Handler) -> None:
        self.route, self.handler = route, handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).route = self.route
        response = await self.handler(Request(scope, receive, send))
        await response(scope, receive, send)


def exchange_of(scope: Mapping[str, Any]) -> Exchange:
    """The exchange of an ASGI scope, or of a request."""
    found: Exchange = scope["vivace"]
    return found


def json_response(body: bytes, *, status: int = 200) -> Response:
    """An answer of JSON that is encoded already."""
    return Response(body, status, JSON_HEADERS)
