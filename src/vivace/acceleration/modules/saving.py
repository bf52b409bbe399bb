"""The result of a search as a bundle, where the module classifies images: its graph, which needs none of its code.

A bundle computes from the pixels of an image file. How these become what the module takes is told by the user: the data
of a search are normalised already, and do not say how.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivace.acceleration.modules.batches import Batch
from vivace.acceleration.modules.classifiers import ImageClassifier, image_of
from vivace.acceleration.modules.dropin import AcceleratedModule
from vivace.acceleration.modules.pixels import given_preprocess, pixels_of
from vivace.acceleration.modules.signature import Call, flatten
from vivace.bundle import Architecture, Bundle, BundleInfo, derive_bundle, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError, ExportError, shown
from vivace.exporting.graph_bundle import with_graph_for
from vivace.exporting.parity import check_parity, compare_probs, measure_parity
from vivace.files import write_json
from vivace.hardware import describe
from vivace.models.own.given import OwnNetwork, own_network
from vivace.models.zoo import forward_flops
from vivace.notices import warn
from vivace.outputs import check_folder, warn_of_replaced, writing
from vivace.owned import BUNDLE
from vivace.runtimes.graph import probabilities
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.table import PORTABLE, RUNTIMES, imported
from vivace.scratch import scratch_folder
from vivace.statistics.proportions import wilson_interval

__all__ = ["Saveable", "save_module"]

REPORT = "acceleration.json"
# the probability from which on a label is predicted
THRESHOLD = 0.5
OF_THE_DATA = "images of the data"


@dataclass(frozen=True, kw_only=True)
class Saveable:
    """What a search knows of its result beside what it reports."""

    network: nn.Module
    """In evaluation mode: its weights are saved."""
    answers: nn.Module
    """What the bundle must answer like: the drop-in, or the network itself."""
    batch: Batch
    """Some samples, as the data gave them."""
    classifier: ImageClassifier | None
    """None: it is none, as `why_not` says."""
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What a bundle needs and no module knows. Raises ConfigError for what does not fit the classifier."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    multi_label: bool

    @classmethod
    def of(
        cls,
        classifier: ImageClassifier,
        images_BCHW: Tensor,
        *,
        classes: Sequence[str] | None,
        preprocess: Preprocess | None,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        multi_label: bool | None,
    ) -> BundleFacts:
        """From the keywords of `save`, checked against images_BCHW, as the data gave them."""
        if classifier.height != classifier.width:
            raise ExportError(
                f"a bundle takes square images: got a module for {classifier.height} x {classifier.width}. Keep "
                "`result.module`."
            )
        seen = given_preprocess(images_BCHW, preprocess=preprocess, mean=mean, std=std)
        if multi_label is None and classifier.sets:
            raise ConfigError(
                "the targets are 0 or 1 for each class, and whether an image may have several is not known. Give "
                "`multi_label=True`, or False for exactly one class an image."
            )
        if multi_label:
            warn(f"each label is predicted from a probability of {THRESHOLD} on")
        return cls(
            classes=_class_names(classes, classifier.num_classes), preprocess=seen, multi_label=bool(multi_label)
        )


def _class_names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if given is None:
        warn(f'the classes are called "0" to "{count - 1}". Give `classes` for others')
        return tuple(map(str, range(count)))
    # a set has no order
    is_list = isinstance(given, Iterable) and not isinstance(given, str | Set)
    classes = tuple(given) if is_list else ()
    if not is_list or not all(isinstance(name, str) and name.strip() for name in classes):
        raise ConfigError(
            f"`classes` are no names: got {shown(given)}. Give a list of texts, in the order of the outputs."
        )
    if len(classes) != count or len(set(classes)) != count:
        raise ConfigError(
            f"`classes` do not fit the module's {count} outputs: got {len(classes)}, {len(set(classes))} of them "
            "different. Give a name for each, in the order of the outputs."
        )
    return classes


def save_module(saveable: Saveable, report: dict[str, Any], folder: Path, **asked: Any) -> Path:
    """Write the bundle into `folder`, and return the folder. report: of the search. asked: see `BundleFacts.of`.

    Raises ExportError for what is no image classifier or can't be a graph, ConfigError for `asked` that does not fit,
    ModelError for a network that takes no two images, ParityError if the bundle would answer otherwise than the
    result's module, OutputPathError if `folder` holds what vivace did not write.
    """
    classifier = saveable.classifier
    if classifier is None:
        raise ExportError(
            f"only an image classifier can be saved as a bundle, and this module is none: {saveable.why_not}. Keep "
            "`result.module`, or save the weights of your own module."
        )
    images_BCHW = image_of(saveable.batch)
    replaced = check_folder(folder, option="`folder`", kind=BUNDLE)
    facts = BundleFacts.of(classifier, images_BCHW, **asked)
    images_NHWC = pixels_of(images_BCHW, facts.preprocess)
    with scratch_folder("save") as work, writing(folder):
        plain = _plain_bundle(saveable, classifier, facts, report, work / "plain")
        portable, _ = with_graph_for(PORTABLE, plain, work / "portable", images_NHWC, OF_THE_DATA)
        derive_bundle(portable, folder, lambda into: _add(saveable, portable, images_NHWC, report, into))
    warn_of_replaced(folder, replaced)
    return folder


def _plain_bundle(
    saveable: Saveable, classifier: ImageClassifier, facts: BundleFacts, report: dict[str, Any], folder: Path
) -> Bundle:
    """The weights, with the code that is at hand now."""
    given = own_network(saveable.network)
    assert given is not None
    network = dataclasses.replace(given, is_trained=False)
    architecture = Architecture(
        name=network.name,
        num_classes=classifier.num_classes,
        in_channels=classifier.channels,
        size=classifier.height,
    )
    model = network.build(classifier.num_classes, in_channels=classifier.channels, size=classifier.height, arguments={})
    info = BundleInfo(
        architecture=architecture,
        classes=facts.classes,
        preprocess=facts.preprocess,
        environment=describe(),
        network=_recorded(network, model, architecture),
        task="multi_label" if facts.multi_label else "single_label",
        thresholds=(THRESHOLD,) * classifier.num_classes if facts.multi_label else (),
        metrics=_metrics(report),
    )
    return save_bundle(folder, model, info, network=network)


def _recorded(network: OwnNetwork, model: nn.Module, architecture: Architecture) -> dict[str, Any]:
    record = network.record()
    # what can't be counted is left out
    with contextlib.suppress(Exception):
        record["operations"] = forward_flops(model, in_channels=architecture.in_channels, size=architecture.size)
    return record


def _metrics(report: dict[str, Any]) -> dict[str, Any]:
    """What was proven, for readers of a bundle."""
    if report["metric"] != "top1" or math.isnan(report["score_after"]):
        return {}
    top1, count = report["score_after"], report["num_certify_samples"]
    low, high = wilson_interval(round(top1 * count), count)
    return {"certify": {"top1": top1, "top1_low": low, "top1_high": high, "num_images": count}}


def _add(
    saveable: Saveable, portable: Bundle, images_NHWC: np.ndarray, report: dict[str, Any], folder: Path
) -> BundleInfo:
    """Add the graph that computes as the result's module, and the report; what the manifest is to say."""
    info = _add_graph(saveable, portable, folder)
    names = tuple(path.name for path in folder.iterdir())
    classify = load_runtime(
        info.runtime, Bundle(folder, info, names), device=torch.device("cpu"), precision=info.precision
    )
    measured: dict[str, Any] = {"runtime": info.runtime, "precision": info.precision, "images": OF_THE_DATA}
    parity = measure_parity(portable, classify, images_NHWC, **measured)
    check_parity(parity)
    same = compare_probs(
        _answers(saveable, info)(images_NHWC),
        classify(images_NHWC),
        **measured,
        reference="the result's module",
        thresholds_K=info.thresholds or None,
    )
    check_parity(same)
    write_json(folder / REPORT, _plain(report))
    return dataclasses.replace(info, parity=parity.recorded())


