"""vivace.compare: which of two runs classifies better, by a paired test on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import Bundle, load_bundle
from vivace.data.caching.cache import CachedSplit
from vivace.data.place import AnyData, Data
from vivace.errors import BundleError, ConfigError, DataError, RunFolderError
from vivace.evaluation.chosen import ALL, HELD_OUT
from vivace.evaluation.evaluate import open_split
from vivace.metrics.measured import Measured
from vivace.notices import collected_warnings, warn
from vivace.predictor import Predictor
from vivace.statistics.paired import exact_p_value, loss_bound
from vivace.statistics.proportions import wilson_interval
from vivace.training.folder.continuing import resume_call
from vivace.verbs.comparisonfile import ComparisonFile, Side
from vivace.verbs.recorded import recorded_data
from vivace.verbs.runs import NO_BUNDLE, Run, read_run

__all__ = ["Compared", "RunComparison", "compare", "run_of"]

# a difference that chance brings about in one of 20 comparisons of equals is not called one
SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of the two. Accuracies are fractions."""

    path: str
    """As it was named."""
    bundle: str
    model: str
    top1: float
    top1_low: float
    """95 % interval (Wilson's)."""
    top1_high: float
    num_only_right: int
    """Images that it alone classified rightly."""
    seconds: float | None
    """That its training took; None: it is no run."""
    bytes: int
    """Size of the bundle's files."""


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """What a comparison gave; the difference is that of the second less the first, a fraction."""

    runs: tuple[Compared, Compared]
    data: str
    split: str
    """train, val, test, all; or "held out": images that neither was trained on."""
    num_images: int
    num_images_left_out: int
    """Images of the split that were not compared, for one of the two was trained on them."""
    difference: float
    difference_low: float
    """95 % interval (Tango's score interval for paired fractions)."""
    difference_high: float
    p_value: float
    """Of McNemar's exact test, two-sided."""
    better: str | None
    """The path of the better one; None: the difference is not significant (p of 0.05 or more)."""
    report: str | None = None
    """The page that was written."""
    warnings: tuple[str, ...] = ()

    @property
    def significant(self) -> bool:
        """Whether one of the two is better."""
        return self.better is not None

    def verdict(self) -> str:
        """One line for people."""
        p = f"McNemar's exact test: p = {self.p_value:.2g}"
        if self.better is None:
            return f"the difference is not significant ({p})"
        return f"{self.better} is better ({p})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = dataclasses.asdict(self)
        return {**values, "runs": list(values["runs"]), "significant": self.significant}


