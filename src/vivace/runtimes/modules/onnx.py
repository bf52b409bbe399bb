"""Any torch.nn.Module on ONNX Runtime, exported by torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vivace.errors import ExportError, MissingExtra
from vivace.hardware import num_cpus
from vivace.runtimes.modules.job import ModuleJob, Program, side_names
from vivace.runtimes.quiet import silent
from vivace.scratch import scratch_folder

__all__ = ["convert"]

# of ONNX: what runtimes of the last two years read
OPSET = 20


def convert(job: ModuleJob) -> Program:
    """The module's graph. Raises MissingExtra, and what torch and ONNX Runtime raise."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("onnxruntime and onnxscript", "accelerate", "the runtime onnx") from None
    session = _session(job, onnxruntime)
    inputs, outputs = session.get_inputs(), [value.name for value in session.get_outputs()]
    if len(inputs) != len(job.tensors[0]):
        raise ExportError(f"its graph reads {len(inputs)} of {len(job.tensors[0])} inputs")
    names = [value.name for value in inputs]
    # of what is open a graph tells a name
    sides = [[side if isinstance(side, int) else None for side in value.shape] for value in inputs]

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(outputs, arrays)]

    def takes(tensors: Sequence[Tensor]) -> bool:
        return all(
            len(tensor.shape) == len(own)
            and all(mine in (None, given) for mine, given in zip(own, tensor.shape, strict=True))
            for own, tensor in zip(sides, tensors, strict=True)
        )

    return Program(run=run, takes=takes)


def _session(job: ModuleJob, onnxruntime: Any) -> Any:
    assert job.flat is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cpus()
    # what fails it also raises
    options.log_severity_level = 4
    with scratch_folder("onnx") as folder, silent(), torch.no_grad():
        program = torch.onnx.export(
            job.flat,
            tuple(job.tensors[0]),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(tuple(side_names(job)),),
            verbose=False,
        )
        assert program is not None
        # weights beside it: a protocol buffer holds 2 GiB at most
        program.save(folder / "model.onnx", external_data=True)
        return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
