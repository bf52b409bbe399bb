"""Classify images with the model in this folder: neither PyTorch nor vivace is needed.

    python classifier.py IMAGE... [--topk 5] [--threads N] [--coverage 0.9] [--abstain 0.05] [--json]

    from classifier import Classifier
    model = Classifier()
    model.classify("rose.jpg")      # [("roses", 0.98), ("tulips", 0.01), …]
    model.predict("rose.jpg")       # {"label": "roses", …, "prediction_set": ["roses"], "abstain": False, "ood": False}

A model for sets of labels answers with those whose probability reaches their threshold, perhaps none.
An image becomes the very pixels that it became in training. Shapes: images_NHWC [N, size, size, C], uint8 or,
of images of more bits, float32; probs_NK float32; rows sum to 1, except for sets of labels.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from image_decoder.decode import shown
from manifest import GRAPHS, ClassifierError, FolderError, check_file, read_manifest
from pixels import ImageError, load_pixels
from reliance import Reliance, told_of

__all__ = ["Classifier", "ClassifierError", "FolderError", "ImageError"]

HERE = Path(__file__).resolve().parent
TOLERANCE = 0.02


class Classifier:
    """The model of a folder, loaded once to classify many images.

    threads: for one call; default: the processors that this process may use. verify: compare the graph with its
    SHA-256 first. coverage, abstain: how often prediction sets hold the true class, and the error to allow among what
    is answered; default: those of model.json. Raises FolderError, and ClassifierError for rates that it does not have.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] = HERE,
        *,
        threads: int | None = None,
        verify: bool = True,
        coverage: float | None = None,
        abstain: float | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.info = read_manifest(self.folder)
        self.classes: tuple[str, ...] = tuple(self.info["classes"])
        # from which probability on each label applies; None where an image has one class
        self.thresholds: tuple[float, ...] | None = tuple(self.info["thresholds"]) if "task" in self.info else None
        # what tells whether to rely on an answer; None where the model was not calibrated for it
        self.reliance: Reliance | None = None
        if "uncertainty" in self.info:
            self.reliance = Reliance(self.info["uncertainty"], coverage=coverage, risk=abstain)
        elif coverage is not None or abstain is not None:
            raise ClassifierError(f"coverage and abstain would be ignored: {self.folder} has no thresholds for them.")
        self.size, self.channels = (int(self.info["preprocess"][key]) for key in ("size", "channels"))
        # of the pixels that the network sees
        self.dtype = "uint8" if self.info["preprocess"].get("pixels", "uint8") == "uint8" else "float32"
        graph = GRAPHS[self.info["runtime"]]
        if verify:
            for name in graph:
                check_file(self.folder, name, self.info["files"])
        load = _onnx if self.info["runtime"] == "onnx" else _openvino
        path = str(self.folder / graph[0])
        try:
            self._run = load(path, self.info["settings"], threads or num_cpus())
        except FolderError:
            raise
        except Exception as error:
            # runtimes raise errors of their own, of many lines
            reason = shown(" ".join(str(error).split())[-300:])
            raise FolderError(
                f"the graph can't be run here: {path}, {self.info['precision']} (… {reason}). Where this processor "
                "does not support that precision, deploy the float32 variant."
            ) from None

    def pixels(self, source: str | os.PathLike[str] | bytes | np.ndarray) -> np.ndarray:
        """What the network sees of an image file (a path, or its bytes): [size, size, C]. Raises ImageError.

        A model for images of 16 bits, of floats or of other channels than grey and RGB also takes arrays and .npy.
        """
        return load_pixels(source, self.info["preprocess"])

    def probs(self, images_NHWC: np.ndarray) -> np.ndarray:
        """probs_NK of pixels as `pixels` gives them. Raises ClassifierError for other ones, or if they overflow."""
        shape = (self.size, self.size, self.channels)
        if images_NHWC.dtype != self.dtype or images_NHWC.ndim != 4 or images_NHWC.shape[1:] != shape:
            raise ClassifierError(
                f"images must be {self.dtype} [N, {', '.join(map(str, shape))}]: got {images_NHWC.dtype} "
                f"{list(images_NHWC.shape)}. Use Classifier.pixels."
            )
        if not len(images_NHWC):
            return np.zeros((0, len(self.classes)), np.float32)
        probs_NK = self._run(np.ascontiguousarray(images_NHWC))
        if probs_NK.shape != (len(images_NHWC), len(self.classes)) or not _are_probabilities(
            probs_NK, sets=self.thresholds is not None
        ):
            raise ClassifierError(
                f"the answers are no probabilities of {len(self.classes)} classes: {self.folder}. Run selftest.py."
            )
        return probs_NK

    def ranked(self, probs_K: np.ndarray, topk: int = 5) -> list[tuple[str, float]]:
        """(class, probability), the likeliest first; equal ones in the order of the classes.

        Of sets of labels: those that reach their thresholds, however many.
        """
        best = np.argsort(-probs_K, kind="stable")
        best = best[:topk] if self.thresholds is None else best[(probs_K >= np.array(self.thresholds))[best]]
        return [(self.classes[index], float(probs_K[index])) for index in best]

    def classify(self, source: str | os.PathLike[str] | bytes | np.ndarray, topk: int = 5) -> list[tuple[str, float]]:
        """What `ranked` gives of one image. Raises ImageError."""
        return self.ranked(self.probs(self.pixels(source)[None])[0], topk)

    def predict(self, source: str | os.PathLike[str] | bytes | np.ndarray, topk: int = 5) -> dict[str, Any]:
        """label, probability and topk of one image, and whether to rely on them: prediction_set, abstain, ood.

        Of sets of labels: labels. Raises ImageError.
        """
        return self._told(self.probs(self.pixels(source)[None])[0], topk)

    def _told(self, probs_K: np.ndarray, topk: int) -> dict[str, Any]:
        ranked = [{"label": label, "probability": probability} for label, probability in self.ranked(probs_K, topk)]
        if self.thresholds is not None:
            return {"labels": ranked}
        told = {**ranked[0], "topk": ranked}
        if self.reliance is not None:
            found = self.reliance.of(probs_K)
            inside = [self.classes[place] for place in found["inside"]]
            told |= {"prediction_set": inside, "abstain": found["abstain"], "ood": found["ood"]}
        return told

    def classify_batch(
        self, sources: Iterable[str | os.PathLike[str] | bytes | np.ndarray], topk: int = 5, batch_size: int = 32
    ) -> list[list[tuple[str, float]] | ImageError]:
        """What `classify` gives for each image, in their order; of an image that can't be used, its ImageError."""
        return [
            told if isinstance(told, ImageError) else [(row["label"], row["probability"]) for row in _rows(told)]
            for told in self.predict_batch(sources, topk, batch_size)
        ]

    def predict_batch(
        self, sources: Iterable[str | os.PathLike[str] | bytes | np.ndarray], topk: int = 5, batch_size: int = 32
    ) -> list[dict[str, Any] | ImageError]:
        """What `predict` gives for each image, in their order; of an image that can't be used, its ImageError."""
        results: list[dict[str, Any] | ImageError] = []
        pending: list[np.ndarray] = []
        places: list[int] = []

        def flush() -> None:
            if pending:
                for place, probs_K in zip(places, self.probs(np.stack(pending)), strict=True):
                    results[place] = self._told(probs_K, topk)
            pending.clear()
            places.clear()

        for source in sources:
            try:
                pending.append(self.pixels(source))
            except ImageError as error:
                results.append(error)
                continue
            places.append(len(results))
            results.append({})
            if len(pending) >= batch_size:
                flush()
        flush()
        return results


