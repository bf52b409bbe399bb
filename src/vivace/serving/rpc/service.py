"""The methods of Open Inference Protocol v2 over gRPC, with the token, bounds, log and metrics of those over HTTP.

Each is registered as one that takes a stream of messages, which on the wire is the same: so a call is refused before
its message is read, and how long that takes to come is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.runtimes.table import OUTPUT
from vivace.serving.bundles import Served
from vivace.serving.protocols.classifying import Classifying
from vivace.serving.protocols.inference import (
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
from vivace.serving.rpc.messages import PACKAGE, SERVICE, messages, plain_parameters
from vivace.serving.web.exchange import Exchange
from vivace.serving.web.guard import SINGLE, check_token, note_request, repeated
from vivace.serving.web.refusals import Refusal, internal, too_busy

if TYPE_CHECKING:
    from vivace.serving.app import Application

__all__ = ["handlers"]

EXTENSIONS = ["classification"]
# what tells nothing of the bundles: probes have no token
OPEN = frozenset({"ServerLive", "ServerReady"})
# status of HTTP → that of gRPC
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
}
# datatype → the field of contents that has it
CONTENTS = {"UINT8": "uint_contents", "UINT16": "uint_contents", "FP32": "fp32_contents"}


def handlers(application: Application) -> Any:
    """What a gRPC server is given to answer with an application's bundles."""
    import grpc

    service = _Service(application)
    methods: dict[str, Callable[..., Awaitable[Any]]] = {
        "ServerLive": service.live,
        "ServerReady": service.ready,
        "ModelReady": service.model_ready,
        "ServerMetadata": service.server,
        "ModelMetadata": service.model,
        "ModelInfer": service.infer,
    }
    return grpc.method_handlers_generic_handler(
        f"{PACKAGE}.{SERVICE}",
        {name: grpc.stream_unary_rpc_method_handler(service.guarded(name, method)) for name, method in methods.items()},
    )


