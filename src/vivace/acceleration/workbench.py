"""Where a search's rows are built, timed and compared: all that is measured, and nothing that is decided."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vivace.acceleration.candidates import Candidate
from vivace.acceleration.parity import Parity, compare_probs
from vivace.acceleration.profile import Profile, profile_layers
from vivace.acceleration.rows import Row
from vivace.acceleration.splits import Images
from vivace.acceleration.timing import (
    PreprocessTimings,
    Side,
    SideFailure,
    Timings,
    ratio_of,
    time_preprocessing,
    time_sides,
)
from vivace.acceleration.variants import Variant
from vivace.bundle import Bundle
from vivace.errors import VivaceError, first_line
from vivace.metrics.paired import PairedLoss, paired_loss

__all__ = ["Workbench"]

# enough to tell which forms can't win, and enough to quote a ratio
SCREEN_ROUNDS = 5
FINAL_ROUNDS, FINAL_PROCESSES = 15, 5
NUM_TIMED_IMAGES = 64


class Workbench:
    """The networks that compete, what was measured of their forms, and how they are called."""

    def __init__(
        self,
        own: Variant,
        compiled: Path,
        *,
        batch_size: int,
        threads: int | None,
        deadline: float | None,
        on_message: Callable[[str], None],
    ) -> None:
        """compiled: folder for what compilers make. deadline: of time.monotonic, None without one."""
        self.own = own
        self.variants = {own.name: own}
        self.rows: list[Row] = []
        self.tell = on_message
        self._compiled = compiled
        self._batch_size, self._threads, self._deadline = batch_size, threads, deadline
        self._probs: dict[tuple[str, str], np.ndarray] = {}

    def seconds_left(self) -> float:
        """Until the deadline; infinite without one."""
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def variant(self, row: Row) -> Variant:
        """The network that a row is a form of."""
        return self.variants[row.candidate.network]

    def bundle_of(self, row: Row) -> Bundle:
        """The candidate of a row as it was built."""
        return self.variant(row).builder.build(row.candidate)

    def build(self, candidates: Sequence[Candidate], *, share: float = 1.0) -> list[Row]:
        """Rows of candidates, built; share: of the time that is left, after which no more are."""
        rows, total = [], self.seconds_left()
        for candidate in candidates:
            row = Row(candidate=candidate)
            rows.append(row)
            if self.seconds_left() < (1 - share) * total and candidate.precision != "fp32":
                row.status = "not tried: out of time"
                continue
            self.tell(f"building {row.name}")
            try:
                built = self.bundle_of(row)
                row.num_bytes = sum((built.folder / name).stat().st_size for name in _deployed(built))
            except Exception as error:
                # an exporter that fails costs this candidate, never the search
                row.status = f"could not be built: {type(error).__name__}: {first_line(error)}"
        self.rows += rows
        return rows

    def screen_first(self) -> None:
        """Time all rows that were built beside each other; their ratios wait for a baseline."""
        by_name = {row.name: row for row in self.rows}
        for timings in self._screen(self.rows):
            by_name[timings.name].screened = timings

    def screen(self, rows: Sequence[Row], baseline: Row) -> list[Row]:
        """Time further rows beside the baseline; those that could be."""
        by_name = {row.name: row for row in rows}
        again = Row(candidate=baseline.candidate)
        first, *others = self._screen([again, *rows])
        for timings in others:
            row = by_name[timings.name]
            row.screened, row.ratio = timings, ratio_of(first, timings)
        return [row for row in rows if row.screened is not None]

    def _screen(self, rows: Sequence[Row]) -> list[Timings]:
        """Time rows that were built beside each other, briefly; those that can't be timed are told why."""
        sides = {row.name: row for row in rows if row.status == "built"}

        def failed(side: Side, why: str) -> None:
            sides[side.name].status = first_line(why)

        self.tell(f"timing {len(sides)} forms")
        return time_sides(
            [self._side(row) for row in sides.values()],
            self._timed_images(list(sides.values())),
            batch_size=self._batch_size,
            threads=self._threads,
            rounds=SCREEN_ROUNDS,
            compiled=self._compiled,
            on_failure=failed,
        )

    def time(self, baseline: Row, certified: Sequence[Row]) -> tuple[float, float, float]:
        """The longer timing of what was certified, with the baseline twice: against itself it is the control."""
        self.tell(f"timing {len(certified)} certified forms against {baseline.name}")
        images = self._timed_images([baseline, *certified])
        by_name = {row.name: row for row in certified}

        def failed(side: Side, why: str) -> None:
            if side.name not in by_name:
                raise SideFailure(why)
            by_name[side.name].status = first_line(why)

        first, control, *others = time_sides(
            [self._side(baseline), dataclasses.replace(self._side(baseline), name="control")]
            + [self._side(row) for row in certified],
            {**images, "control": images[baseline.name]},
            batch_size=self._batch_size,
            threads=self._threads,
            rounds=FINAL_ROUNDS,
            processes=FINAL_PROCESSES,
            compiled=self._compiled,
            on_failure=failed,
            deadline=self._deadline,
        )
        baseline.timed, baseline.ratio = first, (1.0, 1.0, 1.0)
        for row in certified:
            # one that died now has no time to win by
            row.ratio = None
        for timings in others:
            row = by_name[timings.name]
            row.timed, row.ratio = timings, ratio_of(first, timings)
        return ratio_of(first, control)

    def profile(self, row: Row) -> Profile | None:
        """Which kernels a form ran, as its runtime tells; None, and a message, where it can't."""
        images = next(iter(self._timed_images([row]).values()))[: self._batch_size]
        try:
            return profile_layers(self.bundle_of(row), images, threads=self._threads)
        except VivaceError as error:
            self.tell(f"no profile of {row.name}: {error}")
            return None

    def time_preprocessing(self, row: Row) -> PreprocessTimings | None:
        """What it takes to make the input of a row's network of a file; None without files that can be read."""
        variant = self.variant(row)
        try:
            return time_preprocessing(variant.bundle.preprocess, [Path(file) for file in variant.splits.files])
        except VivaceError:
            return None

    def probs(self, row: Row | None, images: Images, part: str) -> np.ndarray:
        """probs_NK of a form, or of the plain model, on images; computed once for each `part`."""
        key = (row.name if row else "plain", part)
        if key not in self._probs:
            variant = self.own if row is None else self.variant(row)
            self._probs[key] = variant.probs(row.candidate if row else None, images)
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
        expected = self.probs(None, images, "select") if variant is self.own else variant.probs(None, images)
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


def _deployed(bundle: Bundle) -> list[str]:
    """Files that the bundle's runtime reads."""
    graphs = [name for name in bundle.files if name.startswith("model.") and not name.endswith(".safetensors")]
    return graphs or [name for name in bundle.files if name.endswith(".safetensors")]
