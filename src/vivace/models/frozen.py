"""A network that is not trained, computed as fast as this machine can: its features, and the maps where it is cut.

On a CPU with OpenVINO installed that computes it, several times as fast as torch where convolutions are depthwise;
otherwise torch does. A library's answers are compared with torch's before they are used.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivace.cpus import num_cpus
from vivace.errors import ConfigError, MissingExtra, first_line
from vivace.files import atomic_folder
from vivace.hardware import autocast, supported_precisions
from vivace.libraries.openvino import core, library, without_reports
from vivace.notices import warn
from vivace.runtimes.table import RUNTIMES
from vivace.trust import seal, seal_broken, trusted_folder

__all__ = ["Frozen"]

# images in a call: several calls run beside each other, and more images would only take memory
BATCH = 8
# of the angle between its answers and torch's in fp32, the smallest cosine with which a library is used: rounding to
# bf16 changes maps in the middle of a network more than features, another padding or order of channels far more
MIN_COSINE = 0.97
NUM_COMPARED = 8
# folder of the cache
GRAPHS = "graphs"


class Frozen:
    """Computes a network on stored pixels, [N, side, side, C] → tensors of one row per image, on the CPU.

    network: normalised images_BCHW → a tensor [B, …], or a tuple of several. normalize: pixels on the 0..255 scale →
    normalised. sample: [n, side, side, C], up to 8 images on which a library's answers are
    compared with torch's.
    cache_dir: where graphs are kept, which take seconds to make. runtime: torch; openvino, which is not compared with
    torch then; auto: openvino where it passes. Raises ConfigError where openvino is asked for and can't compute it.
    """

    def __init__(
        self,
        network: nn.Module,
        normalize: nn.Module,
        *,
        sample: np.ndarray,
        device: torch.device,
        cache_dir: Path,
        runtime: str = "auto",
    ) -> None:
        self.runtime = "torch"
        """What computes it; of torch on a CPU also why no library does."""
        self._refused = ""
        self._module = _OnPixels(network, normalize).eval().requires_grad_(False)
        self._device = device
        self._precision = "bf16" if "bf16" in supported_precisions(device) else "fp32"
        self._compiled: dict[str, Any] = {}
        """By precision; empty: torch computes it."""
        self._graph: Any = None
        # a copy: torch takes no memory that is read only
        sample = np.array(sample[:NUM_COMPARED])
        with torch.no_grad():
            expected = tuple(x.float().cpu() for x in self._module(torch.from_numpy(sample).to(device)))
        self.shapes = tuple(tuple(x.shape[1:]) for x in expected)
        """Of an image's answers."""
        if runtime != "torch" and device.type == "cpu":
            if not self._is_in_library(sample, expected, cache_dir, is_trusted=runtime == "openvino"):
                self._compiled = {}
            self.runtime = "openvino" if self._compiled else f"torch: {self._refused}"
            if runtime == "openvino" and not self._compiled:
                raise ConfigError(
                    f"finetune.runtime=openvino is not possible here: {self._refused}. A run that began with OpenVINO "
                    "goes on with it alone; a new one may set finetune.runtime=torch."
                )

    def fill(
        self, blocks: Iterator[np.ndarray], outs: Sequence[Tensor | None], *, precision: str | None = None
    ) -> None:
        """Write the answers to images that come in blocks into tensors [count, …] on the CPU, of any float dtype.

        outs: one for each answer of the network; None for one that is not wanted. precision: fp32, or bf16; None: the
        fastest.
        """
        compute = self._by_library if self._compiled else self._by_torch
        done = 0
        for block in blocks:
            wanted = [None if out is None else out[done : done + len(block)] for out in outs]
            compute(block, wanted, precision or self._precision)
            done += len(block)

    @torch.no_grad()
    def _by_torch(self, images_NHWC: np.ndarray, outs: Sequence[Tensor | None], precision: str) -> None:
        size = 4 * BATCH
        for start in range(0, len(images_NHWC), size):
            images = torch.from_numpy(np.array(images_NHWC[start : start + size])).to(self._device)
            with autocast(self._device, precision):
                answers = self._module(images)
            for out, answer in zip(outs, answers, strict=True):
                if out is not None:
                    out[start : start + size] = answer.to("cpu", out.dtype)

    def _by_library(self, images_NHWC: np.ndarray, outs: Sequence[Tensor | None], precision: str) -> None:
        openvino = library()
        if precision not in self._compiled:
            settings = {
                **RUNTIMES["openvino"].settings[precision],
                "PERFORMANCE_HINT": "THROUGHPUT",
                "NUM_STREAMS": num_cpus(),
                "INFERENCE_NUM_THREADS": num_cpus(),
            }
            self._compiled[precision] = core().compile_model(self._graph, "CPU", settings)
        queue = openvino.AsyncInferQueue(self._compiled[precision], 2 * num_cpus())
        failed: list[BaseException] = []

        def store(request: Any, start: int) -> None:
            try:
                for index, out in enumerate(outs):
                    if out is not None:
                        rows = out[start : start + BATCH]
                        rows.copy_(torch.from_numpy(request.get_output_tensor(index).data)[: len(rows)])
            except BaseException as error:
                # what is raised in the library's thread would be lost
                failed.append(error)

        queue.set_callback(store)
        for start in range(0, len(images_NHWC), BATCH):
            block = images_NHWC[start : start + BATCH]
            if len(block) < BATCH:
                block = np.concatenate([block, np.zeros((BATCH - len(block), *block.shape[1:]), block.dtype)])
            queue.start_async({0: np.ascontiguousarray(block)}, start)
        queue.wait_all()
        if failed:
            raise failed[0]

    def _is_in_library(
        self, sample: np.ndarray, expected: Sequence[Tensor], cache_dir: Path, *, is_trusted: bool
    ) -> bool:
        """Compile the network by OpenVINO; False if that is not installed, can't, or answers otherwise than torch."""
        try:
            openvino = library()
        except MissingExtra:
            self._refused = "OpenVINO is not installed"
            return False
        try:
            self._graph = _graph(openvino, self._module, sample, cache_dir)
            found = [torch.empty_like(answer) for answer in expected]
            self._by_library(sample, found, self._precision)
        except Exception:
            # an operation that it does not know, in whatever words: torch computes it
            self._refused = "OpenVINO can't compute it"
            return False
        cosines = [_cosine(mine, torchs) for mine, torchs in zip(found, expected, strict=True)]
        if is_trusted or min(cosines) >= MIN_COSINE:
            return True
        self._refused = "OpenVINO's answers are others"
        return False


