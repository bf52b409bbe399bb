"""Open Inference Protocol v2 over gRPC: an unmodified client of Triton, and what is refused."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from served import Client, Gate, answering, png, process, until

from factories import pixels
from vivace.errors import ConfigError, MissingExtra
from vivace.serving.rpc.listening import check_grpc, rpc_server
from vivace.serving.rpc.messages import messages
from vivace.serving.settings import Settings

triton = pytest.importorskip("tritonclient.grpc", exc_type=ImportError)
TOKEN = "a-token-of-more-than-16"


def calling(client: Client, asks: Callable[[str], Any]) -> Any:
    """What `asks`, given HOST:PORT, answers in a thread, while the client's application is served over gRPC."""

    async def session() -> Any:
        async with rpc_server(client.app) as address:
            assert address is not None
            return await asyncio.to_thread(asks, address)

    return client.run(session())


def tensor(array: np.ndarray, datatype: str) -> Any:
    found = triton.InferInput("images", list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def refusal(address: str, *inputs: Any, **options: Any) -> Any:
    """The error of a call that is refused."""
    with triton.InferenceServerClient(address) as found, pytest.raises(triton.InferenceServerException) as raised:
        found.infer(options.pop("model", "plain"), list(inputs), **options)
    return raised.value


def raw_call(address: str, method: str, request: bytes, **options: Any) -> Any:
    """The call of a method with any bytes, by grpc alone."""
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary(f"/inference.GRPCInferenceService/{method}").with_call(request, **options)


def test_the_client_of_triton_works_unmodified(folder: Path) -> None:
    images, files = pixels(3), np.array([png(0), png(1)], dtype=np.object_)
    wanted = triton.InferRequestedOutput("probs", class_count=2)

    def asks(address: str) -> None:
        with triton.InferenceServerClient(address) as found:
            assert found.is_server_live()
            assert found.is_server_ready()
            assert found.is_model_ready("plain")
            assert found.is_model_ready("plain", "1")
            assert list(found.get_server_metadata().extensions) == ["classification"]
            told = found.get_model_metadata("plain", as_json=True)
            assert told["platform"] == "vivace_eager"
            assert told["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": ["-1", "32", "32", "3"]}]
            assert told["outputs"] == [{"name": "probs", "datatype": "FP32", "shape": ["-1", "3"]}]
            answer = found.infer("plain", [tensor(images, "UINT8")], request_id="7")
            assert answer.get_response().id == "7"
            assert (answer.as_numpy("probs") == predictor.probs(images)).all()
            floats = found.infer("plain", [tensor((images / 255).astype("f4"), "FP32")], model_version="1")
            assert (floats.as_numpy("probs") == predictor.probs(images)).all()
            answer = found.infer("plain", [tensor(files, "BYTES")], outputs=[wanted])
            rows = answer.as_numpy("probs").tolist()
            for row, expected in zip(rows, predictor([png(0), png(1)]), strict=True):
                assert [text.decode().split(":")[2] for text in row] == [label for label, _ in expected.topk[:2]]

    with answering({"plain": folder}, grpc_port=0) as client:
        predictor = client.app.bundles.get(None).predictor
        calling(client, asks)
        assert 'vivace_requests_total{route="grpc ModelInfer",status="OK"} 3.0' in client.get("/metrics").text


def test_contents_in_the_message_give_the_same_as_raw_ones(folder: Path) -> None:
    images = pixels(1)

    def asks(address: str) -> None:
        for datatype, contents in (
            ("UINT8", {"uint_contents": images.ravel().tolist()}),
            ("FP32", {"fp32_contents": (images / 255).astype("f4").ravel().tolist()}),
            ("BYTES", {"bytes_contents": [png(0)]}),
        ):
            shape = [1] if datatype == "BYTES" else images.shape
            request = messages()["ModelInferRequest"](model_name="plain")
            one = request.inputs.add(name="images", datatype=datatype, shape=shape)
            for name, values in contents.items():
                getattr(one.contents, name).extend(values)
            answer = messages()["ModelInferResponse"].FromString(
                raw_call(address, "ModelInfer", request.SerializeToString())[0]
            )
            expected = predictor.probs(
                predictor.bundle.preprocess.load(png(0))[None] if datatype == "BYTES" else images
            )
            assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == expected[0].tolist()

    with answering({"plain": folder}, grpc_port=0) as client:
        predictor = client.app.bundles.get(None).predictor
        calling(client, asks)


