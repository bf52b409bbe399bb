"""What a request of Open Inference Protocol v2 asks for, and what a bundle says of itself, over REST and gRPC.

Both bring a request into the shape that it has in JSON, with the tensors that came in binary beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vivace.predicted import ranking
from vivace.runtimes.table import INPUT, OUTPUT
from vivace.serving.bundles import Bundles, Served
from vivace.serving.jobs import Item
from vivace.serving.protocols.tensors import as_images, as_list, whole
from vivace.serving.web.refusals import Refusal

__all__ = [
    "LENGTH",
    "SERVER",
    "asked_images",
    "check_id",
    "described",
    "named",
    "probs_of",
    "ranked",
    "refused",
    "wanted_outputs",
]

SERVER = "vivace"
LENGTH = "inference-header-content-length"
MAX_INPUTS, MAX_ID = 8, 200


def named(bundles: Bundles, name: str, version: str | None) -> Served:
    """The bundle of that name; version: None or "" for any. Raises Refusal (404) for another name or version."""
    served = bundles.get(name)
    if version not in (None, "", str(served.generation)):
        raise Refusal(
            404, "unknown_version", f"the version is {served.generation}: got {version[:40]!r}. Leave it out."
        )
    return served


def described(served: Served) -> dict[str, Any]:
    """What a bundle takes and gives."""
    info = served.predictor.bundle.info
    size, channels = info.preprocess.size, info.preprocess.channels
    datatype = "UINT8" if info.preprocess.dtype == "uint8" else "FP32"
    return {
        "name": served.name,
        "versions": [str(served.generation)],
        "platform": f"vivace_{served.predictor.runtime}",
        "inputs": [{"name": INPUT, "datatype": datatype, "shape": [-1, size, size, channels]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(info.classes)]}],
    }


def check_id(given: Any) -> None:
    """Raises Refusal (400) unless a request's id is None or a short text."""
    if given is not None and not (isinstance(given, str) and len(given) <= MAX_ID):
        raise refused(f"the id is no text of up to {MAX_ID} characters. Give one, or leave it out")


def asked_images(
    asked: dict[str, Any], tensors: bytes | None, served: Served, *, max_images: int
) -> Sequence[bytes | np.ndarray]:
    """The images of a request's one input. tensors: what came in binary. Raises Refusal (400, 413)."""
    inputs = as_list(asked.get("inputs"), "inputs")
    if len(inputs) != 1 or not isinstance(inputs[0], dict) or inputs[0].get("name") != INPUT:
        names = [str(one.get("name"))[:40] if isinstance(one, dict) else "?" for one in inputs[:MAX_INPUTS]]
        raise refused(f"one input is taken, {INPUT!r}: got {names}. Send it alone")
    tensor = inputs[0]
    parameters = _parameters(tensor, "the input's parameters")
    if unknown := sorted(set(parameters) - {"binary_data_size"}):
        # shared memory of Triton's, say: nothing is read that is not in the request
        raise refused(f"the input's parameter is not taken: got {unknown[0][:40]!r}. Send the data itself")
    size = parameters.get("binary_data_size")
    binary = None
    if size is not None:
        if tensors is None or whole(size, "binary_data_size") != len(tensors) or "data" in tensor:
            raise refused(
                f"binary_data_size is {str(size)[:40]}, and {len(tensors or b''):,} bytes follow the JSON. Send "
                f"{LENGTH} and as many bytes, and no data beside them"
            )
        binary = tensors
    elif tensors:
        raise refused(f"{len(tensors):,} bytes follow the JSON, of no input. Give binary_data_size")
    return as_images(tensor, binary, served.predictor.bundle.preprocess, max_images=max_images)


def _parameters(value: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise refused(f"{what} are no object: got {type(parameters).__name__}. Give one, or leave them out")
    return parameters


def wanted_outputs(asked: dict[str, Any], num_classes: int) -> list[tuple[int, bool]]:
    """(classes that are asked for or 0, whether as a binary tensor) of each output. Raises Refusal (400)."""
    all_binary = _parameters(asked, "the parameters").get("binary_data_output", False)
    if not isinstance(all_binary, bool):
        raise refused("binary_data_output is neither true nor false. Give one of these")
    outputs = asked.get("outputs")
    if outputs is None or outputs == []:
        return [(0, all_binary)]
    found: list[tuple[int, bool]] = []
    for output in as_list(outputs, "outputs"):
        if not isinstance(output, dict) or output.get("name") != OUTPUT or len(found) == MAX_INPUTS:
            name = output.get("name") if isinstance(output, dict) else output
            raise refused(f"the output is unknown: got {str(name)[:40]!r}. Ask for {OUTPUT!r}")
        parameters = _parameters(output, "the output's parameters")
        if unknown := sorted(set(parameters) - {"binary_data", "classification"}):
            raise refused(f"the output's parameter is not taken: got {unknown[0][:40]!r}. Leave it out")
        binary = parameters.get("binary_data", all_binary)
        if not isinstance(binary, bool):
            raise refused("binary_data is neither true nor false. Give one of these")
        found.append((min(num_classes, whole(parameters.get("classification", 0), "classification")), binary))
    return found


def probs_of(items: Sequence[Item]) -> np.ndarray:
    """float32 [N, K]. Raises the Refusal of the first image that was not classified."""
    for index, item in enumerate(items):
        if item.error is not None:
            where = f"{INPUT}[{index}]: " if len(items) > 1 else ""
            error = item.error
            raise Refusal(error.status, error.code, f"{where}{error}", retry_after=error.retry_after)
    return np.stack([item.probs for item in items if item.probs is not None])


def ranked(probs_K: np.ndarray, count: int, classes: tuple[str, ...]) -> list[str]:
    """The likeliest classes as "probability:index:label"."""
    return [f"{probs_K[index]:.6f}:{index}:{classes[index]}" for index in ranking(probs_K)[:count]]


def refused(message: str) -> Refusal:
    """400 for a request that does not follow the protocol."""
    return Refusal(400, "request", f"{message}.")
