"""The body of a request, bounded in bytes, time and parts; and the files of a multipart body."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from email.message import Message
from typing import Any

from starlette.requests import Request

from vivace.errors import ConfigError, MissingExtra
from vivace.plain import parse_json
from vivace.serving.settings import Settings
from vivace.serving.web.exchange import BROKEN, WHOLE, exchange_of, header_of
from vivace.serving.web.refusals import Refusal, too_busy

__all__ = ["File", "Form", "check_sent", "media_type", "of_form", "parsed_json", "read_body", "read_form"]

# a client that is refused for its size reads the refusal only once it has sent all: so much is read and thrown away
MAX_DISCARDED, DISCARD_SECONDS = 64 << 20, 2.0
MAX_JSON_BYTES = 16 << 20
# beside the images: topk and the like
MAX_FIELDS, MAX_FIELD_BYTES = 8, 1024
MAX_PART_HEADERS, MAX_PART_HEADER_BYTES = 8, 4096
MAX_BOUNDARY = 70
# parsed in a thread, so that other requests are not held up
LARGE = 1 << 16


@dataclass(frozen=True)
class File:
    """One image of a multipart body."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Form:
    """A multipart body: its files in order, and its other fields."""

    files: tuple[File, ...]
    fields: dict[str, str]


def check_sent(body: bytes) -> None:
    """Raises Refusal (422) for a body of no bytes, where an image is to be."""
    if not body:
        raise Refusal(
            422,
            "empty",
            "the body is empty: got 0 bytes in place of an image. Send its bytes (curl --data-binary @one.jpg) or "
            "files (curl -F image=@one.jpg).",
        )


def of_form(request: Request, error: Refusal) -> Refusal:
    """The refusal of an image, with how to fix it where curl's -d has sent it, which leaves out ends of lines."""
    if media_type(request) != "application/x-www-form-urlencoded" or error.status not in (415, 422):
        return error
    text = f"{error} The Content-Type is that of a form: if curl -d sent it, use --data-binary @one.jpg."
    return Refusal(error.status, error.code, text)


def media_type(request: Request) -> str:
    """Such as "image/jpeg", in lower case and without parameters; "" where none is given."""
    return header_of(request, b"content-type").partition(";")[0].strip().lower()


