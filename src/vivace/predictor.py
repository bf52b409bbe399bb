"""Predictor: a bundle loaded once, to classify many images in this process or in others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import Bundle, load_bundle
from vivace.config import check_choice
from vivace.cpus import at_most_cpus, set_threads
from vivace.errors import BundleError, ConfigError, DataError, VivaceError, first_line
from vivace.hardware import keep_freed_memory, num_cpus, select_device, supported_precisions
from vivace.runtimes import check_probs, is_quantized, load_runtime

__all__ = ["Predictor", "check_whole", "predictor_for"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# runtimes that take the network itself, in a precision that this machine has
COMPILED = ("aoti", "eager", "inductor")


class Predictor:
    """A bundle loaded once, to classify many images.

    device: auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested). batch_size: images per forward pass. precision:
    fp32, bf16, fp16, or auto: the one that the bundle's metrics were measured with, where the device has it. runtime:
    a row of `RUNTIMES`, or auto: that of the bundle, on a CPU. threads: processors that it computes on, at most those
    of the process; torch has one such number for the whole process, and that is set.
    It can be pickled: the process that it is sent to opens the bundle's folder anew. A process that was forked from
    this one can't use it, for threads are not forked: it makes its own, which computes on one processor, and whose
    runtime is eager or onnx.
    Raises BundleError for a bundle that can't be used, ConfigError for another argument that can't be had.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        device: str = "auto",
        batch_size: int = 64,
        precision: str = "auto",
        runtime: str = "auto",
        threads: int | None = None,
    ) -> None:
        check_whole("batch_size", batch_size)
        if threads is not None:
            check_whole("threads", threads)
        check_choice("precision", precision, PRECISIONS)
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.batch_size = batch_size
        self.device = select_device(device)
        if runtime == "auto":
            # the graphs of other runtimes are for CPUs
            runtime = self.bundle.info.runtime if self.device.type == "cpu" else "eager"
        if precision == "auto":
            measured = self.bundle.info.precision
            # a graph has its arithmetic in it, and int8 was chosen by whoever quantized
            own = runtime == self.bundle.info.runtime and (runtime not in COMPILED or is_quantized(measured))
            precision = measured if own or measured in supported_precisions(self.device) else "fp32"
        self.precision, self.runtime, self.threads = precision, runtime, threads
        self._process = os.getpid()
        keep_freed_memory()
        if threads is not None:
            set_threads(min(threads, num_cpus()))
        with at_most_cpus(threads):
            self._classify = load_runtime(runtime, self.bundle, device=self.device, precision=precision)

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "device": str(self.device),
            "batch_size": self.batch_size,
            # another machine may have another precision's instructions: what was chosen is kept, and refused there
            "precision": self.precision if self.precision in PRECISIONS else "auto",
            "runtime": self.runtime,
            "threads": self.threads,
        }
        return _opened, (str(self.bundle.folder.absolute()), options)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    def probs(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Probabilities float32 [N, K] of uint8 images [N, size, size, C], as `Preprocess.load` gives them.

        Raises DataError for other images, BundleError if the network overflows or answers something else.
        """
        size, channels = self.bundle.preprocess.size, self.bundle.preprocess.channels
        wanted = f"images must be a uint8 array [N, {size}, {size}, {channels}]"
        if not isinstance(images_NHWC, np.ndarray):
            raise DataError(f"{wanted}: got {type(images_NHWC).__name__}. Use bundle.preprocess.load and numpy.stack.")
        if images_NHWC.dtype != np.uint8 or images_NHWC.shape[1:] != (size, size, channels):
            raise DataError(
                f"{wanted}: got {images_NHWC.dtype} {list(images_NHWC.shape)}. "
                "Use bundle.preprocess.load and numpy.stack."
            )
        if os.getpid() != self._process:
            raise ConfigError(
                f"the predictor was made in process {self._process}, and this is {os.getpid()}, forked from it: "
                "threads are not forked, and it would wait for ever. Start workers with spawn "
                "(multiprocessing.get_context('spawn')), or make one in each process: it computes on one processor."
            )
        parts = [
            self._classified(images_NHWC[start : start + self.batch_size])
            for start in range(0, len(images_NHWC), self.batch_size)
        ]
        probs = np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)
        if not np.isfinite(probs).all():
            mend = "Train again with a lower learning rate" if self.precision == "fp32" else "Use precision fp32"
            raise BundleError(
                f"the probabilities are not finite: {self.bundle.folder} overflows in {self.precision}. {mend}."
            )
        check_probs(probs, self.bundle.folder)
        return probs

    def _classified(self, images_NHWC: np.ndarray) -> np.ndarray:
        try:
            with at_most_cpus(self.threads):
                return self._classify(images_NHWC)
        except (VivaceError, MemoryError):
            raise
        except Exception as error:
            # a graph may be compiled at its first call, and libraries in C++ have errors of their own
            raise BundleError(
                f"{self.runtime} can't run what is in {self.bundle.folder}: {type(error).__name__}: "
                f"{first_line(error)}. Make the bundle again, or give it less: --batch-size 1."
            ) from error


def _opened(folder: str, options: dict[str, Any]) -> Predictor:
    """What a pickled predictor is made of again."""
    return Predictor(folder, **options)


def check_whole(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a whole number of 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is out of range: got {value!r}. Give a whole number of 1 or more.")


def predictor_for(bundle: Bundle | Predictor | str | Path, device: str, batch_size: int, precision: str) -> Predictor:
    """A predictor of the bundle; one that was made before is taken as it is.

    Raises ConfigError if a device or precision is asked of a predictor that was made with its own.
    """
    if not isinstance(bundle, Predictor):
        return Predictor(bundle, device=device, batch_size=batch_size, precision=precision)
    for name, value in (("device", device), ("precision", precision)):
        if value != "auto":
            raise ConfigError(f"{name} would be ignored: got {value!r} and a predictor. Give it to Predictor instead.")
    return bundle
