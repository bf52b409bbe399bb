"""The search: which forms are tried, in which order, within which time.

Latency does not depend on the answers, so it is measured first: every form is timed against the others, and what is
slower than a form that risks less is dropped. The rest are compared on images to select on; where all int8 forms lose
too much one gets layers back in float. Where more speed is asked for, smaller networks are timed, those that can win
are trained, and their forms join. Those that may win are judged on the images to certify on, each once, in the order
of their risk, until one fails.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.acceleration import decide
from vivace.acceleration.candidates import candidates_for
from vivace.acceleration.layers import LAYERS, rank_layers
from vivace.acceleration.rows import Row, SearchResult
from vivace.acceleration.smaller import Smaller
from vivace.acceleration.splits import Images
from vivace.acceleration.timing import ratio_of
from vivace.acceleration.variants import open_variant
from vivace.acceleration.workbench import Workbench
from vivace.bundle import Bundle
from vivace.config import check_choice, check_range
from vivace.errors import ConfigError, VivaceError
from vivace.metrics.paired import PairedLoss
from vivace.runtimes import is_quantized

__all__ = ["OBJECTIVES", "TRAIN", "Search"]

OBJECTIVES = ("latency", "throughput", "size")
TRAIN = ("auto", "on", "off")
# so much of a given time is for building; training, timing and the certificates take the rest
BUILD_SHARE = 0.35
# layers are ranked on so many images to select on, and so many sets of them tried
NUM_RANK_IMAGES = 256
MAX_GIVEN_BACK = 3
# forms of each smaller network: the fastest of the model's own
FORMS_OF_SMALLER = 3
# where judging would take longer than this, no more images are judged than should be needed
CERTIFY_SECONDS = 60.0


class Search:
    """One search: build, time, select, perhaps train, certify."""

    def __init__(
        self,
        bundle: Bundle,
        data: str | Path,
        work: Path,
        *,
        max_drop: float,
        objective: str = "latency",
        batch_size: int = 1,
        threads: int | None = None,
        within_seconds: float | None = None,
        target_speedup: float | None = None,
        train: str = "auto",
        cache_dir: Path | None = None,
        on_bad_image: str = "auto",
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        """max_drop: share of accuracy that may be lost, (0, 1). work: folder for what is built; kept for a next try.

        train: whether smaller networks are trained; "auto": where a speed-up is asked for that is not reached without.
        """
        check_choice("objective", objective, OBJECTIVES)
        check_choice("train", train, TRAIN)
        check_range("batch", batch_size, 1)
        if not 0 < max_drop < 1:
            raise ConfigError(
                f"--max-drop is out of range: got {100 * max_drop:g} points. Give more than 0, under 100."
            )
        self._started = time.monotonic()
        self._max_drop, self._objective, self._batch_size = max_drop, objective, batch_size
        self._target, self._train = target_speedup, train
        self._tell = on_message
        opening: dict[str, Any] = {"cache_dir": cache_dir, "on_bad_image": on_bad_image}
        own = open_variant("", bundle, data, work, **opening)
        self._bench = Workbench(
            own,
            work / "compiled",
            batch_size=batch_size,
            threads=threads,
            deadline=None if within_seconds is None else self._started + within_seconds,
            on_message=on_message,
        )
        self._smaller = Smaller(self._bench, data, work / "networks", opening, within_seconds=within_seconds)
        self.splits = own.splits
        self._certify = own.splits.certify.rows

    def run(self) -> SearchResult:
        """Search. Raises VivaceError if not even the plain model can be timed."""
        bench = self._bench
        candidates, missing = candidates_for(torch.device("cpu"))
        bench.build(candidates, share=BUILD_SHARE)
        bench.screen_first()
        baseline = self._baseline()
        selected = self._select(decide.undominated(_timed(bench.rows), baseline, objective=self._objective))
        for runtime in LAYERS:
            selected += self._give_back(runtime, baseline)
        if self._wants_training(selected):
            selected += self._train_smaller(baseline, selected)
        finalists = decide.finalists_of(selected)
        self._plan_certify(finalists)
        certified = decide.certify_in_order(finalists, self._judge, max_drop=self._max_drop)
        control = bench.time(baseline, certified)
        if decide.is_disturbed(control) and bench.seconds_left() > 0:
            self._tell("the timing was disturbed: once more")
            control = bench.time(baseline, certified)
        winner = decide.pick_winner(certified, control, objective=self._objective)
        profile = bench.profile(winner) if winner is not None else None
        return SearchResult(
            rows=bench.rows,
            missing=missing,
            baseline=baseline,
            winner=winner,
            control=control,
            splits=self.splits,
            num_certify=len(self._certify),
            profile=profile,
            preprocessing=bench.time_preprocessing(winner or baseline),
            notes=decide.explain(bench.rows, winner, control, self._max_drop),
            seconds=time.monotonic() - self._started,
        )

    def bundle_of(self, row: Row) -> Bundle:
        """The candidate of a row as it was built."""
        return self._bench.bundle_of(row)

    def certify_probs(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """probs_NK of a form on the images to certify on, and their labels_N."""
        images = self._certify_images(row)
        return self._bench.probs(row, images, "certify"), images.labels

    def _certify_images(self, row: Row | None) -> Images:
        """As the network of a row sees them; None: the model's own."""
        variant = self._bench.own if row is None else self._bench.variant(row)
        return dataclasses.replace(variant.splits.certify, rows=self._certify)

    def _baseline(self) -> Row:
        """The faster of PyTorch eager and compiled in float32; the ratios of all rows are to it."""
        rows = _timed(self._bench.rows)
        baseline = min((row for row in rows if _is_baseline(row)), key=lambda row: row.p50_ms, default=None)
        if baseline is None or baseline.screened is None:
            raise VivaceError(f"the plain model could not be timed: {self._bench.rows[0].status}. Is the bundle whole?")
        for row in rows:
            assert row.screened is not None
            row.ratio = ratio_of(baseline.screened, row.screened)
        return baseline

    def _select(self, rows: Sequence[Row]) -> list[Row]:
        """Those that do not plainly lose too much on the images to select on."""
        bench, selected = self._bench, []
        for row in rows:
            images = bench.variant(row).splits.select
            self._tell(f"comparing {row.name} on {len(images):,} images")
            row.selected = bench.loss(row, images, self.splits.select, "select")
            row.parity = bench.parity(row)
            # it must not cost a look at the images to certify on
            if decide.loses_too_much(row, self._max_drop) and row.candidate.risk > (False, 0, 0):
                row.status = f"{decide.LOSES} {100 * row.selected.drop:.2f} points on the images to select on"
                continue
            selected.append(row)
        return selected

    def _give_back(self, runtime: str, baseline: Row) -> list[Row]:
        """Where all of a runtime in int8 lost too much, that which lost least with the fewest layers in float that will
        do, if it may be the fastest even so."""
        bench = self._bench
        rows = [row for row in _timed(bench.rows) if row.selected is not None]
        int8 = [row for row in rows if row.candidate.runtime == runtime and is_quantized(row.candidate.precision)]
        if not int8 or not all(decide.lost_too_much(row) for row in int8) or bench.seconds_left() < 0:
            return []
        row = min(int8, key=lambda row: (decide.drop(row), -row.times_faster))
        rivals = [baseline, *(other for other in rows if not decide.lost_too_much(other))]
        if any(other.times_faster > row.times_faster for other in rivals):
            return []
        images = self.splits.select.some(NUM_RANK_IMAGES)
        self._tell(f"ranking the layers of {row.name}")
        try:
            groups = rank_layers(
                bench.own.builder.int8_graph(row.candidate),
                images.pixels(),
                bench.own.probs(None, images),
                precision=row.candidate.precision,
            )
        except (RuntimeError, ValueError) as error:
            self._tell(f"no layers could be ranked: {error}")
            return []
        counts = sorted({min(len(groups), 2**step) for step in range(MAX_GIVEN_BACK)} - {0})
        kept = [tuple(name for group in groups[:count] for name in group.layers) for count in counts]
        built = bench.build([dataclasses.replace(row.candidate, kept=layers) for layers in kept])
        for candidate in bench.screen(built, baseline):
            better = [other for other in rivals if other.times_faster > candidate.times_faster]
            if better:
                candidate.status = f"slower than {better[0].name}"
            elif selected := self._select([candidate]):
                # those with more layers in float are slower
                return selected
        return []

    def _wants_training(self, selected: Sequence[Row]) -> bool:
        if self._train == "auto":
            fastest = max((row.times_faster for row in selected), default=1.0)
            return self._target is not None and fastest < self._target
        return self._train == "on"

    def _train_smaller(self, baseline: Row, selected: Sequence[Row]) -> list[Row]:
        """Forms of smaller networks, trained, that may win."""
        own = [row for row in _timed(self._bench.rows) if not row.candidate.kept and not row.candidate.asymmetric]
        forms = sorted(own, key=lambda row: -row.times_faster)[:FORMS_OF_SMALLER]
        fastest = max((row.times_faster for row in selected), default=1.0)
        least = max(fastest * decide.SLACK, self._target or 0.0)
        joined = []
        asked = self._target is not None and least == self._target
        for rows in self._smaller.train(forms, baseline, least_speed=least, asked=asked):
            # forms of one network among themselves: another network is another risk
            joined += self._select(decide.undominated(rows, baseline, objective=self._objective))
        return joined

    def _plan_certify(self, finalists: Sequence[Row]) -> None:
        """Choose how many images are judged, where all of them would take long; before any is looked at."""
        images = self.splits.certify
        seconds = 1e-3 * sum(row.p50_ms for row in [*finalists, self._bench.rows[0]]) / self._batch_size * len(images)
        if seconds > CERTIFY_SECONDS:
            self._certify = images.some(decide.images_to_certify(finalists, self._max_drop, len(images))).rows

    def _judge(self, row: Row, confidence: float) -> PairedLoss:
        images = self._certify_images(row)
        self._tell(f"certifying {row.name} on {len(images):,} images")
        return self._bench.loss(row, images, self._certify_images(None), "certify", confidence=confidence)


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.screened is not None]


def _is_baseline(row: Row) -> bool:
    return (row.candidate.runtime, row.candidate.precision) in (("eager", "fp32"), ("inductor", "fp32"))
