"""The guard: what happens to every request before and after its endpoint, whatever its protocol."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from vivace.serving.metrics import Meters
from vivace.serving.settings import Settings
from vivace.serving.web.exchange import AUTHORITY, BROKEN, Exchange
from vivace.serving.web.logs import Log
from vivace.serving.web.refusals import Refusal, internal

__all__ = ["SINGLE", "Guard", "check_token", "note_request", "repeated"]

# what tells nothing of the bundles and costs nothing: probes and browsers have no token
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/favicon.ico"})
OPEN_PREFIX = "/page/"
# headers of which there may be one alone: two would be read differently by what stands before the server
SINGLE = (
    b"host",
    b"authorization",
    b"content-type",
    b"content-encoding",
    b"transfer-encoding",
    b"inference-header-content-length",
)
PORT = re.compile(r"(:[0-9]{0,5})?")


class Guard:
    """An ASGI application around another one.

    It checks Host, Origin and token, turns whatever is raised into JSON, sets the headers that every answer has, counts
    and logs. `draining`: whether answers end their connections, as the server is about to stop.
    """

    def __init__(self, app: Any, settings: Settings, meters: Meters, log: Log, *, draining: Callable[[], bool]) -> None:
        self._app, self._settings, self._meters, self._log, self._draining = app, settings, meters, log, draining
        self._hosts = settings.known_hosts
        self._token = None if settings.token is None else settings.token.encode()
        self.pending_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            # no WebSockets; uvicorn is told to send no lifespan
            return
        headers = dict(scope["headers"])
        exchange = scope["vivace"] = Exchange(headers)
        scope["app"] = self
        status = 0

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", exchange.id.encode()), (b"x-content-type-options", b"nosniff")]
                if exchange.traceparent is not None:
                    added.append((b"traceparent", exchange.traceparent.encode()))
                if self._draining():
                    added.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *added]
            await send(message)

        self._meters.open_requests.inc()
        try:
            self._check(scope, headers)
            await self._app(scope, receive, sending)
        except Exception as error:
            refusal = _refusal(error)
            exchange.code, exchange.detail = refusal.code, refusal.detail
            if status:
                # its beginning was sent
                raise
            await _told(refusal, exchange)(scope, receive, sending)
        finally:
            self._meters.open_requests.dec()
            self.release(exchange)
            told = {"method": scope["method"][:16], "path": scope["path"][:200]}
            note_request(self._meters, self._log, exchange, **told, status=status, failed=status == 500)

    def hold(self, exchange: Exchange, num_bytes: int) -> bool:
        """Whether so many more bytes of bodies may be in memory; they are until the exchange ends."""
        if self.pending_bytes + num_bytes > self._settings.max_pending_bytes:
            return False
        self.pending_bytes += num_bytes
        exchange.held_bytes += num_bytes
        self._meters.pending_bytes.set(self.pending_bytes)
        return True

    def release(self, exchange: Exchange) -> None:
        """Forget the bytes of an exchange's body."""
        if exchange.held_bytes:
            self.pending_bytes -= exchange.held_bytes
            exchange.held_bytes = 0
            self._meters.pending_bytes.set(self.pending_bytes)

    def _check(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        if len(headers) != len(scope["headers"]):
            names = [name for name, _ in scope["headers"]]
            for name in SINGLE:
                if names.count(name) > 1:
                    raise repeated(name)
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and _without_port(host) not in self._hosts:
            raise Refusal(
                421,
                "unknown_host",
                f"the Host is none of this server's names: got {host[:100]!r}. Use one of "
                f"{', '.join(sorted(self._hosts))}, or add it (vivace serve --allow-host).",
                close=True,
            )
        authority: bytes | None = scope.get(AUTHORITY)
        if authority is not None and authority.decode("latin-1").lower() != host:
            raise Refusal(
                400,
                "two_hosts",
                f"the URL and the Host name two servers: got {authority[:100].decode('latin-1')!r} and {host[:100]!r}. "
                "Send the path alone.",
                close=True,
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            raise Refusal(
                403,
                "other_origin",
                f"a page of another site asks: got Origin {origin[:100].decode('latin-1')!r}. Requests of browsers are "
                "taken from this server's own page alone.",
                close=True,
            )
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            raise Refusal(
                501,
                "transfer_encoding",
                "the body comes in an encoding that is not taken: got Transfer-Encoding "
                f"{coding[:40].decode('latin-1')!r}. Send it as it is.",
                close=True,
            )
        if self._token is not None and not _is_open(scope):
            check_token(headers.get(b"authorization", b""), self._token, send="header Authorization", close=True)
        if (broken := scope.get(BROKEN)) is not None:
            raise broken


def repeated(name: bytes, what: str = "header") -> Refusal:
    """What is said of a header, or of gRPC's metadata, that came more than once."""
    return Refusal(400, "repeated_header", f"the {what} {name.decode()} comes twice. Send it once.")


def check_token(authorization: bytes, token: bytes, *, send: str, close: bool = False) -> None:
    """Raises Refusal (401) unless a request has the token. send: how it is sent, for the message."""
    kind, _, given = authorization.partition(b" ")
    # compared whatever the kind is: how long it takes says nothing
    same = hmac.compare_digest(given.strip(), token)
    if not same or kind.lower() != b"bearer":
        what = "is wrong" if given else "is missing"
        raise Refusal(401, "no_token", f"the token {what}. Send the {send}: Bearer TOKEN.", close=close)


def note_request(
    meters: Meters, log: Log, exchange: Exchange, *, method: str, path: str, status: int | str, failed: bool
) -> None:
    """Count a request that was answered, and log it. failed: by a fault of the server."""
    seconds = time.perf_counter() - exchange.started
    meters.of_request(exchange.route, status, seconds)
    problem = exchange.code is not None and log.problems
    if problem or log.every:
        facts = {
            "id": exchange.id,
            "method": method,
            "path": path,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "bundle": exchange.bundle,
            "images": exchange.images,
            "code": exchange.code,
            "detail": exchange.detail,
            "traceparent": exchange.traceparent,
        }
        level = "error" if failed else "warning" if problem else "info"
        log.event("request", level=level, **{name: value for name, value in facts.items() if value})


def _is_open(scope: Any) -> bool:
    path, method = scope["path"], scope["method"]
    return method in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(OPEN_PREFIX))


def _without_port(host: str) -> str | None:
    """The name in a Host header; an IPv6 address keeps its brackets. None: what follows it is no port."""
    if host.startswith("["):
        name, bracket, port = host.partition("]")
        name += bracket
    else:
        name, colon, port = host.partition(":")
        port = colon + port
    return name if PORT.fullmatch(port) else None


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        allowed = (error.headers or {}).get("Allow")
        if error.status_code == 405:
            found = Refusal(405, "method", f"the method is not for this path. Use {allowed}.")
            found.allow = allowed  # type: ignore[attr-defined]
            return found
        return Refusal(
            error.status_code, "not_found", "there is nothing at this path. See /openapi.json for all paths."
        )
    return internal(error)


def _told(refusal: Refusal, exchange: Exchange) -> Response:
    body = {"error": str(refusal), "code": refusal.code, "request_id": exchange.id}
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.close:
        headers["connection"] = "close"
    if allowed := getattr(refusal, "allow", None):
        headers["allow"] = allowed
    return Response(json.dumps(body), refusal.status, headers)
