"""vivace.evaluate: the metrics of a bundle on labelled images."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import Bundle
from vivace.config import check_choice, check_range, to_dict
from vivace.data.caching.cache import CachedSplit, open_cache
from vivace.data.describe import notes_of
from vivace.data.objects.source import only_split
from vivace.data.place import AnyData, Data
from vivace.data.sources import open_source
from vivace.data.splits import DataSource, Split
from vivace.data.text import first_few
from vivace.errors import DataError
from vivace.evaluation.answered import add_views, scored_answers
from vivace.evaluation.chosen import HELD_OUT, choose_images, choose_split
from vivace.evaluation.explained import HeatMaps, explained, heat_map_folder
from vivace.evaluation.hardship import Hardship, measured_under
from vivace.evaluation.mistakes import Mistake, mistakes_of_sets, most_confident
from vivace.evaluation.slicing import measured_answers, slices_of
from vivace.evaluation.tta import VIEWS
from vivace.evaluation.uncertainty import UncertaintyMetrics, check_ood, uncertainty_of
from vivace.metrics.multilabel import MultiLabelMetrics, evaluate_sets
from vivace.metrics.slices import Slices
from vivace.metrics.summary import Metrics, evaluate_probs
from vivace.notices import collected_warnings, warn
from vivace.prediction import Predictor, predictor_for
from vivace.robustness.results import Attacked, Corruptions

__all__ = ["Evaluation", "Mistake", "evaluate", "open_split"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of a bundle on one split."""

    data: str
    split: str
    """Its name; "all" if the data has only one; or "held out": images that were not trained on."""
    metrics: Any
    """A `Metrics`; of a bundle for sets of labels a `MultiLabelMetrics`."""
    classes: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    """The most confident ones first; of sets of labels, a label that an image has not, or has and is not predicted."""
    precision: str
    tta: str
    """The views that predictions are averaged over: none, mirror or shift."""
    tta_share: float
    """Fraction of the images with more than one view, those with the least certain predictions, (0, 1]."""
    seconds: float
    """Classification time, without decoding."""
    images_per_second: float
    images_NHWC: np.ndarray
    """The pixels of the mistakes as the network sees them, in their order."""
    num_images_trained_on: int | None = None
    """How many of the evaluated images were trained on; None: the bundle has no record of that."""
    num_images_left_out: int = 0
    """Number of images that were trained on and therefore not evaluated."""
    corruptions: Corruptions | None = None
    """Accuracy under common corruptions; None: it was not asked for."""
    attack: Attacked | None = None
    """Accuracy under attack; None: it was not asked for."""
    uncertainty: UncertaintyMetrics | None = None
    """Prediction sets, abstaining and unlike images; None: the bundle has no thresholds for these answers."""
    heat_maps: HeatMaps | None = None
    """Pictures of what speaks for the classes of the mistakes; None: they were not asked for."""
    slices: Slices | None = None
    """The parts of the images on which it is worst."""
    warnings: tuple[str, ...] = ()
    """What else was left out or guessed, such as images of classes that the bundle does not have."""

    @property
    def top1(self) -> float:
        """Accuracy; NaN for sets of labels, whose metrics have others."""
        return self.metrics.top1 if isinstance(self.metrics, Metrics) else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the metrics that are single numbers are on the first level."""
        return {
            **self.metrics.summary(),
            "data": self.data,
            "split": self.split,
            "num_images_trained_on": self.num_images_trained_on,
            "num_images_left_out": self.num_images_left_out,
            "classes": list(self.classes),
            **_tables(self.metrics),
            "mistakes": [to_dict(mistake) for mistake in self.mistakes],
            "precision": self.precision,
            "tta": self.tta,
            "tta_share": self.tta_share,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "corruptions": None if self.corruptions is None else self.corruptions.to_dict(),
            "attack": None if self.attack is None else self.attack.to_dict(),
            "uncertainty": None if self.uncertainty is None else to_dict(self.uncertainty),
            "heat_maps": None if self.heat_maps is None else self.heat_maps.to_dict(),
            "slices": None if self.slices is None else self.slices.to_dict(),
            "warnings": list(self.warnings),
        }


def evaluate(
    bundle: Bundle | Predictor | str | Path,
    data: AnyData,
    *,
    split: str | None = None,
    batch_size: int = 250,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache_dir: str | Path | None = None,
    on_bad_image: str = "auto",
    tta: str = "none",
    tta_share: float = 1.0,
    corruptions: bool = False,
    corruption_images: int = 1000,
    attack: str | None = None,
    attack_images: int = 1000,
    attack_methods: Sequence[str] = (),
    attack_precision: str = "auto",
    within: str | float | None = None,
    keep_interrupted: bool = False,
    seed: int = 0,
    coverage: float | None = None,
    abstain: float | None = None,
    ood: str | Path | None = None,
    heat_maps: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stage: Callable[..., None] = lambda name, told="", unit="images": None,
) -> Evaluation:
    """Evaluate a bundle on a split of `data`: test if there is one, else val, else the images not trained on.

    data: as for `train`; its classes are matched to the bundle's by name and may be a subset of them. split: train,
    val, test, or "all" if the data has only one split; without a validation split, "val" is what training held out, and
    for data without splits "train" is what was trained on. batch_size: images per forward pass. threads: CPU threads;
    None: one per processor; a Predictor keeps its own. tta: views that predictions are averaged over, "none", "mirror"
    (2 views) or "shift" (6 views: mirrors and shifts by 1 px). tta_share: fraction of the images that get more than one
    view, those with the least certain predictions, (0, 1]. corruptions: also measure the accuracy under common
    corruptions, on corruption_images images at most, chosen at random by `seed`. attack: also measure it under attack,
    within a norm and radius such as "linf:8/255" or "l2:0.5" on pixels from 0 to 1, on attack_images images at most, by
    attack_methods (names of `vivace.robustness.attacks.suite.METHODS`; none: all). attack_precision: as for
    `measure_attack`. within: time for the attacks, such as "20m"; what they do not finish counts as robust, and the
    result says so. keep_interrupted: SIGINT and SIGTERM during the attacks end these so too, and are not raised; a
    second signal ends the process. coverage, abstain: as for `Predictor`, whose promises are measured on these images.
    ood: a folder, file or glob of images of another kind, from which and from generated ones these are to be told;
    "generated": from these alone. heat_maps: a folder for pictures of the mistakes with the places that speak for the
    predicted class and for the true one, made as by `vivace.heat_maps`. progress is called with (images decoded, images
    in all), then with the rounds of corruptions and the images of each attack; stage before each of them with its name,
    what is to be said of it, and the unit, "rounds" or "images". on_bad_image: as for `train`.
    Raises DataError if the data has none of the bundle's classes, the split does not exist or is empty, or on_bad_image
    does not permit the bad images; ConfigError for an unknown tta or a tta_share out of range; and what `Predictor`
    raises.
    """
    check_choice("tta", tta, tuple(VIEWS))
    check_range("tta_share", tta_share, 0.0, 1.0, open_low=True)
    hardship = Hardship(
        corruptions=corruptions,
        corruption_images=corruption_images,
        attack=attack,
        attack_images=attack_images,
        attack_methods=tuple(attack_methods),
        attack_precision=attack_precision,
        within=within,
        keep_interrupted=keep_interrupted,
        seed=seed,
    )
    with collected_warnings() as warnings:
        predictor = predictor_for(bundle, device, batch_size, precision, threads, coverage=coverage, abstain=abstain)
        hardship.check(predictor)
        check_ood(predictor, ood, tta)
        folder = None if heat_maps is None else heat_map_folder(heat_maps, predictor, data)
        if tta != "none" and (corruptions or attack is not None):
            warn(f"corruptions and attacks are measured without test-time augmentation ({tta})")
        classes = predictor.classes
        source, chosen, cached = open_split(
            predictor.bundle,
            data,
            split=split,
            cache_dir=cache_dir,
            on_bad_image=on_bad_image,
            progress=progress,
        )
        sets = source.label_sets
        if len(cached.labels_N) == 0:
            if len(source.splits) == 1:
                raise DataError(f"no image of {source.name} can be used. 'vivace audit' lists why; fix them.")
            raise DataError(f"the split {chosen} of {source.name} has no images. Choose another by `split`.")
        trained_on = predictor.bundle.trained_on()
        measured = choose_images(
            chosen, split, cached.digests_N, trained_on, only_split=len(source.splits) == 1, name=source.name
        )
    started = time.perf_counter()
    view = predictor.bundle.preprocess.view
    scored, kept = scored_answers(predictor, cached, measured.rows, everything=ood is not None, seed=seed)
    probs = scored.probs_NK
    if tta != "none":
        add_views(predictor, cached, measured.rows, probs, tta, tta_share)
    seconds = time.perf_counter() - started
    metrics: Metrics | MultiLabelMetrics
    hits_NK = None
    if predictor.bundle.info.multi_label:
        assert sets is not None
        thresholds, hits_NK = predictor.bundle.info.thresholds, sets[cached.labels_N[measured.rows]]
        metrics = evaluate_sets(probs, hits_NK, classes, thresholds)
        mistakes = mistakes_of_sets(probs, hits_NK, thresholds, cached, measured.rows, classes)
        if metrics.without_images:
            warnings.append(f"no image of {chosen} has {first_few(metrics.without_images)}: no metrics for them")
    else:
        metrics = evaluate_probs(probs, cached.labels_N[measured.rows], classes)
        mistakes = most_confident(probs, cached, measured.rows, classes)
    answers = measured_answers(measured, source.splits[chosen], cached, probs, view, hits_NK)
    slices = slices_of(answers, classes, predictor.bundle.info.thresholds, clusters_N=kept.clusters(), seed=seed)
    hardened = measured_under(hardship, predictor, cached, measured.rows, progress, stage)
    with collected_warnings() as more:
        # of the data that it was trained on, by name
        own = predictor.bundle.info.data.get("name") == source.name and measured.split in ("val", HELD_OUT)
        uncertainty = uncertainty_of(predictor, cached, measured.rows, scored, ood, tta, calibrated=own)
        drawn = None
        if folder is not None:
            mistakes, drawn = explained(folder, predictor, cached, measured.rows, mistakes, seed=seed)
    warnings += more
    return Evaluation(
        data=source.name,
        split=measured.split,
        metrics=metrics,
        classes=classes,
        mistakes=mistakes,
        precision=predictor.precision,
        tta=tta,
        tta_share=tta_share,
        seconds=seconds,
        images_per_second=len(probs) / max(seconds, 1e-9),
        images_NHWC=view(np.asarray(cached.images_NHWC[[mistake.index for mistake in mistakes]])),
        num_images_trained_on=measured.num_trained_on,
        num_images_left_out=measured.num_left_out,
        corruptions=hardened.corruptions,
        attack=hardened.attack,
        uncertainty=uncertainty,
        heat_maps=drawn,
        slices=slices,
        warnings=tuple(warnings),
    )


def open_split(
    bundle: Bundle,
    data: AnyData,
    *,
    split: str | None = None,
    cache_dir: str | Path | None = None,
    on_bad_image: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[DataSource, str, CachedSplit]:
    """(source, name of the split, its images as the bundle's Preprocess stores them); arguments as for `evaluate`."""
    cache_path = Path(cache_dir) if cache_dir else None
    data = Data.of(data)
    data, others = only_split(data, lambda names: choose_split(names, split, str(data)))
    source = open_source(
        data,
        cache_dir=cache_path,
        require_train=False,
        classes=bundle.classes,
        progress=progress,
        multi_label=bundle.info.multi_label,
        pixels=bundle.preprocess.pixels,
    )
    for line in notes_of(source):
        warn(line)
    if others:
        unread = {name: Split(name=name, names=(), labels=np.empty(0, dtype=np.int64), paths=()) for name in others}
        source = dataclasses.replace(source, splits={**source.splits, **unread})
    chosen = choose_split(source.splits, split, source.name)
    only = dataclasses.replace(source, splits={chosen: source.splits[chosen]})
    cache = open_cache(
        only,
        bundle.preprocess,
        cache_dir=cache_path,
        on_bad_image=on_bad_image,
        require_train=False,
        progress=progress,
    )
    return source, chosen, cache.splits[chosen]


def _tables(metrics: Metrics | MultiLabelMetrics) -> dict[str, Any]:
    if isinstance(metrics, MultiLabelMetrics):
        return {
            "per_label": [to_dict(row) for row in metrics.per_label],
            "without_images": list(metrics.without_images),
        }
    return {
        "per_class": [to_dict(row) for row in metrics.per_class],
        "confusion": [list(row) for row in metrics.confusion],
    }