class _Service:
    """The methods. Each takes its message, the exchange, and the seconds that the client waits at most."""

    def __init__(self, application: Application) -> None:
        self._application, self._settings = application, application.settings
        self._classifying = Classifying(application.bundles, application.settings)
        self._token = None if application.settings.token is None else application.settings.token.encode()
        self._messages = messages()
        self._version = metadata.version("vivace")

    async def live(self, request: Any, exchange: Exchange, seconds: float) -> Any:
        """Whether the process answers."""
        return self._messages["ServerLiveResponse"](live=True)

    async def ready(self, request: Any, exchange: Exchange, seconds: float) -> Any:
        """Whether it takes requests: not once it is about to stop."""
        return self._messages["ServerReadyResponse"](ready=not self._application.draining)

    async def model_ready(self, request: Any, exchange: Exchange, seconds: float) -> Any:
        """Whether a bundle takes requests."""
        self._named(request.name, request.version, exchange)
        return self._messages["ModelReadyResponse"](ready=not self._application.draining)

    async def server(self, request: Any, exchange: Exchange, seconds: float) -> Any:
        """What the server is."""
        return self._messages["ServerMetadataResponse"](name=SERVER, version=self._version, extensions=EXTENSIONS)

    async def model(self, request: Any, exchange: Exchange, seconds: float) -> Any:
        """What a bundle takes and gives."""
        return self._messages["ModelMetadataResponse"](
            **described(self._named(request.name, request.version, exchange))
        )

    async def infer(self, request: Any, exchange: Exchange, seconds: float) -> Any:
        """Classify the images of one input tensor; outputs are raw, however the input came."""
        check_id(request.id)
        served = self._named(request.model_name, request.model_version, exchange)
        if served.batcher.is_full:
            raise served.batcher.refusal()
        asked, tensors = _plain(request)
        outputs = [count for count, _ in wanted_outputs(asked, len(served.predictor.classes))]
        images = asked_images(asked, tensors, served, max_images=self._settings.max_images)
        exchange.images = len(images)
        job = self._classifying.job(images, seconds=seconds)
        return self._answer(request, served, probs_of(await served.batcher.classify(job)), outputs)

    def _named(self, name: str, version: str, exchange: Exchange) -> Served:
        served = named(self._application.bundles, name, version)
        exchange.bundle = served.name
        return served

    def _answer(self, request: Any, served: Served, probs_NK: np.ndarray, outputs: list[int]) -> Any:
        answer = self._messages["ModelInferResponse"](
            model_name=served.name, model_version=str(served.generation), id=request.id
        )
        for count in outputs:
            if count:
                texts = [text for probs_K in probs_NK for text in ranked(probs_K, count, served.predictor.classes)]
                answer.outputs.add(name=OUTPUT, datatype="BYTES", shape=[len(probs_NK), count])
                answer.raw_output_contents.append(encoded_texts(texts))
            else:
                answer.outputs.add(name=OUTPUT, datatype="FP32", shape=probs_NK.shape)
                answer.raw_output_contents.append(probs_NK.astype("<f4").tobytes())
        return answer

    def guarded(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[bytes]]:
        """The method behind token and bounds, from bytes to bytes; counts and logs its calls."""
        import grpc

        application, read = self._application, self._messages[f"{name}Request"]

        async def call(given: AsyncIterator[bytes], context: Any) -> bytes:
            exchange = Exchange(_headers(context))
            exchange.route, status, problem = f"grpc {name}", "OK", None
            context.set_trailing_metadata((("x-request-id", exchange.id),))
            application.meters.open_requests.inc()
            try:
                _check_repeated(context)
                if name not in OPEN:
                    self._check_token(context)
                request = await self._message(given, read, exchange)
                left = context.time_remaining()
                seconds = min(self._settings.answer_seconds, self._settings.answer_seconds if left is None else left)
                encoded: bytes = (await method(request, exchange, seconds)).SerializeToString()
                return encoded
            except asyncio.CancelledError:
                status, exchange.code = "CANCELLED", "client_gone"
                raise
            except Exception as error:
                problem = error if isinstance(error, Refusal) else internal(error)
                exchange.code, exchange.detail = problem.code, problem.detail
                status = STATUSES.get(problem.status, "INVALID_ARGUMENT" if problem.status < 500 else "INTERNAL")
            finally:
                application.meters.open_requests.dec()
                application.guard.release(exchange)
                failed = status == "INTERNAL"
                told = application.meters, application.log, exchange
                note_request(*told, method="gRPC", path=name, status=status, failed=failed)
            trailing = [("x-request-id", exchange.id), ("vivace-code", problem.code)]
            if problem.retry_after is not None:
                trailing.append(("retry-after", str(problem.retry_after)))
            await context.abort(getattr(grpc.StatusCode, status), str(problem), tuple(trailing))
            raise AssertionError("abort raises")

        return call

    async def _message(self, given: AsyncIterator[bytes], read: Any, exchange: Exchange) -> Any:
        """The one message of a call. Raises Refusal for one that comes too slowly, or that there is no memory for."""
        try:
            async with asyncio.timeout(self._settings.answer_seconds):
                data = await anext(given)
        except TimeoutError:
            raise Refusal(
                408, "slow", f"no message came in {self._settings.answer_seconds:g} s. Send it faster."
            ) from None
        except StopAsyncIteration:
            raise refused("the call has no message. Send one") from None
        if not self._application.guard.hold(exchange, len(data)):
            raise too_busy("there is no memory for more requests", 1, code="no_memory")
        try:
            return read.FromString(data)
        except Exception:
            # protobuf's own errors differ between its implementations
            raise refused(f"the message is no {read.DESCRIPTOR.name}: {len(data):,} bytes. Send one") from None

    def _check_token(self, context: Any) -> None:
        if self._token is None:
            return
        authorization = _headers(context).get(b"authorization", b"")
        check_token(authorization, self._token, send="metadata authorization")


def _check_repeated(context: Any) -> None:
    """Raises Refusal (400) for metadata that come twice, where there may be one alone: as over HTTP."""
    names = [name.encode() for name, _ in context.invocation_metadata() or ()]
    for name in SINGLE:
        if names.count(name) > 1:
            raise repeated(name, "metadata")


def _headers(context: Any) -> dict[bytes, bytes]:
    found = context.invocation_metadata() or ()
    return {name.encode(): value.encode() for name, value in found if isinstance(value, str)}


def _plain(request: Any) -> tuple[dict[str, Any], bytes | None]:
    """(a request as REST has it in JSON, the tensors that came in binary or None). Raises Refusal (400)."""
    raw = list(request.raw_input_contents)
    if len(raw) > 1 or (raw and len(request.inputs) != 1):
        raise refused(f"raw_input_contents has {len(raw)} tensors for {len(request.inputs)} inputs. Send one of each")
    tensors = raw[0] if raw else None
    inputs = []
    for one in request.inputs[:2]:
        tensor: dict[str, Any] = {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
            "parameters": plain_parameters(one.parameters),
        }
        if raw:
            if one.HasField("contents"):
                raise refused("the input has contents and raw_input_contents. Send one of them")
            tensor["parameters"]["binary_data_size"] = len(raw[0])
        elif one.datatype == "BYTES":
            tensors = b"".join(len(file).to_bytes(4, "little") + file for file in one.contents.bytes_contents)
            tensor["parameters"]["binary_data_size"] = len(tensors)
        else:
            tensor["data"] = list(getattr(one.contents, CONTENTS.get(one.datatype, "uint_contents")))
        inputs.append(tensor)
    outputs = [{"name": one.name, "parameters": plain_parameters(one.parameters)} for one in request.outputs]
    return {"inputs": inputs, "outputs": outputs}, tensors
