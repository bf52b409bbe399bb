"""vivace.accelerate: the fastest form of a bundle whose loss of accuracy is proven to be within a budget.

Latency does not depend on the answers, so it is measured first: every form is timed against the others, and what is
slower than a form that risks less is dropped. The rest are compared on images to select on. Those that may win are
judged on the images to certify on, each once, in the order of their risk, until one fails: a fixed sequence keeps the
chance of a wrong acceptance at 5 % however many are judged (Maurer, Hothorn and Lehmacher 1995).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vivace.acceleration.candidates import Builder, Candidate, candidates_for
from vivace.acceleration.parity import PLAIN, Parity, compare_probs
from vivace.acceleration.rows import Row, SearchResult
from vivace.acceleration.splits import Images, open_splits
from vivace.acceleration.timing import Side, ratio_of, time_sides
from vivace.bundle import Bundle, load_bundle
from vivace.config import check_choice, check_range
from vivace.errors import ConfigError, VivaceError
from vivace.metrics.paired import PairedLoss, images_to_prove, paired_loss
from vivace.runtimes import load_runtime

__all__ = ["OBJECTIVES", "Search"]

OBJECTIVES = ("latency", "throughput", "size")
# enough to tell which forms can't win, and enough to quote a ratio
SCREEN_ROUNDS = 5
FINAL_ROUNDS = 15
NUM_TIMED_IMAGES = 64
# a form that is slower than one of less risk by this much is dropped: closer ones go on to the longer timing
SLACK = 1.05
# forms that are judged on the images to certify on
MAX_FINALISTS = 4
# so much of a given time is for building; timing and the certificates take the rest
BUILD_SHARE = 0.35


class Search:
    """One search: build, time, select, certify."""

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
        cache_dir: Path | None = None,
        on_bad_image: str = "refuse",
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        """max_drop: share of accuracy that may be lost, [0, 1). work: folder for what is built; kept for a next try."""
        check_choice("objective", objective, OBJECTIVES)
        check_range("batch", batch_size, 1)
        if not 0 < max_drop < 1:
            raise ConfigError(
                f"--max-drop is out of range: got {100 * max_drop:g} points. Give more than 0, under 100."
            )
        self._started = time.monotonic()
        self._deadline = None if within_seconds is None else self._started + within_seconds
        self._bundle, self._work, self._max_drop = bundle, work, max_drop
        self._objective, self._batch_size, self._threads = objective, batch_size, threads
        self._tell = on_message
        self.splits = open_splits(bundle, data, cache_dir=cache_dir, on_bad_image=on_bad_image)
        self._builder = Builder(bundle, work, self.splits.calibrate.pixels)
        self._probs: dict[str, np.ndarray] = {}

    def run(self) -> SearchResult:
        """Search. Raises VivaceError if not even the plain model can be timed."""
        candidates, missing = candidates_for(torch.device("cpu"))
        rows = self._built(candidates)
        self._screen(rows)
        timed = [row for row in rows if row.screened is not None]
        baseline = min((row for row in timed if _is_baseline(row)), key=lambda row: row.p50_ms, default=None)
        if baseline is None:
            raise VivaceError(f"the plain model could not be timed: {rows[0].status}. Is the bundle whole?")
        finalists = self._selected(timed, baseline)
        self._certify(finalists)
        certified = [row for row in finalists if row.status == "certified"]
        control = self._time(baseline, certified)
        winner = self._winner(certified, control)
        result = SearchResult(
            rows=rows, missing=missing, baseline=baseline, winner=winner, control=control, splits=self.splits
        )
        result.notes = self._notes(finalists, result)
        result.seconds = time.monotonic() - self._started
        return result

    def bundle_of(self, row: Row) -> Bundle:
        """The candidate of a row as it was built."""
        return load_bundle(self._builder.folder(row.candidate))

    def _seconds_left(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def _built(self, candidates: list[Candidate]) -> list[Row]:
        rows = []
        total = self._seconds_left()
        for candidate in candidates:
            row = Row(candidate=candidate)
            rows.append(row)
            if self._seconds_left() < (1 - BUILD_SHARE) * total and candidate.precision != "fp32":
                row.status = "not tried: out of time"
                continue
            self._tell(f"building {row.name}")
            try:
                built = self._builder.build(candidate)
                row.num_bytes = sum((built.folder / name).stat().st_size for name in _deployed(built))
            except Exception as error:
                # an exporter that fails costs this candidate, never the search
                row.status = f"could not be built: {type(error).__name__}: {_first_line(error)}"
        return rows

    def _screen(self, rows: list[Row]) -> None:
        sides = {row.name: row for row in rows if row.status == "built"}

        def failed(side: Side, why: str) -> None:
            sides[side.name].status = why

        self._tell(f"timing {len(sides)} forms")
        for timings in time_sides(
            [self._side(row) for row in sides.values()],
            self._timed_images(),
            batch_size=self._batch_size,
            threads=self._threads,
            rounds=SCREEN_ROUNDS,
            on_failure=failed,
        ):
            sides[timings.name].screened = timings

    def _selected(self, rows: list[Row], baseline: Row) -> list[Row]:
        """Those that may win, in the order of their risk."""
        assert baseline.screened is not None
        for row in rows:
            assert row.screened is not None
            row.ratio = ratio_of(baseline.screened, row.screened)
        front: list[Row] = []
        for row in sorted(rows, key=lambda row: (row.candidate.risk, row.p50_ms)):
            better = [other for other in [baseline, *front] if self._beats(other, row, baseline)]
            if row is baseline or better:
                row.status = "the baseline" if row is baseline else f"slower than {better[0].name}"
                continue
            front.append(row)
        finalists = []
        for row in front:
            self._tell(f"comparing {row.name} on {len(self.splits.select):,} images")
            row.selected = self._loss(row, self.splits.select)
            row.parity = self._parity(row)
            # a loss that is plainly too large must not cost a look at the images to certify on
            if row.selected.drop > self._max_drop and row.candidate.risk > (0, 0):
                row.status = f"loses {100 * row.selected.drop:.2f} points on the images to select on"
                continue
            finalists.append(row)
        finalists.sort(key=lambda row: (row.selected.bound if row.selected else 1.0, row.candidate.risk))
        fastest = sorted(finalists, key=lambda row: row.p50_ms)[:MAX_FINALISTS]
        for row in finalists:
            if row not in fastest:
                row.status = f"slower than {fastest[0].name}"
        return [row for row in finalists if row in fastest]

    def _beats(self, other: Row, row: Row, baseline: Row) -> bool:
        """Whether a form of less risk leaves `row` nothing to win."""
        smaller = self._objective == "size" and other is not baseline and row.num_bytes < other.num_bytes
        return other.p50_ms * SLACK < row.p50_ms and not smaller

    def _certify(self, finalists: list[Row]) -> None:
        stopped_by = None
        for row in finalists:
            if stopped_by is not None:
                row.status = f"not judged: {stopped_by} before it was not proven"
                continue
            self._tell(f"certifying {row.name} on {len(self.splits.certify):,} images")
            row.certified = self._loss(row, self.splits.certify)
            if row.certified.bound <= self._max_drop:
                row.status = "certified"
            else:
                row.status, stopped_by = "not proven", row.name

    def _time(self, baseline: Row, certified: list[Row]) -> tuple[float, float, float]:
        """The longer timing of what was certified, with the baseline twice: against itself it is the control."""
        self._tell(f"timing {len(certified)} certified forms against {baseline.name}")
        first, *others = time_sides(
            [self._side(baseline), dataclasses.replace(self._side(baseline), name="control")]
            + [self._side(row) for row in certified],
            self._timed_images(),
            batch_size=self._batch_size,
            threads=self._threads,
            rounds=FINAL_ROUNDS,
            deadline=self._deadline,
        )
        baseline.timed, baseline.ratio = first, (1.0, 1.0, 1.0)
        for row, timings in zip(certified, others[1:], strict=True):
            row.timed, row.ratio = timings, ratio_of(first, timings)
        return ratio_of(first, others[0])

    def _winner(self, certified: list[Row], control: tuple[float, float, float]) -> Row | None:
        # two processes of one form may differ by a few hundredths for good: memory lies elsewhere
        least = max(1.0, control[2], 1 / control[1])
        faster = [row for row in certified if row.ratio is not None and row.ratio[1] > least]
        if self._objective == "size":
            return min(faster, key=lambda row: (row.num_bytes, row.p50_ms), default=None)
        return min(faster, key=lambda row: row.p50_ms, default=None)

    def _notes(self, finalists: list[Row], result: SearchResult) -> list[str]:
        notes = []
        for row in finalists:
            if row.status == "not proven" and row.certified is not None:
                loss, needed = row.certified, images_to_prove(row.certified, self._max_drop)
                would = (
                    f"about {needed:,} images like these would prove it"
                    if needed is not None
                    else "no number of images would prove it, for what was lost is not under the budget"
                )
                notes.append(
                    f"{row.name}: {100 * loss.drop:.2f} points lost on {loss.num_images:,} images, at most "
                    f"{100 * loss.bound:.2f} with 95 % confidence: not within {100 * self._max_drop:g}; {would}"
                )
        if not result.control[1] <= 1 <= result.control[2]:
            low, high = result.control[1:]
            notes.append(
                f"the baseline in a second process is [{low:.3f}, {high:.3f}] times as fast as in the first: no form "
                "is called faster by less than that"
            )
        return notes

    def _loss(self, row: Row, images: Images) -> PairedLoss:
        before, after = self.probs(None, images), self.probs(row, images)
        labels = images.labels
        return paired_loss(before.argmax(1) == labels, after.argmax(1) == labels)

    def _parity(self, row: Row) -> Parity:
        images = self.splits.select
        return compare_probs(
            self.probs(None, images),
            self.probs(row, images),
            runtime=row.candidate.runtime,
            precision=row.candidate.precision,
            images=f"{self.splits.data}, {images.name}",
        )

    def probs(self, row: Row | None, images: Images) -> np.ndarray:
        """probs_NK of a form, or of the plain model, on images; computed once."""
        form = PLAIN if row is None else (row.candidate.runtime, row.candidate.precision)
        key = f"{row.name if row else 'plain'} {'certify' if images is self.splits.certify else 'select'}"
        if key not in self._probs:
            bundle = self._bundle if row is None else self.bundle_of(row)
            classify = load_runtime(form[0], bundle, device=torch.device("cpu"), precision=form[1])
            self._probs[key] = images.probs(classify)
        return self._probs[key]

    def _side(self, row: Row) -> Side:
        candidate = row.candidate
        return Side(
            name=row.name,
            bundle=self._builder.folder(candidate),
            runtime=candidate.runtime,
            precision=candidate.precision,
        )

    def _timed_images(self) -> np.ndarray:
        images = self.splits.select.some(max(NUM_TIMED_IMAGES, self._batch_size)).pixels()
        # few images to select on, and a large batch
        return np.concatenate([images] * -(-self._batch_size // len(images)))


def _is_baseline(row: Row) -> bool:
    return (row.candidate.runtime, row.candidate.precision) in (("eager", "fp32"), ("inductor", "fp32"))


def _deployed(bundle: Bundle) -> list[str]:
    """Files that the bundle's runtime reads."""
    graphs = [name for name in bundle.files if name.startswith("model.") and not name.endswith(".safetensors")]
    return graphs or [name for name in bundle.files if name.endswith(".safetensors")]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
