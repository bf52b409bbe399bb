"""Any torch.nn.Module on OpenVINO, in float32, bf16 or int8: traced, or exported where a trace would not be true."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivace.errors import ExportError, first_line
from vivace.hardware import num_cpus
from vivace.libraries.nncf import load_nncf, without_bars
from vivace.libraries.openvino import core, library
from vivace.libraries.signal_stack import own_signal_stack
from vivace.runtimes.modules.job import ModuleJob, Program, Shapes, shapes_of, side_names
from vivace.runtimes.quiet import quiet, silent
from vivace.runtimes.table import RUNTIMES, is_quantized

__all__ = ["convert", "save_graphs"]

ROW = RUNTIMES["openvino"]
# shapes that get a program of their own; all others share one, which is slower
MAX_PROGRAMS = 8
# of what a trace leaves out: Python that looked at values
VALUES_READ = "Converting a tensor to a Python"
# torch's recurrent layers look at the sizes of their inputs to raise an error where they do not fit, and for nothing
# else: exported, each of their steps is an operator of its own, which is slow to convert and to quantize
ONLY_CHECKS = inspect.getfile(torch.nn.LSTM)


def convert(job: ModuleJob) -> Program:
    """The module's graph in the job's precision. Raises MissingExtra, ExportError, and what the libraries raise."""
    if job.graph is not None:
        return _program(job.graph, job)
    model = _float_model(job)
    if is_quantized(job.precision):
        model = _quantized(model, job)
    return _program(model, job)


def save_graphs(job: ModuleJob, plain: Path, quantized: Path) -> None:
    """Write the float32 and the int8 graph into folders, for `compression.openvino_layers`."""
    model = _float_model(job)
    for folder, graph in ((plain, model), (quantized, _quantized(model, job))):
        library().save_model(graph, folder / ROW.graph_files[0], compress_to_fp16=False)


def _float_model(job: ModuleJob) -> Any:
    """The openvino.Model in float32, its open sides open; made once for all precisions."""
    if ROW.name not in job.kept:
        try:
            job.kept[ROW.name] = _converted(job)
        except Exception as error:
            # the next precision would fail alike, and take as long
            job.kept[ROW.name] = error
    made = job.kept[ROW.name]
    if isinstance(made, Exception):
        raise made
    return made


def _converted(job: ModuleJob) -> Any:
    openvino = library()
    open_sides = list(job.open_sides)
    with quiet(), torch.no_grad():
        try:
            if job.exported:
                raise ExportError("its trace computes something else")
            model = openvino.convert_model(_traced(job), example_input=tuple(job.tensors[0]))
        except Exception as traced:
            try:
                program = _exported(job)
                model = openvino.convert_model(program)
            except Exception as error:
                raise ExportError(f"{first_line(error)} (traced: {first_line(traced)})") from error
            open_sides = [own & sides for own, sides in zip(_left_open(program), open_sides, strict=True)]
    if len(model.inputs) != len(job.tensors[0]):
        raise ExportError(f"its graph reads {len(model.inputs)} of {len(job.tensors[0])} inputs")
    # of sides that are always the same OpenVINO fuses more
    model.reshape(
        {
            place: openvino.PartialShape([-1 if side in sides else size for side, size in enumerate(shape)])
            for place, (shape, sides) in enumerate(zip(shapes_of(job.tensors[0]), open_sides, strict=True))
        }
    )
    return model


def _left_open(program: Any) -> list[frozenset[int]]:
    """The sides of each input that torch.export left open: it closes those that the module makes numbers of."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values[name] for name in program.graph_signature.user_inputs]
    # an open one is a symbol, "s92"; a side that was closed later is still of its type, and "4"
    return [frozenset(side for side, size in enumerate(one.shape) if not str(size).isdigit()) for one in inputs]


def _is_open(model: Any, place: int, side: int) -> bool:
    """Whether an input's side may have any length."""
    shape = model.inputs[place].get_partial_shape()
    return bool(shape.rank.is_dynamic or shape[side].is_dynamic)


