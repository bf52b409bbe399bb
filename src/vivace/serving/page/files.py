"""The files of the page, each with its type and the headers that bound what a browser does with it."""

from __future__ import annotations

import functools
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from vivace.browser import SHARED, shared_file
from vivace.serving.web.refusals import Refusal

__all__ = ["page_file"]

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
# what is served: a name that is not here is not looked for
TYPES = {
    INDEX: "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "image.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
}
# scripts, styles and answers of this server alone; pictures that were chosen (blob:); in no frame
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@functools.cache
def _content(name: str) -> bytes:
    return shared_file(name) if name in SHARED else (STATIC / name).read_bytes()


async def page_file(request: Request) -> Response:
    """The page itself, or a file that it needs. Raises Refusal (404) for another name."""
    name = request.path_params.get("file", INDEX)
    if name not in TYPES:
        raise Refusal(404, "not_found", f"the page has no such file: got {name[:80]!r}. Open /.")
    return Response(_content(name), 200, {**HEADERS, "content-type": TYPES[name]})
