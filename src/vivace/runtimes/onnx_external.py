"""Whether an ONNX graph reads other files: such a file is in no manifest, and its path may lead anywhere.

Read from the bytes of the protocol buffer, without parsing the weights: ONNX Runtime alone, without the package onnx,
must be enough to run a bundle. Field numbers: https://github.com/onnx/onnx/blob/v1.17.0/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["has_external_data"]

# message → field → message in it, of those that lead to tensors
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def has_external_data(model: bytes) -> bool:
    """Whether any tensor of a serialised ModelProto lies in another file. Raises ValueError if it is none."""
    pending = [("Model", 0, len(model))]
    while pending:
        kind, start, end = pending.pop()
        for field, value, stop in _fields(model, start, end):
            if kind == "Tensor" and (field == EXTERNAL_DATA or (field == DATA_LOCATION and value)):
                return True
            if stop is not None and field in MESSAGES[kind]:
                pending.append((MESSAGES[kind][field], value, stop))
    return False


def _fields(data: bytes, place: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """(number, value, None) of each number in a message, (number, start, end) of each field of bytes."""
    while place < end:
        tag, place = _varint(data, place, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, place = _varint(data, place, end)
            yield number, value, None
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(wire, 0)
        if wire == BYTES:
            length, place = _varint(data, place, end)
        if place + length > end or wire not in (FIXED64, FIXED32, BYTES):
            raise ValueError("the file is no ONNX graph, or cut off")
        if wire == BYTES:
            yield number, place, place + length
        place += length


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """(value, where the next begins)."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return value, place
    raise ValueError("the file is no ONNX graph, or cut off")
