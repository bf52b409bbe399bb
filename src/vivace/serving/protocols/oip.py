"""Open Inference Protocol v2 over REST, as KServe, Triton and their clients speak it.

Extensions: binary_tensor_data (raw tensors behind the JSON, whose length is in Inference-Header-Content-Length) and
classification (the likeliest classes of an output as texts, "probability:index:label").
Source: https://github.com/kserve/open-inference-protocol; the extensions are Triton's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from vivace.runtimes.table import OUTPUT
from vivace.serving.bundles import Served
from vivace.serving.protocols.classifying import Classifying
from vivace.serving.protocols.inference import (
    LENGTH,
    SERVER,
    asked_images,
    check_id,
    described,
    named,
    probs_of,
    ranked,
    refused,
    wanted_outputs,
)
from vivace.serving.protocols.tensors import encoded_texts
from vivace.serving.web.bodies import parsed_json, read_body
from vivace.serving.web.exchange import json_response
from vivace.serving.web.refusals import Refusal

__all__ = ["OpenInference"]

EXTENSIONS = ["binary_tensor_data", "classification"]


class OpenInference:
    """The handlers of the protocol. ready: whether the server takes requests."""

    def __init__(self, classifying: Classifying, version: str, *, ready: Callable[[], bool]) -> None:
        self._classifying, self._version, self._ready = classifying, version, ready

    async def server(self, request: Request) -> Response:
        """What the server is."""
        return _json({"name": SERVER, "version": self._version, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether it takes requests: 503 once it is about to stop."""
        return _json({"ready": self._ready()}, status=200 if self._ready() else 503)

    async def model(self, request: Request) -> Response:
        """What a bundle takes and gives."""
        bundles = self._classifying.bundles
        if request.path_params["name"] == "stats" and "stats" not in bundles.names:
            # the statistics of all of them
            return await self.statistics(request)
        return _json(described(self._named(request)))

    async def model_ready(self, request: Request) -> Response:
        """Whether a bundle takes requests."""
        return _json({"name": self._named(request).name, "ready": self._ready()}, status=200 if self._ready() else 503)

    async def statistics(self, request: Request) -> Response:
        """Refuse Triton's extension of this name."""
        raise Refusal(404, "statistics", "there are no statistics in this protocol: they are at /metrics. Read these.")

    async def infer(self, request: Request) -> Response:
        """Classify the images of one input tensor."""
        served = self._named(request)
        self._classifying.bundle_for(request, served.name)
        body = await read_body(request, self._classifying.settings)
        asked, tensors = await _split(body, request.headers.get(LENGTH))
        outputs = wanted_outputs(asked, len(served.predictor.classes))
        images = asked_images(asked, tensors, served, max_images=self._classifying.settings.max_images)
        items = await self._classifying.items(request, served, images)
        return _answer(asked, served, probs_of(items), outputs)

    def _named(self, request: Request) -> Served:
        return named(self._classifying.bundles, request.path_params["name"], request.path_params.get("version"))


async def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes | None]:
    """(the JSON of a request, the tensors behind it or None)."""
    tensors = None
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) <= 20) or int(length) > len(body):
            raise refused(f"{LENGTH} is {length[:20]!r}, the body has {len(body):,} bytes. Give the JSON's length")
        body, tensors = body[: int(length)], body[int(length) :]
    asked = await parsed_json(body)
    if not isinstance(asked, dict):
        raise refused(f"the body is no JSON object: got {type(asked).__name__}. Send one with inputs")
    check_id(asked.get("id"))
    return asked, tensors


def _answer(asked: dict[str, Any], served: Served, probs_NK: np.ndarray, outputs: list[tuple[int, bool]]) -> Response:
    told: dict[str, Any] = {"model_name": served.name, "model_version": str(served.generation), "outputs": []}
    if asked.get("id") is not None:
        told["id"] = asked["id"]
    tensors: list[bytes] = []
    for count, binary in outputs:
        output: dict[str, Any] = {"name": OUTPUT}
        if count:
            values: Any = [text for probs_K in probs_NK for text in ranked(probs_K, count, served.predictor.classes)]
            output |= {"datatype": "BYTES", "shape": [len(probs_NK), count]}
            data = encoded_texts(values) if binary else b""
        else:
            values = probs_NK.ravel()
            output |= {"datatype": "FP32", "shape": list(probs_NK.shape)}
            data = probs_NK.astype("<f4").tobytes() if binary else b""
            values = [] if binary else values.tolist()
        if binary:
            output["parameters"] = {"binary_data_size": len(data)}
            tensors.append(data)
        else:
            output["data"] = values
        told["outputs"].append(output)
    head = json.dumps(told).encode()
    if not tensors:
        return json_response(head)
    headers = {"content-type": "application/octet-stream", "cache-control": "no-store", LENGTH: str(len(head))}
    return Response(b"".join([head, *tensors]), 200, headers)


def _json(value: dict[str, Any], *, status: int = 200) -> Response:
    return json_response(json.dumps(value).encode(), status=status)