def compare(
    run: str | Path,
    other: str | Path,
    data: AnyData | None = None,
    *,
    split: str | None = None,
    batch_size: int = 250,
    threads: int | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    on_bad_image: str = "auto",
    report: str | Path | None = None,
    lang: str = "en",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunComparison:
    """Classify the same images with two runs or bundles, and test whether one of them is better.

    run, other: folders of runs or of bundles, with the same classes in any order. data: as for `train`; None: the data
    that both were trained on, where they lay then, if the cache holds the images of both from there: a run of a
    stranger's may name any place, which is not opened. split: train, val, test or all; None: test if there is one, else
    val, else all. Images that one of the two was trained on are left out, but for split "train" and "all". batch_size,
    threads, device, cache_dir, on_bad_image: as for `evaluate`. report: also write both side by side there, as one HTML
    file; lang: its language, "en" or "zh".
    Raises DataError if the classes differ, the runs had different data and `data` is None, or no image is left;
    ConfigError if `data` is None and is needed; RunFolderError for a run that has not finished; BundleError for what is
    neither a run nor a bundle; and with `report` OutputPathError, MissingExtra and ConfigError as `vivace.report`.
    """
    with collected_warnings() as warnings:
        facts = [run_of(path) for path in (run, other)]
        bundles = [load_bundle(path) for path in (run, other)]
        inputs = [one.folder for one in bundles]
        places = [told and told.where for told in facts] if data is None else [Data.of(data).where]
        page = None if report is None else ComparisonFile(Path(report), lang, inputs=inputs, places=places)
        for told in facts:
            if told is not None and told.problem:
                warn(f"the run is {told.status}, and only its bundle was used: {told.path} ({told.problem})")
        if bundles[0].recorded == bundles[1].recorded:
            warn("both are the same bundle: their files have the same hashes")
        _check_classes(bundles, (str(run), str(other)))
        if data is None:
            data = _common_data(facts, (str(run), str(other)), cache_dir)
        opened = [
            open_split(bundle, data, split=split, cache_dir=cache_dir, on_bad_image=on_bad_image, progress=progress)
            for bundle in bundles
        ]
        source, chosen, _ = opened[0]
        splits = [cached for _, _, cached in opened]
        rows, num_left_out = _same_images(bundles, splits, keep_trained_on=split in ("train", ALL))
        if not len(rows[0]):
            raise DataError(
                "there is no image to compare on: at least one of the two runs was trained on each of the "
                f"{num_left_out:,} of {source.name}. Give `data` that neither has seen, or train both with the same "
                "seed: they then hold out the same images."
            )
        probs = [
            _probs(Predictor(bundle, device=device, batch_size=batch_size, threads=threads), cached, own)
            for bundle, cached, own in zip(bundles, splits, rows, strict=True)
        ]
        undivided = list(source.splits) == ["train"]
        held_out = chosen == "train" and (num_left_out or split == "val")
        name = HELD_OUT if held_out else ALL if undivided and split != "train" else chosen
        sides = tuple(
            Side(str(path), bundle, told) for path, bundle, told in zip((run, other), bundles, facts, strict=True)
        )
        labels = [cached.labels_N[own] for cached, own in zip(splits, rows, strict=True)]
        compared = _comparison(
            sides,
            [answers.argmax(1) == true for answers, true in zip(probs, labels, strict=True)],
            data=source.name,
            split=name,
            num_left_out=num_left_out,
        )
        if page is not None:
            first, second = (
                _measured(name, bundle, cached, own, answers)
                for bundle, cached, own, answers in zip(bundles, splits, rows, probs, strict=True)
            )
            shown = dataclasses.replace(compared, warnings=tuple(warnings))
            page.write(shown, sides, (first, second))
            compared = dataclasses.replace(compared, report=str(report))
    return dataclasses.replace(compared, warnings=tuple(warnings))


def run_of(folder: str | Path) -> Run | None:
    """The run in a folder; None: it is a bundle's, or nothing.

    Raises RunFolderError for a run without a bundle, BundleError for what is no path.
    """
    if not isinstance(folder, str | Path):
        raise BundleError(f"neither a run nor a bundle: got {type(folder).__name__}. Give the path of its folder.")
    path = Path(folder)
    if (path / "bundle.json").is_file() or not (path / "recipe.yaml").exists():
        return None
    told = read_run(path)
    if not (path / "bundle" / "bundle.json").is_file():
        raise RunFolderError(_no_bundle(told))
    return told


def _no_bundle(run: Run) -> str:
    """What to say of a run without a bundle."""
    data = run.place or run.data
    if data is None or (run.status == "damaged" and run.problem != NO_BUNDLE):
        return f"the run is damaged and has no bundle: {run.path} ({run.problem}). Name another run, or train again."
    call = resume_call(data, run.path)
    if run.status == "unfinished":
        return f"the run has no bundle yet: {run.path} ({run.problem}). Let it finish, or continue it: {call}"
    missing = f"the run's bundle is missing: {run.path / 'bundle'}. Restore it from a copy"
    if any((run.path / "checkpoints").glob("*.safetensors")):
        return f"{missing}, or make it again from the run's checkpoints: {call}"
    return f"{missing}, or train again."


def _check_classes(bundles: list[Bundle], paths: tuple[str, str]) -> None:
    for bundle, path in zip(bundles, paths, strict=True):
        if bundle.info.multi_label:
            raise DataError(
                f"compare counts the images of one class that are right, and {path} predicts sets of labels. Compare "
                "what `vivace evaluate` says of each."
            )
    first, second = (set(bundle.classes) for bundle in bundles)
    if first == second:
        return
    parts = [
        f"{path} alone knows {', '.join(sorted(own)[:3])}{' …' if len(own) > 3 else ''}"
        for path, own in zip(paths, (first - second, second - first), strict=True)
        if own
    ]
    raise DataError(f"the two have different classes: {'; '.join(parts)}. Compare runs of the same classes.")


def _common_data(facts: list[Run | None], paths: tuple[str, str], cache_dir: str | Path | None) -> AnyData:
    """The data that both were trained on. Raises ConfigError if a run does not say, DataError if they differ."""
    for path, run in zip(paths, facts, strict=True):
        if run is None or run.data is None:
            raise ConfigError(f"`data` is missing: {path} does not say where its data are. Give images to compare on.")
    first, second = (run for run in facts if run is not None)
    return recorded_data(first, second, cache_dir)


def _same_images(
    bundles: list[Bundle], splits: list[CachedSplit], *, keep_trained_on: bool
) -> tuple[list[np.ndarray], int]:
    """(rows of the same images in each split, in the same order; how many were left out as trained on)."""
    first, second = (
        {key: row for row, key in enumerate(zip(split.names, split.digests_N.tolist(), strict=True))}
        for split in splits
    )
    common = [key for key in first if key in second]
    if missing := len(first.keys() | second.keys()) - len(common):
        warn(f"{missing:,} images left out, which only one of the two can read")
    rows = [np.array([of[key] for key in common], dtype=np.int64) for of in (first, second)]
    known = np.zeros(len(common), dtype=bool)
    for bundle, split, own in zip(bundles, splits, rows, strict=True):
        trained_on = bundle.trained_on()
        if trained_on is None:
            warn(f"{bundle.folder} does not say which images it was trained on: some of these may be among them")
        elif len(own):
            known |= trained_on.among(split.digests_N[own])
    num_known = int(known.sum())
    if keep_trained_on:
        if num_known:
            warn(f"{num_known:,} of the {len(common):,} images were trained on, by one of the two at least")
        return rows, 0
    return [own[~known] for own in rows], num_known


def _probs(predictor: Predictor, cached: CachedSplit, rows: np.ndarray) -> np.ndarray:
    """float32 [N, K]: the probabilities of these rows."""
    view, size = predictor.bundle.preprocess.view, predictor.batch_size
    answers = [
        predictor.probs(view(np.asarray(cached.images_NHWC[rows[start : start + size]])))
        for start in range(0, len(rows), size)
    ]
    return np.concatenate(answers)


def _measured(split: str, bundle: Bundle, cached: CachedSplit, rows: np.ndarray, probs_NK: np.ndarray) -> Measured:
    view = bundle.preprocess.view
    return Measured(
        split=split,
        probs_NK=probs_NK,
        labels_N=cached.labels_N[rows],
        names=[cached.names[row] for row in rows],
        images=lambda some: view(np.asarray(cached.images_NHWC[rows[some]])),
    )


def _comparison(
    sides: tuple[Side, ...],
    right: list[np.ndarray],
    *,
    data: str,
    split: str,
    num_left_out: int,
) -> RunComparison:
    count = len(right[0])
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    p_value = exact_p_value(only[0], only[1])
    rows = []
    for side, answers, num_only in zip(sides, right, only, strict=True):
        low, high = wilson_interval(int(answers.sum()), count)
        rows.append(
            Compared(
                path=side.path,
                bundle=str(side.bundle.folder),
                model=side.bundle.info.architecture.name,
                top1=float(answers.mean()),
                top1_low=low,
                top1_high=high,
                num_only_right=num_only,
                seconds=side.run.seconds if side.run is not None else None,
                bytes=sum((side.bundle.folder / name).stat().st_size for name in side.bundle.files),
            )
        )
    first, second = rows
    better = None if p_value >= SIGNIFICANCE else (first if only[0] > only[1] else second).path
    return RunComparison(
        runs=(first, second),
        data=data,
        split=split,
        num_images=count,
        num_images_left_out=num_left_out,
        difference=(only[1] - only[0]) / count,
        # two one-sided bounds: on what is lost with the second, and on what is lost with the first
        difference_low=-loss_bound(only[0], only[1], count, confidence=0.975),
        difference_high=loss_bound(only[1], only[0], count, confidence=0.975),
        p_value=p_value,
        better=better,
    )
