"""The messages of the protocol over gRPC: each field as tritonclient's generated ones have it, in another pool."""

from __future__ import annotations

from typing import Any

import pytest

from vivace.serving.rpc.messages import MESSAGES, messages, plain_parameters

triton = pytest.importorskip("tritonclient.grpc.service_pb2", exc_type=ImportError)


def facts(descriptor: Any) -> dict[str, Any]:
    """name → (number, type, whether it is repeated, oneof, type of message)."""
    found = {}
    for field in descriptor.fields:
        oneof = field.containing_oneof.name if field.containing_oneof else None
        kind = field.message_type.full_name if field.message_type else None
        found[field.name] = field.number, field.type, field.is_repeated, oneof, kind
    return found


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_is_the_protocols(name: str) -> None:
    theirs = triton
    for part in name.split("."):
        theirs = getattr(theirs, part)
    ours = messages()[name]
    assert ours is not theirs
    assert facts(ours.DESCRIPTOR) == facts(theirs.DESCRIPTOR)


def test_what_one_writes_the_other_reads() -> None:
    given = triton.ModelInferRequest(model_name="photos", id="7", raw_input_contents=[b"\0\1"])
    given.inputs.add(name="images", datatype="UINT8", shape=[1, 2])
    given.parameters["depth"].int64_param = -3
    given.parameters["some"].SetInParent()
    read = messages()["ModelInferRequest"].FromString(given.SerializeToString())
    assert (read.model_name, list(read.inputs[0].shape), read.raw_input_contents[0]) == ("photos", [1, 2], b"\0\1")
    assert plain_parameters(read.parameters) == {"depth": -3, "some": None}
    assert triton.ModelInferRequest.FromString(read.SerializeToString()) == given
