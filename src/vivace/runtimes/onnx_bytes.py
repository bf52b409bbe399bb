"""What an ONNX file may hold: one plain graph, which reads no other file, holds no loop and hides nothing.

Whoever made a bundle may have made any graph. It is read here from the bytes of the protocol buffer, without parsing
the weights: ONNX Runtime alone, without the package onnx, must be enough to run a bundle. Two readers of the same bytes
may see different graphs where one skips what the other takes, so nothing is skipped: every field must be one that ONNX
has at its place, in the only form in which protobuf writes it.
Field numbers: https://github.com/onnx/onnx/blob/v1.20.0/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["check_onnx"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# wire types of a field; repeated numbers may be packed into bytes
NUMBER, TEXT, FLOAT = frozenset({VARINT}), frozenset({BYTES}), frozenset({FIXED32})
NUMBERS, FLOATS, DOUBLES = frozenset({VARINT, BYTES}), frozenset({FIXED32, BYTES}), frozenset({FIXED64, BYTES})

# message → field → its wire types. Messages that lead to no tensor and no node are taken as text
FIELDS: dict[str, dict[int, frozenset[int]]] = {
    "Model": {1: NUMBER, 5: NUMBER} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), TEXT),
    "Graph": dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 15, 16), TEXT),
    "Node": dict.fromkeys(range(1, 11), TEXT),
    "Attribute": {2: FLOAT, 3: NUMBER, 7: FLOATS, 8: NUMBERS, 20: NUMBER}
    | dict.fromkeys((1, 4, 5, 6, 9, 10, 11, 13, 14, 15, 21, 22, 23), TEXT),
    "Tensor": {1: NUMBERS, 2: NUMBER, 4: FLOATS, 5: NUMBERS, 7: NUMBERS, 10: DOUBLES, 11: NUMBERS, 14: NUMBER}
    | dict.fromkeys((3, 6, 8, 9, 12, 13, 16), TEXT),
}
# message → field → message in it, of those that lead to tensors and nodes
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 10: "Tensor"},
    "Tensor": {},
}
# none of them is in what exporters write: loops may run for ever, functions of functions and sparse tensors grow
# without bound, and an external tensor may be any file
REFUSED: dict[tuple[str, int], str] = {
    ("Tensor", 13): "it reads other files",
    ("Tensor", 14): "it reads other files",
    ("Attribute", 6): "it holds graphs in nodes (Loop, Scan or If)",
    ("Attribute", 11): "it holds graphs in nodes (Loop, Scan or If)",
    ("Attribute", 22): "it holds sparse tensors",
    ("Attribute", 23): "it holds sparse tensors",
    ("Graph", 15): "it holds sparse tensors",
    ("Model", 20): "it holds graphs for training",
    ("Model", 25): "it holds functions",
}
NODE_KIND, NODE_DOMAIN = 4, 7
DOMAINS = (b"", b"ai.onnx", b"com.microsoft")
# EPContext: a compiled program, perhaps in a file of its own
KINDS_REFUSED = (b"Loop", b"Scan", b"If", b"SequenceMap", b"EPContext")
# ONNX Runtime takes a file with these bytes for one of its own format, whatever else it is
ORT_FORMAT = b"ORTM"
NO_GRAPH = "the file is no ONNX graph, or cut off"


def check_onnx(model: bytes) -> None:
    """Raise ValueError, which says why, unless the bytes are a ModelProto with one plain graph: see above."""
    if model[4:8] == ORT_FORMAT:
        raise ValueError("it is of ONNX Runtime's own format")
    num_graphs = 0
    pending = [("Model", 0, len(model))]
    while pending:
        kind, start, end = pending.pop()
        num_graphs += kind == "Graph"
        for field, value, stop in _fields(model, start, end, FIELDS[kind]):
            # the writer of a tensor with its data in place may say so: 0
            if (kind, field) in REFUSED and (stop is not None or value):
                raise ValueError(REFUSED[kind, field])
            if stop is None:
                continue
            if kind == "Node" and field in (NODE_KIND, NODE_DOMAIN):
                _check_operator(field, model[value:stop])
            if field in MESSAGES[kind]:
                pending.append((MESSAGES[kind][field], value, stop))
    if num_graphs != 1:
        raise ValueError(NO_GRAPH)


def _check_operator(field: int, name: bytes) -> None:
    if field == NODE_KIND and name in KINDS_REFUSED:
        raise ValueError(f"it holds the operator {name.decode()}")
    if field == NODE_DOMAIN and name not in DOMAINS:
        raise ValueError(f"it holds an operator of {name[:40]!r}, no domain of ONNX")


def _fields(
    data: bytes, place: int, end: int, known: dict[int, frozenset[int]]
) -> Iterator[tuple[int, int, int | None]]:
    """(number, value, None) of each number in a message, (number, start, end) of each field of bytes."""
    while place < end:
        tag, place = _varint(data, place, end)
        number, wire = tag >> 3, tag & 7
        # a field's number has 29 bits: of longer ones readers take the low bits, and see another field
        if wire not in known.get(number, ()):
            raise ValueError(f"it has a field that ONNX lacks: number {number}, kind {wire}")
        if wire == VARINT:
            value, place = _varint(data, place, end)
            yield number, value, None
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(wire, 0)
        if wire == BYTES:
            length, place = _varint(data, place, end)
        if place + length > end:
            raise ValueError(NO_GRAPH)
        if wire == BYTES:
            yield number, place, place + length
        place += length


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """(value, where the next begins), of the shortest form of up to 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            if value >= 1 << 64 or (byte == 0 and shift):
                raise ValueError("it has a number in a form that protobuf does not write")
            return value, place
    raise ValueError(NO_GRAPH)
