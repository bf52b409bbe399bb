"""A bundle's network in int8 for Inductor, by torchao's quantizer, with ranges that were measured when it was made.

A bundle holds no graph of it: PyTorch's exported programs are read with pickle. It holds the ranges of the activations,
as JSON; the graph is built anew from the weights and those, the same each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.errors import BundleError, ConfigError, MissingExtra
from vivace.files import read_regular, write_json
from vivace.plain import parse_json
from vivace.runtimes.graph import DYNAMIC_SHAPES, deployed_graph
from vivace.runtimes.quiet import quiet

__all__ = ["RANGES", "int8_graph", "observed_graph", "ranges_file", "save_ranges"]

RANGES = "int8.json"
# two numbers for each layer
MAX_RANGES_BYTES = 16 * 2**20
# a step of torchao's that looks for what its own training leaves, of which there is nothing here: half a minute where
# a batch norm does not follow a convolution at once
QAT_STEP = "_fold_conv_bn_qat"


def ranges_file(bundle: Bundle) -> Path:
    """The file of a bundle that holds the ranges of its activations. Raises ConfigError if it has none."""
    if RANGES not in bundle.files:
        raise ConfigError(
            f"the bundle holds no ranges for int8: {bundle.folder}. Have it quantized: vivace accelerate, say."
        )
    return bundle.checked(RANGES)


def int8_graph(bundle: Bundle) -> tuple[nn.Module, Tensor]:
    """The deployed graph in int8, to be compiled, and a batch of two blank images to trace it with.

    Weights of convolutions and linear layers are int8, per output channel; activations between them uint8, per tensor.
    Raises BundleError if the ranges do not fit the network as this torch traces it; MissingExtra without torchao.
    """
    path = ranges_file(bundle)
    graph, example = observed_graph(bundle)
    observers = dict(_activations(graph))
    try:
        said = parse_json(read_regular(path, MAX_RANGES_BYTES), str(path))
        made_with = f"torch {said['torch']} and torchao {said['torchao']}"
        ranges = {name: (float(scale), int(zero)) for name, (scale, zero) in said["activations"].items()}
    except (ConfigError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} holds no ranges: {error}. Quantize the bundle again.") from None
    if observers.keys() != ranges.keys():
        raise BundleError(
            f"the ranges for int8 are of another graph: {bundle.folder} was quantized with {made_with}, here are "
            f"torch {torch.__version__} and torchao {metadata.version('torchao')}. Quantize it again."
        )
    with quiet(), torch.no_grad():
        # whatever the images: the observers of the weights see what they are there for
        graph(example)
        for name, (scale, zero) in ranges.items():
            found = torch.tensor([scale]), torch.tensor([zero], dtype=torch.int64)
            observers[name].calculate_qparams = lambda found=found: found
        torchao = _torchao()
        with _without_qat_step(torchao):
            return torchao.convert_pt2e(graph), example


def observed_graph(bundle: Bundle) -> tuple[Any, Tensor]:
    """The deployed graph with an observer at every tensor that is to be quantized, and a batch of two blank images.

    Raises MissingExtra without torchao.
    """
    torchao = _torchao()
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    graph, example = deployed_graph(bundle)
    graph = graph.to(memory_format=torch.channels_last)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with quiet(), torch.no_grad():
        exported = torch.export.export(graph, (example,), dynamic_shapes=DYNAMIC_SHAPES).module()
        return torchao.prepare_pt2e(exported, quantizer), example


def save_ranges(graph: Any, folder: Path) -> None:
    """Write what the observers of `graph` saw into `folder`."""
    activations = {}
    for name, observer in _activations(graph):
        scale, zero_point = observer.calculate_qparams()
        activations[name] = [float(scale), int(zero_point)]
    versions = {"torch": torch.__version__, "torchao": metadata.version("torchao")}
    write_json(folder / RANGES, {**versions, "activations": activations})


def _activations(graph: Any) -> Iterator[tuple[str, Any]]:
    """The observers of activations, each once, with the name of the first tensor that it sees."""
    modules, seen = dict(graph.named_modules()), set()
    for node in graph.graph.nodes:
        observer = modules.get(node.target) if node.op == "call_module" else None
        # those of weights see channel by channel
        if not hasattr(observer, "calculate_qparams") or hasattr(observer, "ch_axis"):
            continue
        if id(observer) not in seen:
            seen.add(id(observer))
            yield node.args[0].name, observer


@contextlib.contextmanager
def _without_qat_step(torchao: Any) -> Iterator[None]:
    """Within, QAT_STEP of torchao's module leaves a graph as it is; another torchao may have no such step."""
    step = getattr(torchao, QAT_STEP, None)
    setattr(torchao, QAT_STEP, lambda graph: graph)
    try:
        yield
    finally:
        if step is None:
            delattr(torchao, QAT_STEP)
        else:
            setattr(torchao, QAT_STEP, step)


def _torchao() -> Any:
    try:
        with quiet():
            from torchao.quantization.pt2e import quantize_pt2e
    except ImportError:
        raise MissingExtra("torchao", "accelerate", "int8 for Inductor") from None
    return quantize_pt2e