def _traced(job: ModuleJob) -> Any:
    """The module as torch.jit records one call. Raises ExportError where what it does depends on values."""
    assert job.flat is not None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        traced = torch.jit.trace(job.flat, tuple(job.tensors[0]), strict=False, check_trace=False)
    if any(VALUES_READ in str(warning.message) and warning.filename != ONLY_CHECKS for warning in said):
        raise ExportError("what it computes may depend on values that Python reads")
    return traced


def _exported(job: ModuleJob) -> Any:
    """The module as torch.export sees it, which refuses what depends on values, and is slower to convert."""
    assert job.flat is not None
    with silent():
        return torch.export.export(
            job.flat, tuple(job.tensors[0]), dynamic_shapes=(tuple(side_names(job)),), strict=False
        )


def _quantized(model: Any, job: ModuleJob) -> Any:
    """An int8 copy of the model; made once for the precisions of what remains in float."""
    name = f"{ROW.name} int8{' asymmetric' * job.asymmetric}"
    if name not in job.kept:
        nncf, presets = load_nncf(), load_nncf().QuantizationPreset
        arrays = [[tensor.numpy() for tensor in tensors] for tensors in job.calibration()]
        # NNCF runs OpenVINO itself
        with quiet(), without_bars(), own_signal_stack():
            job.kept[name] = nncf.quantize(
                model.clone(),
                nncf.Dataset(arrays),
                preset=presets.MIXED if job.asymmetric else presets.PERFORMANCE,
                target_device=nncf.TargetDevice.CPU,
                model_type=nncf.ModelType.TRANSFORMER if job.transformer else None,
                subset_size=len(arrays),
                fast_bias_correction=True,
            )
    return job.kept[name]


def _program(model: Any, job: ModuleJob) -> Program:
    settings = {
        **ROW.settings[job.precision],
        "INFERENCE_NUM_THREADS": num_cpus(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: dict[Shapes | None, _Request] = {}
    refused: set[Shapes] = set()
    # not the job itself, which holds what other programs are made of
    closed, compiling = shapes_of(job.tensors[0]), threading.Lock()
    open_sides = [
        {side for side in sides if _is_open(model, place, side)} for place, sides in enumerate(job.open_sides)
    ]
    # its programs for any size may crash in int8 (see runtimes.openvino)
    may_share = not is_quantized(job.precision)

    def fits(shapes: Shapes) -> bool:
        return len(shapes) == len(closed) and all(
            len(given) == len(mine) and all(given[side] == mine[side] or side in sides for side in range(len(mine)))
            for given, mine, sides in zip(shapes, closed, open_sides, strict=True)
        )

    def request_for(shapes: Shapes) -> _Request:
        key = shapes if len(compiled) < MAX_PROGRAMS or shapes in compiled else None
        if key not in compiled:
            graph = model.clone()
            if key is not None:
                graph.reshape({place: list(shape) for place, shape in enumerate(shapes)})
            compiled[key] = _Request(core().compile_model(graph, "CPU", settings))
        return compiled[key]

    def takes(tensors: Sequence[Tensor]) -> bool:
        shapes = shapes_of(tensors)
        if shapes in compiled:
            return True
        if shapes in refused or not fits(shapes) or (len(compiled) >= MAX_PROGRAMS and not may_share):
            return False
        with compiling:
            # another thread may have compiled the last one meanwhile
            if len(compiled) >= MAX_PROGRAMS and shapes not in compiled and not may_share:
                return False
            try:
                request_for(shapes)
            except Exception:
                # lengths that the trace took for constants
                refused.add(shapes)
        return shapes not in refused

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        shapes = shapes_of(tensors)
        request = compiled.get(shapes) or compiled[None]
        return request(tensors)

    # what can't be compiled at all is said now, not at the first call
    request_for(shapes_of(job.tensors[0]))
    return Program(run=run, takes=takes, graph=model)


class _Request:
    """A compiled graph that is called with tensors; calls wait for each other."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._places = range(len(compiled.outputs))
        self._busy = threading.Lock()

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = {place: tensor.detach().contiguous().numpy() for place, tensor in enumerate(tensors)}
        with self._busy:
            found = self._request.infer(arrays, share_inputs=True)
            # its own memory is used again by the next call
            return [torch.from_numpy(found[place]) for place in self._places]
