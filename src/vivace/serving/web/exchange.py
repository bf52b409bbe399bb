"""One request on its way, and what every endpoint shares of it."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from vivace.serving.web.refusals import Refusal

__all__ = [
    "AUTHORITY",
    "BROKEN",
    "TELLS",
    "WHOLE",
    "Endpoint",
    "Exchange",
    "Handler",
    "Routes",
    "exchange_of",
    "header_of",
    "json_response",
    "parameters_of",
]

# what connections of ours note in a request's scope: that they call its exchange's `leave`, and that its body is there
TELLS, WHOLE = "vivace.tells", "vivace.whole"
# the refusal of a request whose body can't be read on; the server that a whole URL in its first line names
BROKEN, AUTHORITY = "vivace.broken", "vivace.authority"
Handler = Callable[[Request], Awaitable[Response]]
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# https://www.w3.org/TR/trace-context/: version, trace, parent, flags
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_prefix, _numbers = secrets.token_hex(4), itertools.count(1)
JSON_HEADERS = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


class Exchange:
    """What is noted of one request, for its log line, its metrics and its answer's headers."""

    __slots__ = (
        "bundle",
        "code",
        "detail",
        "headers",
        "held_bytes",
        "id",
        "images",
        "leave",
        "route",
        "started",
        "traceparent",
    )

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self.headers = headers
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
        self.leave: Callable[[], None] | None = None
        """Called by a connection of ours (see TELLS) if the client leaves."""


class Endpoint:
    """The ASGI application of one route: notes the route, and sends what the handler answers."""

    def __init__(self, route: str, handler: Handler) -> None:
        self.route, self.handler = route, handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).route = self.route
        response = await self.handler(Request(scope, receive, send))
        await response(scope, receive, send)


class Routes(Router):
    """The endpoints of a server: (method, path, handler) of each."""

    def __init__(self, handlers: Sequence[tuple[str, str, Handler]]) -> None:
        endpoints = [(method, path, Endpoint(path, handler)) for method, path, handler in handlers]
        routes = [Route(path, endpoint, methods=[method]) for method, path, endpoint in endpoints]
        super().__init__(routes=routes, redirect_slashes=False)
        # a path without names in it is looked up: routes are tried one after the other
        self._exact = {(method, path): endpoint for method, path, endpoint in endpoints if "{" not in path}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        found = self._exact.get((scope["method"], scope["path"]))
        await (super().__call__ if found is None else found)(scope, receive, send)


def exchange_of(scope: Mapping[str, Any]) -> Exchange:
    """The exchange of an ASGI scope, or of a request."""
    found: Exchange = scope["vivace"]
    return found


def header_of(request: Request, name: bytes) -> str:
    """A header of a request, "" where there is none. name: in lower case."""
    return exchange_of(request.scope).headers.get(name, b"").decode("latin-1")


def parameters_of(request: Request) -> dict[str, str]:
    """The parameters in a request's URL, by name. Raises Refusal (400) for one that is given twice."""
    # most have none, and to parse that takes a tenth of what is done for a request
    if not request.scope.get("query_string"):
        return {}
    given = request.query_params.multi_items()
    found = dict(given)
    if len(found) < len(given):
        names = [name for name, _ in given]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refusal(400, "repeated_parameter", f"the parameter {twice[:40]!r} comes twice. Give it once.")
    return found


class _Json(Response):
    """An answer whose headers are the same ones each time, encoded once."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        self.raw_headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(self.body))]


def json_response(body: bytes, *, status: int = 200) -> Response:
    """An answer of JSON that is encoded already."""
    return _Json(body, status)