def _cosine(found: Tensor, expected: Tensor) -> float:
    return float(nn.functional.cosine_similarity(found.flatten(1), expected.flatten(1)).min())


class _OnPixels(nn.Module):
    """uint8 images_BHWC → what the network answers to them, as a tuple."""

    def __init__(self, network: nn.Module, normalize: nn.Module) -> None:
        super().__init__()
        self.network, self.normalize = network, normalize

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, ...]:
        answer = self.network(self.normalize(images_BHWC.permute(0, 3, 1, 2)))
        return answer if isinstance(answer, tuple) else (answer,)


def _graph(openvino: Any, module: nn.Module, sample: np.ndarray, cache_dir: Path) -> Any:
    """The graph for batches of BATCH images, from the cache if that holds one of just these weights."""
    # a graph is read as it is: only where nobody else can write
    folder = trusted_folder(cache_dir / GRAPHS) / f"frozen-{_fingerprint(module, sample.shape[1:])}"
    files = [folder / "model.xml", folder / "model.bin"]
    broken = seal_broken(folder / "SHA256", files) if folder.is_dir() else None
    if folder.is_dir() and broken is None:
        return core().read_model(*map(str, files))
    graph = _converted(openvino, module, sample)
    try:
        with atomic_folder(folder, check=_check_ours) as made:
            openvino.save_model(graph, str(made / "model.xml"), compress_to_fp16=False)
            seal(made / "SHA256", [made / file.name for file in files])
    except Exception as error:
        # on a full disk the library raises what is no OSError; the graph in memory is whole
        warn(f"a frozen network's graph is not kept in the cache: {folder} ({first_line(error)})")
    else:
        if broken is not None:
            warn(f"a frozen network's graph in the cache was made anew: {folder} ({broken})")
    return graph


def _check_ours(folder: Path) -> None:
    """Raise FileExistsError for a folder that holds more than a graph."""
    for path in folder.iterdir():
        if path.name not in ("model.xml", "model.bin", "SHA256"):
            raise FileExistsError(f"it holds {path.name[:60]!r}, which vivace did not write")


def _converted(openvino: Any, module: nn.Module, sample: np.ndarray) -> Any:
    example = torch.from_numpy(np.zeros((BATCH, *sample.shape[1:]), sample.dtype))
    with warnings.catch_warnings(), without_reports(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (example,), strict=False)
        return openvino.convert_model(program)


def _fingerprint(module: nn.Module, shape: tuple[int, ...]) -> str:
    """Of the weights, the network's structure and the libraries."""
    digest = hashlib.sha256(repr((str(module), shape, BATCH, _versions())).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def _versions() -> Mapping[str, str]:
    return {"torch": torch.__version__, "openvino": library().__version__}
