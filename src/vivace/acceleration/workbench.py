"""Where a search's rows are built, timed and compared: all that is measured, and nothing that is decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vivace.acceleration.candidates import Candidate
from vivace.acceleration.decide import LEAST_PROCESSES
from vivace.acceleration.rows import Outcome, Row, Rows, Status, going_on
from vivace.acceleration.splits import Images
from vivace.acceleration.steps import Steps
from vivace.acceleration.variants import Variant
from vivace.bundle import Bundle
from vivace.errors import OutOfTime, VivaceError, first_line
from vivace.exporting.parity import Parity, compare_probs
from vivace.profiling.profile import Profile, profile_layers
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss, paired_loss
from vivace.timing.preprocessing import PreprocessTimings, time_preprocessing
from vivace.timing.processes import (
    BLOCK_SECONDS,
    Side,
    SideFailure,
    Timings,
    ratio_of,
    time_sides,
)

__all__ = ["Workbench"]

# enough to tell which forms can't win, and enough to quote a ratio
SCREEN_ROUNDS = 5
FINAL_ROUNDS, FINAL_PROCESSES = 15, 5
NUM_TIMED_IMAGES = 64
# of what was not started
NOT_TRIED = Outcome(Status.OUT_OF_TIME, "not tried: out of time")


class Workbench:
    """The networks that compete, what was measured of their forms, and how they are called."""

    def __init__(
        self,
        own: Variant,
        compiled: Path,
        steps: Steps,
        *,
        batch_size: int,
        threads: int | None,
    ) -> None:
        """compiled: folder for what compilers make."""
        self.own = own
        self.variants = {own.name: own}
        self.rows = Rows()
        self.steps, self.budget = steps, steps.budget
        self._compiled = compiled
        self._batch_size, self._threads = batch_size, threads
        self._probs: dict[tuple[str, str], np.ndarray] = {}

    def variant(self, row: Row) -> Variant:
        """The network that a row is a form of."""
        return self.variants[row.candidate.network]

    def bundle_of(self, row: Row) -> Bundle:
        """The candidate of a row as it was built."""
        return self.variant(row).builder.build(row.candidate)

    def build(self, candidates: Sequence[Candidate], *, share: float = 1.0) -> list[Row]:
        """Rows of candidates, built; share: of the time that is left, after which no more are."""
        rows = self.rows.put(Row(candidate=candidate) for candidate in candidates)
        until = self.budget.after(share)
        return [self.rows.put([self._build(row, until)])[0] for row in rows]

    def _build(self, row: Row, until: float) -> Row:
        kind = f"build {row.candidate.runtime} {row.candidate.precision}"
        if not self.budget.fits(kind, until=until):
            self.steps.leave_out(f"{row.name}: not built")
            return dataclasses.replace(row, outcome=NOT_TRIED)
        self.steps.tell(f"building {row.name}")
        began = self.budget.elapsed()
        try:
            with self.budget.measured(kind):
                built = self._built(row, until)
            return dataclasses.replace(
                row, num_bytes=sum((built.folder / name).stat().st_size for name in _deployed(built))
            )
        except OutOfTime:
            seconds = self.budget.elapsed() - began
            row = row.became(Status.OUT_OF_TIME, f"abandoned: out of time after building for {seconds:.0f} s")
            self.steps.leave_out(f"{row.name}: {row.outcome.reason}")
            return row
        except Exception as error:
            # an exporter that fails costs this candidate, never the search
            return row.became(Status.FAILED, f"could not be built: {type(error).__name__}: {first_line(error)}")

    def _built(self, row: Row, until: float) -> Bundle:
        if row.candidate.is_exported:
            return self.steps.run_until(until, self.variant(row).builder.build, row.candidate)
        # the weights are copied, nothing else
        return self.bundle_of(row)

    def screen_first(self, *, share: float = 1.0) -> None:
        """Time all rows that were built beside each other; their ratios wait for a baseline.

        share: of the time that is left.
        """
        timings, outcomes = self._screen(list(self.rows), share)
        self.rows.put(
            dataclasses.replace(row, screened=timings.get(row.name), outcome=outcomes.get(row.name, row.outcome))
            for row in self.rows
        )

    def screen(self, rows: Sequence[Row], baseline: Row, *, share: float = 1.0) -> list[Row]:
        """Time further rows beside the baseline; those that could be. share: of the time that is left."""
        timings, outcomes = self._screen([Row(candidate=baseline.candidate), *rows], share)
        first = timings.get(baseline.name)
        if first is None:
            why = f"not timed: {baseline.name} could not be timed beside it"
            outcomes = {name: Outcome(Status.FAILED, why) for name in timings} | outcomes
            timings = {}
        measured = [
            dataclasses.replace(
                row,
                screened=timings.get(row.name),
                ratio=ratio_of(first, timings[row.name]) if first is not None and row.name in timings else None,
                outcome=outcomes.get(row.name, row.outcome),
            )
            for row in rows
        ]
        return [row for row in self.rows.put(measured) if row.screened is not None]

    def _screen(self, rows: Sequence[Row], share: float) -> tuple[dict[str, Timings], dict[str, Outcome]]:
        """Time rows that were built beside each other, briefly; and what became of those that could not be timed."""
        sides = {row.name: row for row in going_on(rows)}
        outcomes: dict[str, Outcome] = {}

        def failed(side: Side, error: VivaceError) -> None:
            outcomes[side.name] = _not_timed(error)
            if isinstance(error, OutOfTime):
                self.steps.leave_out(f"{side.name}: {first_line(error)}")

        self.steps.tell(f"timing {len(sides)} forms")
        timed = time_sides(
            [self._side(row) for row in sides.values()],
            self._timed_images(list(sides.values())),
            batch_size=self._batch_size,
            threads=self._threads,
            rounds=SCREEN_ROUNDS,
            compiled=self._compiled,
            on_failure=failed,
            deadline=None if self.budget.seconds is None else self.budget.after(share),
        )
        timings = {one.name: one for one in timed}
        for name in sides:
            if name not in timings and name not in outcomes:
                outcomes[name] = NOT_TRIED
                self.steps.leave_out(f"{name}: not timed")
        return timings, outcomes

    def final_seconds(self, baseline: Row, num_certified: int) -> float:
        """How long the longer timing takes at least, by how long the baseline took to start."""
        sides = 2 + num_certified
        blocks = sides * FINAL_ROUNDS / FINAL_PROCESSES * BLOCK_SECONDS
        start = 0.0 if baseline.screened is None else baseline.screened.cold_start_seconds
        return LEAST_PROCESSES * (start + blocks)

    def time(self, baseline: Row, certified: Sequence[Row]) -> tuple[Ratio | None, int]:
        """The longer timing of what was certified, with the baseline twice: against itself it is the control.

        The control, None where it could not be timed any more, and in how many processes each side was.
        """
        # what was measured before was too short to win by
        rows = [dataclasses.replace(row, timed=None, ratio=None) for row in self.rows.now(certified)]
        self.rows.put(rows)
        if not self.budget.fits("", seconds=self.final_seconds(baseline, len(certified))):
            self.steps.leave_out("the timing that decides: not started")
            return None, 0
        self.steps.tell(f"timing {len(certified)} certified forms against {baseline.name}")
        images = self._timed_images([baseline, *certified])
        names = {row.name for row in certified}
        outcomes: dict[str, Outcome] = {}

        def failed(side: Side, error: VivaceError) -> None:
            if side.name not in names:
                raise SideFailure(str(error))
            outcomes[side.name] = _not_timed(error)

        timed = time_sides(
            [self._side(baseline), dataclasses.replace(self._side(baseline), name="control")]
            + [self._side(row) for row in certified],
            {**images, "control": images[baseline.name]},
            batch_size=self._batch_size,
            threads=self._threads,
            rounds=FINAL_ROUNDS,
            processes=FINAL_PROCESSES,
            compiled=self._compiled,
            on_failure=failed,
            deadline=None if self.budget.seconds is None else self.budget.deadline,
        )
        rows = self.rows.put(dataclasses.replace(row, outcome=outcomes.get(row.name, row.outcome)) for row in rows)
        found = {timings.name: timings for timings in timed}
        if baseline.name not in found or "control" not in found:
            self.steps.leave_out("the timing that decides: abandoned")
            return None, 0
        first = found[baseline.name]
        num_processes = len(set(first.processes))
        if num_processes < FINAL_PROCESSES:
            self.steps.leave_out(f"the timing that decides: {num_processes} of {FINAL_PROCESSES} processes were timed")
        (known,) = self.rows.now([baseline])
        self.rows.put([dataclasses.replace(known, timed=first, ratio=(1.0, 1.0, 1.0))])
        self.rows.put(
            dataclasses.replace(row, timed=found[row.name], ratio=ratio_of(first, found[row.name]))
            for row in rows
            if row.name in found
        )
        return ratio_of(first, found["control"]), num_processes

    def profile(self, row: Row) -> Profile | None:
        """Which kernels a form ran, as its runtime tells; None, and a message, where it can't."""
        images = next(iter(self._timed_images([row]).values()))[: self._batch_size]
        try:
            return self.steps.run(profile_layers, self.bundle_of(row), images, threads=self._threads)
        except OutOfTime:
            self.steps.leave_out(f"the profile of {row.name}")
        except VivaceError as error:
            self.steps.note(f"no profile of {row.name}: {first_line(error)}")
        return None

    def time_preprocessing(self, row: Row) -> PreprocessTimings | None:
        """What it takes to make the input of a row's network of a file; None without files that can be read."""
        variant = self.variant(row)
        if not variant.splits.files:
            return None
        try:
            return self.steps.run(
                time_preprocessing, variant.bundle.preprocess, [Path(f) for f in variant.splits.files]
            )
        except OutOfTime:
            self.steps.leave_out("the timing of the preprocessing")
        except VivaceError as error:
            self.steps.note(f"preprocessing was not timed: {first_line(error)}")
        return None

    def answer_seconds(self, row: Row, images: Images) -> float:
        """How long a form takes to answer for images, by how it was timed."""
        start = 0.0 if row.screened is None else row.screened.cold_start_seconds
        return start + (0.0 if row.p50_ms == float("inf") else 1e-3 * row.p50_ms * len(images) / self._batch_size)

    def probs(self, row: Row | None, images: Images, part: str) -> np.ndarray:
        """probs_NK of a form, or of the plain model, on images; computed once for each `part`."""
        key = (row.name if row else "plain", part)
        if key not in self._probs:
            variant = self.own if row is None else self.variant(row)
            self._probs[key] = self.steps.run(variant.probs, row.candidate if row else None, images)
        return self._probs[key]

    def loss(self, row: Row, images: Images, own_images: Images, part: str, *, confidence: float = 0.95) -> PairedLoss:
        """From the plain model to a form, on the same images, each seen as its network sees them."""
        before, after = self.probs(None, own_images, part), self.probs(row, images, part)
        labels = images.labels
        return paired_loss(before.argmax(1) == labels, after.argmax(1) == labels, confidence=confidence)

    def parity(self, row: Row) -> Parity:
        """Of a form with its own network in PyTorch, on the images to select on."""
        variant = self.variant(row)
        images = variant.splits.select
        expected = (
            self.probs(None, images, "select") if variant is self.own else self.steps.run(variant.probs, None, images)
        )
        return compare_probs(
            expected,
            self.probs(row, images, "select"),
            runtime=row.candidate.runtime,
            precision=row.candidate.precision,
            images=f"{variant.splits.data}, {images.name}",
        )

    def _side(self, row: Row) -> Side:
        candidate = row.candidate
        return Side(
            name=row.name,
            bundle=self.variant(row).builder.folder(candidate),
            runtime=candidate.runtime,
            precision=candidate.precision,
        )

    def _timed_images(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Images to time each row with, by its name: those of one network once."""
        arrays: dict[str, np.ndarray] = {}
        for row in rows:
            network = row.candidate.network
            if network not in arrays:
                select = self.variant(row).splits.select
                images = select.some(max(NUM_TIMED_IMAGES, self._batch_size)).pixels()
                # few images to select on, and a large batch
                arrays[network] = np.concatenate([images] * -(-self._batch_size // len(images)))
        return {row.name: arrays[row.candidate.network] for row in rows}


def _not_timed(error: VivaceError) -> Outcome:
    status = Status.OUT_OF_TIME if isinstance(error, OutOfTime) else Status.FAILED
    return Outcome(status, first_line(error))


def _deployed(bundle: Bundle) -> list[str]:
    """Files that the bundle's runtime reads."""
    graphs = [name for name in bundle.files if name.startswith("model.") and not name.endswith(".safetensors")]
    return graphs or [name for name in bundle.files if name.endswith(".safetensors")]
