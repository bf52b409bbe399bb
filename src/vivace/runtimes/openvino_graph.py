"""What an OpenVINO graph may hold: one plain graph in OpenVINO's own format, of tensors that fit into memory.

Whoever made a bundle may have made any graph, and OpenVINO reads other formats too, by what a file holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vivace.errors import BundleError
from vivace.files import read_regular

__all__ = ["check_ir", "check_sizes"]

# graphs within a graph: they may run for ever. OpenVINO does not tell capitals from small letters
LAYERS_REFUSED = ("tensoriterator", "loop", "if")
# of one tensor: 512 images of 224 px in 64 channels, halved once, take 1.5 GiB
MAX_TENSOR_BYTES = 2 * 2**30
# without the weights, which are in another file
MAX_GRAPH_BYTES = 256 * 2**20


def check_ir(graph: Path) -> None:
    """Raise BundleError unless the file is an OpenVINO graph without loops and conditions."""
    try:
        content = read_regular(graph.resolve(), MAX_GRAPH_BYTES)
        found = next(_faults(content), None)
    except OSError as error:
        raise BundleError(f"the graph can't be read: {graph} ({error.strerror}). Export it again.") from None
    except (ElementTree.ParseError, ValueError, LookupError):
        found = "it is no XML, or cut off"
    if found is not None:
        raise BundleError(f"the graph is refused: {graph} ({found}). Do not use it, or export it again.")


def _faults(content: bytes) -> Iterator[str]:
    # declarations of XML and text of other encodings, which two readers may read in two ways: the exporter writes none
    if b"<!" in content or b"\0" in content:
        yield "it is no XML as OpenVINO writes it"
    root = ElementTree.fromstring(content)
    if root.tag != "net" or len(root.findall("layers")) != 1:
        yield "it is in another format than OpenVINO's own"
    if len(list(root.iter("layers"))) != 1:
        yield "it holds graphs in layers"
    for layer in root.iter("layer"):
        kind = layer.get("type", "")
        if kind.casefold() in LAYERS_REFUSED:
            yield f"it holds a layer {kind}"


def check_sizes(graph: Any) -> None:
    """Raise BundleError if a tensor of an openvino.Model is larger than MAX_TENSOR_BYTES, or of any size.

    Its batch size is set: a tensor whose size is still open depends on what the pixels are.
    """
    for operation in graph.get_ops():
        for output in operation.outputs():
            shape = output.get_partial_shape()
            if shape.is_dynamic:
                raise BundleError(
                    f"the graph is refused: the size of {operation.get_friendly_name()[:80]!r} depends on the pixels. "
                    "Do not use it, or export it again."
                )
            num_bytes = output.get_element_type().size
            for side in shape.to_shape():
                num_bytes *= side
            if num_bytes > MAX_TENSOR_BYTES:
                raise BundleError(
                    f"the graph needs {num_bytes / 2**30:,.1f} GiB for {operation.get_friendly_name()[:80]!r}, and "
                    f"{MAX_TENSOR_BYTES / 2**30:g} GiB is the most. Give it smaller batches, or do not use it."
                )
