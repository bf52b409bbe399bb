"""The messages of Open Inference Protocol v2 over gRPC, by descriptors that are made when they are first used.

Generated modules would register the package `inference` with protobuf's only pool of names, where those of a client in
the same program (tritonclient, KServe) are: whichever is imported second fails. These have a pool of their own. They
also fit whatever version of protobuf is installed, where generated code fits its own and newer ones.
Source: the protocol, https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vivace.errors import MissingExtra

__all__ = ["PACKAGE", "SERVICE", "messages", "plain_parameters"]

PACKAGE, SERVICE = "inference", "GRPCInferenceService"
# message → its fields, numbered from 1 in this order: "name: type", with * where it is repeated; a type in braces is
# the value of a map from texts; alternatives stand in one oneof
PARAMETERS = "parameters: {InferParameter}"
TENSOR = ("name: string", "datatype: string", "shape: int64*")
NAMED = ("name: string", "version: string")
MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("live: bool",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("ready: bool",),
    "ModelReadyRequest": NAMED,
    "ModelReadyResponse": ("ready: bool",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (*NAMED, "extensions: string*"),
    "ModelMetadataRequest": NAMED,
    "ModelMetadataResponse.TensorMetadata": TENSOR,
    "ModelMetadataResponse": (
        "name: string",
        "versions: string*",
        "platform: string",
        "inputs: ModelMetadataResponse.TensorMetadata*",
        "outputs: ModelMetadataResponse.TensorMetadata*",
    ),
    "InferParameter": (
        "bool_param: bool",
        "int64_param: int64",
        "string_param: string",
        "double_param: double",
        "uint64_param: uint64",
    ),
    "InferTensorContents": (
        "bool_contents: bool*",
        "int_contents: int32*",
        "int64_contents: int64*",
        "uint_contents: uint32*",
        "uint64_contents: uint64*",
        "fp32_contents: float*",
        "fp64_contents: double*",
        "bytes_contents: bytes*",
    ),
    "ModelInferRequest.InferInputTensor": (*TENSOR, PARAMETERS, "contents: InferTensorContents"),
    "ModelInferRequest.InferRequestedOutputTensor": ("name: string", PARAMETERS),
    "ModelInferRequest": (
        "model_name: string",
        "model_version: string",
        "id: string",
        PARAMETERS,
        "inputs: ModelInferRequest.InferInputTensor*",
        "outputs: ModelInferRequest.InferRequestedOutputTensor*",
        "raw_input_contents: bytes*",
    ),
    "ModelInferResponse.InferOutputTensor": (*TENSOR, PARAMETERS, "contents: InferTensorContents"),
    "ModelInferResponse": (
        "model_name: string",
        "model_version: string",
        "id: string",
        PARAMETERS,
        "outputs: ModelInferResponse.InferOutputTensor*",
        "raw_output_contents: bytes*",
    ),
}
ONEOFS = {"InferParameter": "parameter_choice"}


@functools.cache
def messages() -> Mapping[str, Any]:
    """Name → class of each message. Raises MissingExtra without protobuf."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise MissingExtra("protobuf", "grpc", "serving over gRPC") from None
    file = descriptor_pb2.FileDescriptorProto(name="vivace/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    # an outer message before those within it
    for name in sorted(MESSAGES, key=lambda one: one.count(".")):
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
    for name, fields in MESSAGES.items():
        for number, field in enumerate(fields, start=1):
            _add(made[name], name, number, *field.split(": "))
        if name in ONEOFS:
            made[name].oneof_decl.add(name=ONEOFS[name])
            for one in made[name].field:
                one.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


def _add(message: Any, outer: str, number: int, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=1)
    if kind.startswith("{"):
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add(entry, outer, 1, "key", "string")
        _add(entry, outer, 2, "value", kind[1:-1])
        kind = f"{outer}.{entry.name}*"
    if kind.endswith("*"):
        field.label, kind = field.LABEL_REPEATED, kind[:-1]
    if kind in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes"):
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


def plain_parameters(parameters: Any) -> dict[str, Any]:
    """A map of InferParameter as plain values; None for one without a value."""
    found = {}
    for name, value in parameters.items():
        chosen = value.WhichOneof(ONEOFS["InferParameter"])
        found[name] = None if chosen is None else getattr(value, chosen)
    return found
