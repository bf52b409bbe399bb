"""Predictor: a bundle loaded once, to classify many images in this process or in others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from vivace.bundle import Bundle, load_bundle
from vivace.config import check_choice, shown_value
from vivace.cpus import at_most_cpus, set_threads
from vivace.errors import BundleError, ConfigError, DataError, ImageError, VivaceError, first_line
from vivace.hardware import Processor, is_processor, keep_freed_memory, num_cpus, select_device, supported_precisions
from vivace.inputs import Given, Ready, check_image, is_encoded, loaded, name_of
from vivace.predicted import Prediction, check_whole, decider_for, prediction_of, with_decided
from vivace.runtimes.loading import check_probs, load_runtime
from vivace.runtimes.table import REFERENCE, RUNTIMES, is_quantized
from vivace.uncertainty.scores import Answers

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["Prediction", "Predictor", "check_whole", "prediction_of", "predictor_for"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Predictor:
    """A bundle loaded once, to classify many images.

        predictor = vivace.Predictor(bundle)
        predictor("one.jpg").label
        predictor([Image.open("one.jpg"), array, tensor, data])

    device: auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested). batch_size: images per forward pass. precision:
    fp32, bf16, fp16, or auto: the one that the bundle's metrics were measured with, where the device has it. runtime:
    a row of `vivace.runtimes.table`, or auto: that of the bundle, on a CPU. threads: processors that it computes on, at
    most those of the process; torch has one such number for the whole process, and that is set. coverage: how often the
    true class is in the prediction set, (0, 1); None: 0.9. abstain: the error to allow among the images that are
    answered, (0, 1); None: 0.05. Both promises are for images like those that the bundle was validated on. decode: how
    JPEGs are decoded, fine, as in training, or coarse, which takes less time and changes some answers.
    Threads may call it at the same time. It can be pickled: the process that it is sent to opens the bundle's folder
    anew. A process that was forked from this one can't use it, for threads are not forked: it makes its own, which
    computes on one processor, and whose runtime is eager or onnx.
    Raises BundleError for a bundle that can't be used, ConfigError for another argument that is invalid.
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
        coverage: float | None = None,
        abstain: float | None = None,
        decode: str = "fine",
    ) -> None:
        check_whole("batch_size", batch_size)
        if threads is not None:
            check_whole("threads", threads)
        check_choice("precision", precision, PRECISIONS)
        if not isinstance(runtime, str):
            raise ConfigError(f"the runtime is unknown: got {shown_value(runtime)}. Give auto or a runtime's name.")
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.batch_size = batch_size
        if device == "auto" and not self.bundle.has_code:
            # the graph that stands for a network of the user's own runs on processors
            device = "cpu"
        place: torch.device | Processor = Processor() if is_processor(device) else select_device(device)
        if runtime == "auto":
            # the graphs of other runtimes are for CPUs
            runtime = self.bundle.info.runtime if place.type == "cpu" else REFERENCE
        if precision == "auto":
            measured = self.bundle.info.precision
            # the precision of a graph is fixed, and int8 was chosen when the bundle was quantized
            own = runtime == self.bundle.info.runtime and (not _takes_network(runtime) or is_quantized(measured))
            precision = measured if own or measured in supported_precisions(place) else "fp32"
        self.precision, self.runtime, self.threads = precision, runtime, threads
        self._process = os.getpid()
        keep_freed_memory()
        if _takes_network(runtime):
            place = select_device(str(place))
            if threads is not None:
                set_threads(min(threads, num_cpus()))
        self._place = place
        self.rates = {"coverage": coverage, "abstain": abstain}
        with at_most_cpus(threads):
            self._classify = load_runtime(runtime, self.bundle, device=place, precision=precision)
        self.decider = decider_for(self.bundle, self._classify, **self.rates)
        if decode != "fine":
            self.bundle = _decoded_by(self.bundle, decode)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (str(self.bundle.folder.absolute()), self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make the same one of the same bundle, also on another machine."""
        return {
            "device": self.device_name,
            "batch_size": self.batch_size,
            # another machine may have another precision's instructions: what was chosen is kept, and refused there
            "precision": self.precision if self.precision in PRECISIONS else "auto",
            "runtime": self.runtime,
            "threads": self.threads,
            "decode": self.decode,
            **self.rates,
        }

    @property
    def device_name(self) -> str:
        """Where it computes, such as cpu or cuda:0. Imports no torch."""
        return str(self._place)

    @property
    def device(self) -> torch.device:
        """Where it computes. Imports torch, which a graph's runtime does without."""
        return select_device(self.device_name)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    @property
    def decode(self) -> str:
        """How JPEGs are decoded: fine or coarse."""
        return self.bundle.preprocess.decode

    @property
    def workers(self) -> int:
        """How many threads decode."""
        return max(2, num_cpus()) if self.threads is None else min(self.threads, num_cpus())

    @overload
    def __call__(self, images: str | os.PathLike[str] | bytes | Image.Image, *, topk: int = 5) -> Prediction: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...] | Iterator[Any], *, topk: int = 5) -> list[Prediction]: ...
    @overload
    def __call__(self, images: Any, *, topk: int = 5) -> Any: ...
    def __call__(self, images: Any, *, topk: int = 5) -> Any:
        """A `Prediction` of one image, or a list of them, in order, with the pixels that `vivace.predict` sees.

        images: a path; an encoded file's bytes; a Pillow image of any mode; a numpy array [H, W] or [H, W, C] of uint8
        (also bool, uint16, or floats from 0 to 1), C 1 grey, 2 with alpha, 3 RGB, 4 with alpha; a torch tensor
        [C, H, W] of uint8 or of floats from 0 to 1, on any device. Many: an array [N, H, W, C], a tensor [N, C, H, W],
        or any iterable of single images. Transparency is laid on white, EXIF's orientation applied. A bundle for images
        of 16 bits, of floats or of other channels takes arrays of its dtype and channels, first or last, as they are.
        Of an iterator no more than three batches are held at a time; paths and bytes that it gives are decoded by
        threads, and what else it gives at once, as its memory may be used again for the next.
        topk: classes per image, at most all.
        Raises ImageError for an image that can't be used and DataError for what is none, with its position, such as
        image 3 for the one at [3]; and what `probs` raises. `vivace.predict` goes on after bad files.
        """
        check_whole("topk", topk)
        given = Given.of(images, self.bundle.preprocess.channels if self.bundle.preprocess.is_raw else None)
        if given.single:
            (image,) = given.images
            (row,) = self.predictions_of([name_of(image, 0)], self.bundle.preprocess.load(image)[None], topk)
            return row
        rows: list[Prediction] = []
        for batch, pixels in loaded(
            self._places(given), self._pixels_of, batch_size=self.batch_size, workers=self.workers
        ):
            rows += self.predictions_of([name_of(image, index) for index, image in batch], np.stack(pixels), topk)
        return rows

    def predictions_of(self, names: Sequence[str], images_NHWC: np.ndarray, topk: int) -> list[Prediction]:
        """The predictions of images as for `probs`, which raises what this raises. names: what they are called."""
        return self.predictions_from(names, self.answers(images_NHWC), topk)

    def predictions_from(self, names: Sequence[str], answers: Answers, topk: int) -> list[Prediction]:
        """The predictions that answers of `answers` make. names: what the images are called."""
        decided = None if self.decider is None else self.decider.decide(answers)
        rows = []
        for index, (name, probs_K) in enumerate(zip(names, answers.probs_NK, strict=True)):
            row = self.prediction_of(name, probs_K, topk)
            rows.append(row if decided is None else with_decided(row, decided, index, probs_K, self.classes))
        return rows

    def prediction_of(self, path: str, probs_K: np.ndarray, topk: int) -> Prediction:
        """The prediction that these probabilities of an image make."""
        return prediction_of(path, probs_K, self.classes, topk, self.bundle.info.thresholds or None)

    def _places(self, given: Given) -> Iterator[tuple[int, Any]]:
        """Each image with its index; of one whose memory may be used again, a copy of its pixels in its place."""
        for index, image in enumerate(given.images):
            ready = not given.lent or is_encoded(image)
            yield index, image if ready else Ready(np.array(self._pixels_of((index, image))))

    def _pixels_of(self, place: tuple[int, Any]) -> np.ndarray:
        index, image = place
        try:
            return image.pixels if isinstance(image, Ready) else self.bundle.preprocess.load(check_image(image))
        except ImageError as error:
            raise ImageError(f"image {index}: {error}", problem=error.problem) from None
        except DataError as error:
            raise DataError(f"image {index}: {error}") from None

    def probs(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Probabilities float32 [N, K] of images [N, size, size, C], uint8 or float32, as `Preprocess.load` gives them.

        Raises DataError for other images, BundleError if the network overflows or answers something else.
        """
        return self._answered(images_NHWC, more=False).probs_NK

    def answers(self, images_NHWC: np.ndarray, *, everything: bool = False) -> Answers:
        """What `probs` gives, with what the bundle's score of unlike images needs, or all that the runtime gives.

        Raises what `probs` raises.
        """
        needed = self.decider is not None and self.decider.needs_more
        if needed or (everything and hasattr(self._classify, "answers")):
            return self._answered(images_NHWC, more=True)
        return Answers(self.probs(images_NHWC))

    def _answered(self, images_NHWC: np.ndarray, *, more: bool) -> Answers:
        preprocess = self.bundle.preprocess
        size, channels = preprocess.size, preprocess.channels
        wanted = f"images must be a {preprocess.dtype} array [N, {size}, {size}, {channels}]"
        if not isinstance(images_NHWC, np.ndarray):
            raise DataError(f"{wanted}: got {type(images_NHWC).__name__}. Use bundle.preprocess.load and numpy.stack.")
        if images_NHWC.dtype != preprocess.dtype or images_NHWC.shape[1:] != (size, size, channels):
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
            self._classified(images_NHWC[start : start + self.batch_size], more=more)
            for start in range(0, len(images_NHWC), self.batch_size)
        ]
        found = Answers.joined(parts) if parts else Answers(np.zeros((0, len(self.classes)), np.float32))
        probs = found.probs_NK
        if not np.isfinite(probs).all():
            fix = "Train again with a lower learning rate" if self.precision == "fp32" else "Use precision fp32"
            raise BundleError(
                f"the probabilities are not finite: {self.bundle.folder} overflows in {self.precision}. {fix}."
            )
        check_probs(probs, self.bundle.folder, multi_label=self.bundle.info.multi_label)
        return found

    def _classified(self, images_NHWC: np.ndarray, *, more: bool) -> Answers:
        try:
            with at_most_cpus(self.threads):
                if more:
                    found: Answers = self._classify.answers(images_NHWC)  # type: ignore[attr-defined]
                    return found
                return Answers(self._classify(images_NHWC))
        except (VivaceError, MemoryError):
            raise
        except Exception as error:
            # a graph may be compiled at its first call, and libraries in C++ have errors of their own
            raise BundleError(
                f"{self.runtime} can't run what is in {self.bundle.folder}: {type(error).__name__}: "
                f"{first_line(error)}. Make the bundle again, or give it less: `batch_size=1`."
            ) from error


def _takes_network(runtime: str) -> bool:
    """Whether a runtime takes the network itself, by torch, in a precision that this machine has."""
    return runtime in RUNTIMES and RUNTIMES[runtime].takes_network


def _decoded_by(bundle: Bundle, decode: str) -> Bundle:
    """The bundle with another `Preprocess.decode`. Raises ConfigError for one that it can't have."""
    preprocess = dataclasses.replace(bundle.preprocess, decode=decode)  # type: ignore[arg-type]
    return dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, preprocess=preprocess))


def _opened(folder: str, options: dict[str, Any]) -> Predictor:
    """What a pickled predictor is made of again."""
    return Predictor(folder, **options)


def predictor_for(
    bundle: Bundle | Predictor | str | Path,
    device: str,
    batch_size: int,
    precision: str,
    threads: int | None = None,
    *,
    coverage: float | None = None,
    abstain: float | None = None,
    decode: str = "fine",
) -> Predictor:
    """A predictor of the bundle; one that was made before is taken as it is.

    Raises ConfigError if a device, precision, threads or rates are asked of a predictor that was made with its own.
    """
    if not isinstance(bundle, Predictor):
        return Predictor(
            bundle,
            device=device,
            batch_size=batch_size,
            precision=precision,
            threads=threads,
            coverage=coverage,
            abstain=abstain,
            decode=decode,
        )
    given = {"device": device, "precision": precision, "threads": threads, "coverage": coverage, "abstain": abstain}
    given["decode"] = decode
    for name, value in given.items():
        if value not in ("auto", "fine", None):
            raise ConfigError(f"{name} would be ignored: got {value!r} and a predictor. Give it to Predictor instead.")
    return bundle
