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

from vivace.runtimes.table import INPUT, OUTPUT
from vivace.serving.bundles import Served
from vivace.serving.protocols.classifying import Classifying
from vivace.serving.protocols.tensors import as_images, as_list, encoded_texts, whole
from vivace.serving.web.bodies import parsed_json, read_body
from vivace.serving.web.exchange import json_response
from vivace.serving.web.refusals import Refusal

__all__ = ["OpenInference"]

EXTENSIONS = ["binary_tensor_data", "classification"]
LENGTH = "inference-header-content-length"
MAX_INPUTS = 8


class OpenInference:
    """The handlers of the protocol. ready: whether the server takes requests."""

    def __init__(self, classifying: Classifying, version: str, *, ready: Callable[[], bool]) -> None:
        self._classifying, self._version, self._ready = classifying, version, ready

    async def server(self, request: Request) -> Response:
        """What the server is."""
        return _json({"name": "vivace", "version": self._version, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether it takes requests: 503 once it is about to stop."""
        return _json({"ready": self._ready()}, status=200 if self._ready() else 503)

    async def model(self, request: Request) -> Response:
        """What a bundle takes and gives."""
        served = self._named(request)
        info = served.predictor.bundle.info
        size, channels = info.preprocess.size, info.preprocess.channels
        datatype = "UINT8" if info.preprocess.dtype == "uint8" else "FP32"
        return _json(
            {
                "name": served.name,
                "versions": [str(served.generation)],
                "platform": f"vivace_{served.predictor.runtime}",
                "inputs": [{"name": INPUT, "datatype": datatype, "shape": [-1, size, size, channels]}],
                "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(info.classes)]}],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a bundle takes requests."""
        return _json({"name": self._named(request).name, "ready": self._ready()}, status=200 if self._ready() else 503)

    async def infer(self, request: Request) -> Response:
        """Classify the images of one input tensor."""
        served = self._named(request)
        self._classifying.bundle_for(request, served.name)
        body = await read_body(request, self._classifying.settings)
        asked, tensors = await _split(body, request.headers.get(LENGTH))
        outputs = _outputs(asked, len(served.predictor.classes))
        images = self._images(asked, tensors, served)
        items = await self._classifying.items(request, served, images)
        for index, item in enumerate(items):
            if item.error is not None:
                where = f"{INPUT}[{index}]: " if len(items) > 1 else ""
                error = item.error
                raise Refusal(error.status, error.code, f"{where}{error}", retry_after=error.retry_after)
        probs_NK = np.stack([item.probs for item in items if item.probs is not None])
        return _answer(asked, served, probs_NK, outputs)

    def _named(self, request: Request) -> Served:
        served = self._classifying.bundles.get(request.path_params["name"])
        version = request.path_params.get("version")
        if version not in (None, str(served.generation)):
            raise Refusal(
                404, "unknown_version", f"the version is {served.generation}: got {version[:40]!r}. Leave it out."
            )
        return served

    def _images(self, asked: dict[str, Any], tensors: bytes | None, served: Served) -> Any:
        inputs = as_list(asked.get("inputs"), "inputs")
        if len(inputs) != 1 or not isinstance(inputs[0], dict) or inputs[0].get("name") != INPUT:
            names = [str(one.get("name"))[:40] if isinstance(one, dict) else "?" for one in inputs[:MAX_INPUTS]]
            raise _refused(f"one input is taken, {INPUT!r}: got {names}. Send it alone")
        tensor = inputs[0]
        parameters = _parameters(tensor, "the input's parameters")
        if unknown := sorted(set(parameters) - {"binary_data_size"}):
            # shared memory of Triton's, say: nothing is read that is not in the request
            raise _refused(f"the input's parameter is not taken: got {unknown[0][:40]!r}. Send the data itself")
        size = parameters.get("binary_data_size")
        binary = None
        if size is not None:
            if tensors is None or whole(size, "binary_data_size") != len(tensors) or "data" in tensor:
                raise _refused(
                    f"binary_data_size is {str(size)[:40]}, and {len(tensors or b''):,} bytes follow the JSON. Send "
                    f"{LENGTH} and as many bytes, and no data beside them"
                )
            binary = tensors
        elif tensors:
            raise _refused(f"{len(tensors):,} bytes follow the JSON, of no input. Give binary_data_size")
        settings = self._classifying.settings
        return as_images(tensor, binary, served.predictor.bundle.preprocess, max_images=settings.max_images)


async def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes | None]:
    """(the JSON of a request, the tensors behind it or None)."""
    tensors = None
    if length is not None:
        if not length.isascii() or not length.isdigit() or int(length[:20]) > len(body):
            raise _refused(f"{LENGTH} is {length[:20]!r}, the body has {len(body):,} bytes. Give the JSON's length")
        body, tensors = body[: int(length)], body[int(length) :]
    asked = await parsed_json(body)
    if not isinstance(asked, dict):
        raise _refused(f"the body is no JSON object: got {type(asked).__name__}. Send one with inputs")
    given = asked.get("id")
    if given is not None and not (isinstance(given, str) and len(given) <= 200):
        raise _refused("the id is no text of up to 200 characters. Give one, or leave it out")
    return asked, tensors


def _parameters(value: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise _refused(f"{what} are no object: got {type(parameters).__name__}. Give one, or leave them out")
    return parameters


def _outputs(asked: dict[str, Any], num_classes: int) -> list[tuple[int, bool]]:
    """(classes that are asked for or 0, whether as a binary tensor) of each output."""
    all_binary = _parameters(asked, "the parameters").get("binary_data_output", False)
    if not isinstance(all_binary, bool):
        raise _refused("binary_data_output is neither true nor false. Give one of these")
    outputs = asked.get("outputs")
    if outputs is None or outputs == []:
        return [(0, all_binary)]
    found: list[tuple[int, bool]] = []
    for output in as_list(outputs, "outputs"):
        if not isinstance(output, dict) or output.get("name") != OUTPUT or len(found) == MAX_INPUTS:
            name = output.get("name") if isinstance(output, dict) else output
            raise _refused(f"the output is unknown: got {str(name)[:40]!r}. Ask for {OUTPUT!r}")
        parameters = _parameters(output, "the output's parameters")
        if unknown := sorted(set(parameters) - {"binary_data", "classification"}):
            raise _refused(f"the output's parameter is not taken: got {unknown[0][:40]!r}. Leave it out")
        binary = parameters.get("binary_data", all_binary)
        if not isinstance(binary, bool):
            raise _refused("binary_data is neither true nor false. Give one of these")
        found.append((min(num_classes, whole(parameters.get("classification", 0), "classification")), binary))
    return found


def _answer(asked: dict[str, Any], served: Served, probs_NK: np.ndarray, outputs: list[tuple[int, bool]]) -> Response:
    told: dict[str, Any] = {"model_name": served.name, "model_version": str(served.generation), "outputs": []}
    if asked.get("id") is not None:
        told["id"] = asked["id"]
    tensors: list[bytes] = []
    for count, binary in outputs:
        output: dict[str, Any] = {"name": OUTPUT}
        if count:
            values: Any = [text for probs_K in probs_NK for text in _ranked(probs_K, count, served.predictor.classes)]
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


def _ranked(probs_K: np.ndarray, count: int, classes: tuple[str, ...]) -> list[str]:
    order = np.argsort(-probs_K, kind="stable")[:count]
    return [f"{probs_K[index]:.6f}:{index}:{classes[index]}" for index in order]


def _json(value: dict[str, Any], *, status: int = 200) -> Response:
    return json_response(json.dumps(value).encode(), status=status)


def _refused(message: str) -> Refusal:
    return Refusal(400, "request", f"{message}.")