def _rows(told: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = told["topk"] if "topk" in told else told["labels"]
    return found


def _are_probabilities(probs_NK: np.ndarray, *, sets: bool) -> bool:
    # in bf16 the parts of a sum are rounded to 8 bits
    near_one = np.full(len(probs_NK), True) if sets else np.abs(probs_NK.sum(1) - 1) <= TOLERANCE
    return bool(near_one.all() and (probs_NK >= 0).all() and (probs_NK <= 1 + TOLERANCE / 10).all())


def num_cpus() -> int:
    """Processors that this process may use, at least 1: by affinity, control groups, Slurm and OMP_NUM_THREADS."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        limits += [int(text) for text in os.environ.get(name, "").split(",")[:1] if text.strip().isdecimal()]
    return max(1, min(limit for limit in [*limits, *_quotas()] if limit))


def _quotas() -> list[int]:
    """Whole processors, at least 1, of each quota from this process's control group up to the root."""
    mount, quotas = Path("/sys/fs/cgroup"), []
    try:
        groups = Path("/proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        groups = []
    inner = [
        part for line in groups if line.startswith("0::") for part in line[3:].split("/") if part not in ("", "..")
    ]
    for depth in range(len(inner), -1, -1):
        try:
            quota, period = mount.joinpath(*inner[:depth], "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(max(1, int(quota) // int(period)))
        except (OSError, ValueError):
            continue
    return quotas


def _onnx(path: str, settings: dict[str, Any], threads: int) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import onnxruntime
    except ImportError:
        raise FolderError("onnxruntime is not installed. Install it: pip install -r requirements.txt") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # all weights are in the graph, which is of ONNX: neither another file nor another format is taken
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images_NHWC: np.ndarray) -> np.ndarray:
        probs_NK: np.ndarray = session.run(["probs"], {"images": images_NHWC})[0]
        return probs_NK

    return run


def _openvino(path: str, settings: dict[str, Any], threads: int) -> Callable[[np.ndarray], np.ndarray]:
    # its converter of models is not needed here: it takes as long to import as all the rest, and reports to its makers
    # that it was imported
    converter = "openvino.tools.ovc"
    skip = "openvino" not in sys.modules
    if skip:
        sys.modules[converter] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError:
        raise FolderError("openvino is not installed. Install it: pip install -r requirements.txt") from None
    finally:
        if skip:
            del sys.modules[converter]
    core = openvino.Core()
    graph = core.read_model(path)
    settings = {**settings, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}

    @functools.cache
    def program(size: int) -> tuple[Any, np.ndarray, np.ndarray]:
        # for a size that it knows it is faster, and int8 for any size may crash on processors with AMX
        sized = graph.clone()
        _, *image = sized.input().get_partial_shape()
        sized.reshape([size, *image])
        # pixels and answers have their places: to make tensors for each call takes a tenth of a small network's time
        request = core.compile_model(sized, "CPU", settings).create_infer_request()
        return request, request.get_input_tensor().data, request.get_output_tensor().data

    busy = threading.Lock()

    def run(images_NHWC: np.ndarray) -> np.ndarray:
        count = len(images_NHWC)
        # powers of two: a program for each size that is ever asked for would be too many
        with busy:
            request, pixels, probs_NK = program(1 << (count - 1).bit_length())
            pixels[:count] = images_NHWC
            request.infer()
            return probs_NK[:count].copy()

    program(1)
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status: 0 if an image was classified, 1 if none was, 2 if the model can't be loaded."""
    import argparse

    parser = argparse.ArgumentParser(
        description="Classify images with the model in this folder. Images that can't be classified are listed on "
        "stderr, and do not stop the others.",
        epilog="exit status: 0 if at least one image was classified, 1 if none was, 2 if the options are wrong or the "
        "model can't be loaded",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--topk", type=int, default=5, help="classes for each image")
    parser.add_argument("--threads", type=int, help="default: all processors")
    parser.add_argument("--coverage", type=float, help="how often the prediction set is to hold the true class")
    parser.add_argument("--abstain", type=float, help="the error to allow among the images that are answered")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    if given.topk < 1 or (given.threads is not None and given.threads < 1):
        parser.error(f"--topk and --threads must be 1 or more: got {given.topk} and {given.threads}")
    try:
        model = Classifier(threads=given.threads, coverage=given.coverage, abstain=given.abstain)
        results = model.predict_batch(given.images, given.topk)
    except ClassifierError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    predictions, failures = [], []
    for path, result in zip(given.images, results, strict=True):
        if isinstance(result, ImageError):
            failures.append({"path": path, "problem": result.problem, "message": str(result)})
            print(f"not classified: {shown(path)} ({result.problem}) {result}", file=sys.stderr)
            continue
        predictions.append({"path": path, **result})
        if not given.json:
            named = (f"{shown(row['label'])} {100 * row['probability']:.1f} %" for row in _rows(result))
            print(shown(path) + "\t" + ("  ".join(named) or "-") + told_of(result))
    if given.json:
        print(json.dumps({"predictions": predictions, "failures": failures}))
    return 0 if predictions else 1


if __name__ == "__main__":
    sys.exit(main())
