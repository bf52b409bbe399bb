"""The ASGI application: every path of the server, and the states that it goes through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.errors import MissingExtra
from vivace.serving.bundles import Bundles
from vivace.serving.metrics import CONTENT_TYPE, Meters
from vivace.serving.settings import Settings
from vivace.serving.web.logs import Log

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["Application", "check_libraries"]


def check_libraries() -> None:
    """Raises MissingExtra unless what serving needs is installed; said before a bundle is opened."""
    for library, module in (
        ("starlette", "starlette"),
        ("uvicorn", "uvicorn"),
        ("httptools", "httptools"),
        ("python-multipart", "python_multipart"),
        ("prometheus-client", "prometheus_client"),
    ):
        try:
            __import__(module)
        except ImportError:
            raise MissingExtra(library, "serve", "serving") from None


class Application:
    """Bundles behind HTTP, as an ASGI application: call it with (scope, receive, send).

    Opens the bundles, which takes a while. `begin_to_stop` makes it say that it is not ready; `stop` ends its threads
    once all that was taken is answered. Raises what opening a bundle raises, and MissingExtra.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        settings: Settings | None = None,
        *,
        threads: int | None = None,
        log: Log | None = None,
    ) -> None:
        check_libraries()
        from vivace.serving.web.guard import Guard

        self.settings = settings or Settings()
        self.log = log or Log(self.settings.log)
        self.meters = Meters()
        self.draining = self.stops_at_once = False
        self.grpc_address: str | None = None
        """HOST:PORT of the server for gRPC beside this, while there is one."""
        self.bundles = Bundles(folders, self.settings, self.meters, self.log, threads=threads)
        self.guard = Guard(self._router(), self.settings, self.meters, self.log, draining=lambda: self.draining)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.guard(scope, receive, send)

    async def reload(self) -> bool:
        """Open all bundles anew; see `Bundles.reload`."""
        return await self.bundles.reload()

    def begin_to_stop(self) -> None:
        """Say that the server is not ready, and end every connection with its next answer."""
        self.draining = True

    async def stop(self) -> None:
        """Answer what was taken, then end the threads."""
        self.draining = True
        await self.bundles.stop()

    def _router(self) -> Any:
        from vivace.serving.page.files import page_file
        from vivace.serving.protocols.classifying import Classifying
        from vivace.serving.protocols.huggingface import HuggingFace
        from vivace.serving.protocols.native import Native
        from vivace.serving.protocols.oip import OpenInference
        from vivace.serving.web.exchange import Routes

        classifying = Classifying(self.bundles, self.settings)
        native, task = Native(classifying), HuggingFace(classifying)
        v2 = OpenInference(classifying, metadata.version("vivace"), ready=lambda: not self.draining)
        handlers = [
            # of those with names in them, what is asked for most comes first: they are tried one after the other
            ("POST", "/predict", native.predict),
            ("POST", "/v2/models/{name}/infer", v2.infer),
            ("POST", "/models/{name}", task.classify),
            ("POST", "/", task.classify),
            ("GET", "/healthz", self._healthz),
            ("GET", "/readyz", self._readyz),
            ("GET", "/metrics", self._metrics),
            ("GET", "/bundles", native.bundles),
            ("POST", "/heatmap", native.heat_map),
            ("GET", "/models/{name}", task.describe),
            ("GET", "/v2", v2.server),
            ("GET", "/v2/health/live", v2.live),
            ("GET", "/v2/health/ready", v2.ready),
            ("GET", "/v2/models/{name}", v2.model),
            ("GET", "/v2/models/{name}/ready", v2.model_ready),
            ("GET", "/v2/models/{name}/versions/{version}", v2.model),
            ("GET", "/v2/models/{name}/versions/{version}/ready", v2.model_ready),
            ("POST", "/v2/models/{name}/versions/{version}/infer", v2.infer),
            ("GET", "/v2/models/{name}/stats", v2.statistics),
            ("GET", "/v2/models/{name}/versions/{version}/stats", v2.statistics),
            ("GET", "/openapi.json", self._openapi),
            ("GET", "/", page_file),
            ("GET", "/page/{file}", page_file),
        ]
        return Routes(handlers)

    async def _healthz(self, request: Request) -> Response:
        return _json({"status": "alive"})

    async def _readyz(self, request: Request) -> Response:
        status = "stopping" if self.draining else "ready"
        return _json({"status": status, "bundles": self.bundles.names}, status=503 if self.draining else 200)

    async def _metrics(self, request: Request) -> Response:
        from starlette.responses import Response

        for served in self.bundles.all:
            # up to the last image
            served.drift.describe()
        return Response(self.meters.text(), headers={"content-type": CONTENT_TYPE})

    async def _openapi(self, request: Request) -> Response:
        from vivace.serving.protocols.openapi import description

        return _json(description(self.settings, guarded=self.settings.token is not None))


def _json(value: dict[str, Any], *, status: int = 200) -> Response:
    from vivace.serving.web.exchange import json_response

    return json_response(json.dumps(value).encode(), status=status)