def test_what_is_wrong_is_refused_with_a_reason_and_the_next_call_is_answered(folder: Path) -> None:
    image = tensor(pixels(1), "UINT8")

    def asks(address: str) -> None:
        for error, status, says in (
            (refusal(address, image, model="other"), "NOT_FOUND", "no bundle has this name: got 'other'"),
            (refusal(address, image, model_version="2"), "NOT_FOUND", "the version is 1"),
            (refusal(address, tensor(pixels(1, 16), "UINT8")), "INVALID_ARGUMENT", "is what the network sees"),
            (refusal(address, image, image), "INVALID_ARGUMENT", "raw_input_contents has 2 tensors"),
            (refusal(address, tensor(np.array([b"no"], np.object_), "BYTES")), "INVALID_ARGUMENT", "not an image"),
            (refusal(address, tensor(np.array([b"https://a.b"], np.object_), "BYTES")), "INVALID_ARGUMENT", "fetched"),
            (refusal(address, image, request_id="x" * 201), "INVALID_ARGUMENT", "the id is no text"),
            (refusal(address, tensor(pixels(65), "UINT8")), "INVALID_ARGUMENT", "1 to 64 are taken"),
            (
                refusal(address, image, outputs=[triton.InferRequestedOutput("other")]),
                "INVALID_ARGUMENT",
                "the output is unknown: got 'other'",
            ),
            # nothing is read that is not in the call, and nothing is unpacked
            (
                refusal(address, _shared_memory()),
                "INVALID_ARGUMENT",
                "the input's parameter is not taken: got 'shared_memory_byte_size'",
            ),
            (refusal(address, image, compression_algorithm="gzip"), "UNIMPLEMENTED", ""),
        ):
            assert error.status() == f"StatusCode.{status}", error
            assert says in error.message()
        with pytest.raises(grpc.RpcError) as raised:
            raw_call(address, "ModelInfer", b"\xff\xff no message")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(raised.value.trailing_metadata())["vivace-code"] == "request"
        with pytest.raises(grpc.RpcError) as raised:
            raw_call(address, "ModelInfer", b"\0" * 300_000)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as raised:
            raw_call(address, "RepositoryIndex", b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with triton.InferenceServerClient(address) as found:
            found.infer("plain", [image])

    with answering({"plain": folder}, grpc_port=0, max_images=64, max_body_bytes=65 * 32 * 32 * 3 + 200) as client:
        calling(client, asks)


def _shared_memory() -> Any:
    found = triton.InferInput("images", [1, 32, 32, 3], "UINT8")
    found.set_shared_memory("region", 3072)
    return found


def test_without_the_token_only_probes_are_answered(folder: Path) -> None:
    image = tensor(pixels(1), "UINT8")

    def asks(address: str) -> None:
        with triton.InferenceServerClient(address) as found:
            assert found.is_server_live()
            assert found.is_server_ready()
            for ask in (found.get_server_metadata, lambda: found.is_model_ready("plain")):
                with pytest.raises(triton.InferenceServerException) as raised:
                    ask()
                assert raised.value.status() == "StatusCode.UNAUTHENTICATED"
            found.infer("plain", [image], headers={"authorization": f"Bearer {TOKEN}"})
        for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": f"Basic {TOKEN}"}):
            error = refusal(address, image, headers=headers)
            assert error.status() == "StatusCode.UNAUTHENTICATED"
            assert TOKEN not in error.message()

        # two of them: what is wrong is said, and neither is taken
        for two in (("a", f"Bearer {TOKEN}"), (f"Bearer {TOKEN}", f"Bearer {TOKEN}")):
            with pytest.raises(grpc.RpcError) as given:
                raw_call(address, "ServerLive", b"", metadata=[("authorization", value) for value in two])
            assert given.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert given.value.details() == "the metadata authorization comes twice. Send it once."

    with answering({"plain": folder}, grpc_port=0, token=TOKEN) as client:
        calling(client, asks)
        assert TOKEN not in str(client.log())
    # as over HTTP, for both listen at the same address
    with pytest.raises(ConfigError, match="no token is set"):
        Settings(host="0.0.0.0", grpc_port=8001)


def test_a_full_queue_and_a_deadline_are_told_and_work_of_a_client_that_left_is_cancelled(folder: Path) -> None:
    image = tensor(pixels(1), "UINT8")
    with answering({"plain": folder}, grpc_port=0, max_batch=1, queue=2) as client:
        gate = Gate(client)
        batcher = client.app.bundles.get(None).batcher

        async def session() -> None:
            async with rpc_server(client.app) as address:
                assert address is not None
                first = [
                    asyncio.create_task(asyncio.to_thread(refusal, address, image, client_timeout=seconds))
                    for seconds in (0.5, 0.5)
                ]
                await until(lambda: batcher.pending == 2)
                error = await asyncio.to_thread(refusal, address, tensor(pixels(1), "UINT8"))
                # the library's own bound on calls at once, or ours on images
                assert error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED")
                for late in await asyncio.gather(*first):
                    assert late.status() == "StatusCode.DEADLINE_EXCEEDED"
                gate.opened.set()
                await until(lambda: batcher.pending == 0)

        client.run(session())
        # the one whose batch had begun; the other was passed over
        assert len(gate.batches) == 1
        assert 'status="CANCELLED"' in client.get("/metrics").text


def test_sigterm_answers_the_calls_that_were_taken(graph_folder: Path) -> None:
    """And then takes no more. What clients do wrong makes gRPC's library write no lines of its own."""
    found: list[Any] = []
    with process({"graph": graph_folder}, grpc_port=0, drain_seconds=0.5) as (running, _):
        address = running.grpc_address  # type: ignore[attr-defined]
        with triton.InferenceServerClient(address) as client:
            with pytest.raises(triton.InferenceServerException, match="gzip"):
                client.infer("graph", [tensor(pixels(8), "UINT8")], compression_algorithm="gzip")
            told = threading.Event()

            def note(result: Any, error: Any) -> None:
                found.append(error)
                told.set()

            for number in range(40):
                client.async_infer("graph", [tensor(pixels(8), "UINT8")], note)
                if number == 20:
                    running.send_signal(signal.SIGTERM)
            assert told.wait(30)
            assert running.wait(30) == 0
            assert len(found) == 40
            # those that came after the end are refused as such, and none is lost without a word
            assert {error.status() for error in found if error is not None} <= {"StatusCode.UNAVAILABLE"}
            assert sum(error is None for error in found) >= 20
        assert running.stderr is not None
        for line in running.stderr:
            assert line.startswith("{"), line


def test_a_missing_extra_a_taken_port_and_one_port_for_both_are_said_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="grpc_port is the port of HTTP: got 8000 for both"):
        Settings(port=8000, grpc_port=8000)
    with answering({"plain": folder}, grpc_port=0) as client:

        async def twice() -> None:
            async with rpc_server(client.app) as address:
                assert address is not None
                client.app.settings = Settings(grpc_port=int(address.rpartition(":")[2]))
                async with rpc_server(client.app):
                    pass

        with pytest.raises(ConfigError, match="can't be listened on"):
            client.run(twice())
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(
        MissingExtra, match=r"needs grpcio, which is not installed. Install it: pip install 'vivace\[grpc\]'"
    ):
        check_grpc()