def _add_graph(saveable: Saveable, portable: Bundle, folder: Path) -> BundleInfo:
    """The program of the drop-in where it is a graph that a bundle can hold; else the portable one, which is said."""
    winner = saveable.answers
    assert saveable.classifier is not None
    if isinstance(winner, AcceleratedModule) and winner.graph is not None:
        try:
            exporter = imported(str(RUNTIMES[winner.runtime].exporter))
            exporter.write_with_pixels(winner.graph, saveable.classifier.place, portable, folder)
            return dataclasses.replace(portable.info, runtime=winner.runtime, precision=winner.precision)
        except ExportError as error:
            warn(f"{error} The bundle computes by {RUNTIMES[PORTABLE].label} in fp32")
    elif isinstance(winner, AcceleratedModule) and RUNTIMES[winner.runtime].takes_network:
        warn(
            f"{winner.runtime} in {winner.precision} takes the network's own code, which no bundle holds: the bundle "
            f"computes by {RUNTIMES[PORTABLE].label} in fp32, which was not what was proven to be the fastest"
        )
    for name in RUNTIMES[PORTABLE].graph_files:
        shutil.copyfile(portable.checked(name), folder / name)
    return portable.info


def _answers(saveable: Saveable, info: BundleInfo) -> Callable[[np.ndarray], np.ndarray]:
    """images_NHWC uint8 → probs_NK of the module itself, called as the data call it."""
    classifier, batch = saveable.classifier, saveable.batch
    assert classifier is not None
    structure = batch.call.flatten()[1]
    device, dtype = image_of(batch).device, image_of(batch).dtype
    mean_C, std_C = (torch.tensor(values)[:, None, None] for values in (info.preprocess.mean, info.preprocess.std))

    @torch.no_grad()
    def answers(images_NHWC: np.ndarray) -> np.ndarray:
        found = []
        for images_BHWC in _parts(images_NHWC, batch.size):
            pixels_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 255
            images_BCHW = ((pixels_BCHW - mean_C) / std_C).contiguous().to(device, dtype)
            call = Call.of(structure, [images_BCHW])
            logits_BK = flatten(saveable.answers(*call.args, **call.kwargs))[0][classifier.place]
            found.append(probabilities(logits_BK, multi_label=info.multi_label).cpu().numpy())
        return np.concatenate(found)

    return answers


def _parts(images_NHWC: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images_NHWC), size):
        yield images_NHWC[start : start + size]


def _plain(report: dict[str, Any]) -> dict[str, Any]:
    """The report without NaN, which is no JSON."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in report.items()
    }
