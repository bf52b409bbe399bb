"""LiteRT, the former TensorFlow Lite, on XNNPACK: float32, or int8 by ai-edge-quantizer.

The network is its torch.export program, converted by litert-torch with images that lie channels last, as LiteRT likes
them. int8: the recipe for static int8 weights and activations, ranges from all images to calibrate on; images and
scores stay float32. litert-torch asks for an older torch than we run. It can't lower adaptive max-pooling: where that
leaves one value a channel, which is a maximum, it is written as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from inference import Exchange, Job, Loaded, program


def channels_last(images_BCHW: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images_BCHW.transpose(0, 2, 3, 1))


def prepare(exchange: Exchange, out: Path, batch: int, form: str) -> Mapping[str, Any] | None:
    import litert_torch
    import torch

    network = torch.export.load(exchange.program(batch)).module()
    _global_max_pools(network)
    batches = [channels_last(images) for images in exchange.whole_batches("calibrate", batch)]
    images_BHWC = torch.from_numpy(batches[0])
    network = litert_torch.to_channel_last_io(network, args=[0])
    plain = out / "plain.tflite"
    litert_torch.convert(network, (images_BHWC,)).export(str(plain))
    if form == "int8":
        _quantize(plain, out / "model.tflite", batches)
        plain.unlink()
    else:
        plain.rename(out / "model.tflite")
    return None


def _global_max_pools(network: Any) -> None:
    """Write pools to 1 × 1 as maxima, in place."""
    import operator

    import torch

    pool = torch.ops.aten.adaptive_max_pool2d.default
    for node in list(network.graph.find_nodes(op="call_function", target=pool)):
        images, size = node.args
        # it returns indices too, which nobody may use
        values = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        positions = [user for user in node.users if user not in values]
        if list(size) != [1, 1] or any(user.users for user in positions):
            continue
        with network.graph.inserting_before(node):
            value = network.graph.call_function(torch.ops.aten.amax.default, (images, [2, 3], True))
        for user in values:
            user.replace_all_uses_with(value)
        for user in [*values, *positions]:
            network.graph.erase_node(user)
        network.graph.erase_node(node)
    network.recompile()


def _quantize(plain: Path, path: Path, batches: list[np.ndarray]) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    ((signature, names),) = Interpreter(str(plain)).get_signature_list().items()
    (name,) = names["inputs"]
    tool = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
    ranges = tool.calibrate({signature: [{name: images} for images in batches]})
    tool.quantize(ranges).export_model(str(path))


def load(job: Job) -> Loaded:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(job.model / "model.tflite"), num_threads=job.threads)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def classify(images_BHWC: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], images_BHWC)
        interpreter.invoke()
        scores: np.ndarray = interpreter.get_tensor(given["index"])
        return scores

    def place(images_BCHW: np.ndarray) -> np.ndarray:
        images_BHWC = channels_last(images_BCHW)
        if taken["dtype"] == np.float32:
            return images_BHWC
        # a graph with int8 inputs carries their scale and zero point
        scale, zero = taken["quantization"]
        limits = np.iinfo(taken["dtype"])
        return (images_BHWC / scale + zero).round().clip(limits.min, limits.max).astype(taken["dtype"])

    return Loaded(classify, place)


if __name__ == "__main__":
    program(prepare, load, ("ai-edge-litert", "ai-edge-quantizer", "litert-torch", "torch"))