async def read_body(request: Request, settings: Settings) -> bytes:
    """All of a request's body.

    Raises Refusal: 400 if it does not follow its lengths, 408 if it comes too slowly, 413 if it is too large, 415 if
    it is compressed, 503 if there is no memory for it, 499 if the client leaves.
    """
    encoding = header_of(request, b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(
            415,
            "encoded",
            f"the body is compressed: got Content-Encoding {encoding[:40]!r}. Send it as it is.",
            close=True,
        )
    length = header_of(request, b"content-length")
    if length.isascii() and length.isdigit() and int(length[:20]) > settings.max_body_bytes:
        raise await _too_large(request, settings, int(length[:20]))
    guard, exchange, began = request.scope["app"], exchange_of(request.scope), time.monotonic()
    # not a list of pieces: a client that sends single bytes would make each an object of forty
    body, received = bytearray(), 0
    while True:
        # what is there is not waited for
        whole = request.scope.get(WHOLE, False)
        message = await (request.receive() if whole else _next(request.receive, settings))
        if (broken := request.scope.get(BROKEN)) is not None:
            raise broken
        if message["type"] != "http.request":
            raise Refusal(499, "client_gone", "the client has left")
        chunk: bytes = message.get("body", b"")
        received += len(chunk)
        if received > settings.max_body_bytes:
            raise await _too_large(request, settings, received)
        if not guard.hold(exchange, len(chunk)):
            raise too_busy("there is no memory for more bodies", 1, code="no_memory")
        more = message.get("more_body", False)
        if not more and received == len(chunk):
            return chunk
        body += chunk
        if not more:
            return bytes(body)
        allowed = settings.header_seconds + received / settings.min_bytes_per_second
        if time.monotonic() - began > allowed:
            raise _too_slow(f"{received:,} bytes in {time.monotonic() - began:.0f} s")


async def _next(receive: Any, settings: Settings) -> Any:
    try:
        async with asyncio.timeout(settings.idle_seconds):
            return await receive()
    except TimeoutError:
        raise _too_slow(f"nothing for {settings.idle_seconds:g} s") from None


def _too_slow(got: str) -> Refusal:
    return Refusal(408, "slow", f"the body comes too slowly: got {got}. Send it faster.", close=True)


async def _too_large(request: Request, settings: Settings, received: int) -> Refusal:
    """The refusal, once the client has had the time to send what it is sending: else it never reads it."""
    if "expect" not in request.headers:
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                discarded = 0
                message: Any = {"more_body": True}
                while message.get("more_body") and discarded < MAX_DISCARDED:
                    message = await request.receive()
                    discarded += len(message.get("body", b""))
        except TimeoutError:
            pass
    return Refusal(
        413,
        "too_large",
        f"the body is too large: got {received:,} bytes or more, {settings.max_body_bytes:,} are allowed. Send a "
        "smaller image, or raise the limit (vivace serve --max-body).",
        close=True,
    )


async def parsed_json(data: bytes, what: str = "the body") -> Any:
    """The plain value of JSON. Raises Refusal: 400 for what is none, is nested too deeply or has absurd numbers."""
    if len(data) > MAX_JSON_BYTES:
        raise Refusal(
            413,
            "too_large",
            f"{what} has {len(data):,} bytes of JSON, {MAX_JSON_BYTES:,} are allowed. Send binary tensors.",
        )
    try:
        if len(data) > LARGE:
            return await asyncio.get_running_loop().run_in_executor(None, _parsed, data, what)
        return _parsed(data, what)
    except ConfigError as error:
        raise Refusal(400, "no_json", str(error)) from None


def _parsed(data: bytes, what: str) -> Any:
    return parse_json(data, what, fix="Send plain JSON")


async def read_form(request: Request, settings: Settings) -> Form:
    """The files and fields of a multipart/form-data body. Raises Refusal as `read_body`, and 400 for one that is none
    or has too many parts."""
    boundary = _boundary(request.headers.get("content-type", ""))
    data = await read_body(request, settings)
    if len(data) > LARGE:
        return await asyncio.get_running_loop().run_in_executor(None, _form, data, boundary, settings.max_images)
    return _form(data, boundary, settings.max_images)


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data":
        raise Refusal(415, "multipart", f"got {content_type[:80]!r}. Send multipart/form-data, or an image's bytes.")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise Refusal(400, "multipart", "the boundary of the multipart body is missing or odd. Send 1 to 70 letters.")
    return boundary.encode()


class _Parts:
    """What a parser reports, part by part; it refuses the first that is one too many."""

    def __init__(self, max_images: int) -> None:
        self.max_images, self.ended = max_images, False
        self.files: list[File] = []
        self.fields: dict[str, str] = {}

    def on_part_begin(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._field, self._value, self._data, self._bytes = b"", b"", [], 0  # type: ignore[var-annotated]
        if len(self.files) + len(self.fields) > self.max_images + MAX_FIELDS:
            raise _multipart(f"it has more than {self.max_images} images")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers.append((self._field.lower(), self._value))
        self._field, self._value = b"", b""

    def on_headers_finished(self) -> None:
        headers, message = dict(self._headers), Message()
        message["content-disposition"] = headers.get(b"content-disposition", b"").decode("utf-8", "replace")
        self._name = message.get_param("name", header="content-disposition")
        self._filename = message.get_filename()
        encoding = headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise _multipart("a part is encoded. Send its bytes as they are")
        if headers.get(b"content-type", b"").strip().lower().startswith(b"multipart/"):
            raise _multipart("a part is multipart itself. Send the files side by side")
        if not isinstance(self._name, str) or not self._name:
            raise _multipart("a part has no name")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])
        self._bytes += end - start
        if self._filename is None and self._bytes > MAX_FIELD_BYTES:
            raise _multipart(f"the field {str(self._name)[:40]!r} is no file and has over {MAX_FIELD_BYTES} bytes")

    def on_part_end(self) -> None:
        data = b"".join(self._data)
        if self._filename is not None:
            if len(self.files) == self.max_images:
                raise _multipart(f"it has more than {self.max_images} images")
            self.files.append(File(self._filename[:200] or f"image {len(self.files)}", data))
            return
        name = str(self._name)
        if name in self.fields or len(self.fields) == MAX_FIELDS:
            raise _multipart(f"the field {name[:40]!r} comes twice, or is one of too many")
        self.fields[name] = data.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.ended = True


def _multipart(cause: str) -> Refusal:
    return Refusal(400, "multipart", f"the multipart body is refused: {cause}. Send at most as many plain files.")


def _form(data: bytes, boundary: bytes, max_images: int) -> Form:
    try:
        from python_multipart.multipart import MultipartParser
    except ImportError:
        raise MissingExtra("python-multipart", "serve", "serving") from None
    parts = _Parts(max_images)
    names = [name for name in dir(parts) if name.startswith("on_")]
    callbacks: Any = {name: getattr(parts, name) for name in names}
    parser = MultipartParser(
        boundary, callbacks, max_header_count=MAX_PART_HEADERS, max_header_size=MAX_PART_HEADER_BYTES
    )
    try:
        parser.write(data)
        parser.finalize()
    except (ValueError, LookupError):
        # also what odd parameters of its headers make of a parser
        raise _multipart("it does not follow its boundary") from None
    if not parts.ended:
        raise _multipart("it ends before its last boundary")
    return Form(tuple(parts.files), parts.fields)
