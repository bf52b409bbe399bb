"""What a search measures: candidates are built, timed, compared and profiled here. Nothing is decided here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vivace.acceleration.candidates import Candidate
from vivace.acceleration.decide import MIN_PROCESSES
from vivace.acceleration.networks import Network
from vivace.acceleration.results import Outcome, Result, Results, Status, remaining
from vivace.acceleration.splits import Images
from vivace.acceleration.steps import Steps
from vivace.bundle import Bundle
from vivace.errors import OutOfTime, VivaceError, first_line
from vivace.exporting.parity import Parity, compare_probs
from vivace.profiling.profile import Profile, profile_layers
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss, paired_loss
from vivace.timing.interleaved import (
    BLOCK_SECONDS,
    Side,
    SideFailure,
    Timings,
    ratio_of,
    time_sides,
)
from vivace.timing.preprocessing import PreprocessTimings, time_preprocessing

__all__ = ["Measurements"]

# rounds of the first timing, which shows what can't win
SCREEN_ROUNDS = 5
# rounds and processes of the final timing, whose ratios are published
FINAL_ROUNDS, FINAL_PROCESSES = 15, 5
AA_TEST = "A/A test"
NUM_TIMED_IMAGES = 64
# the outcome of work that was not started
NOT_TRIED = Outcome(Status.OUT_OF_TIME, "not tried: out of time")


class Measurements:
    """The networks of a search, and what was measured of their variants so far: `results`."""

    def __init__(
        self,
        own: Network,
        compiled: Path,
        steps: Steps,
        *,
        batch_size: int,
        threads: int | None,
    ) -> None:
        """compiled: folder for compiled code."""
        self.own = own
        self.networks = {own.name: own}
        self.results = Results()
        self.steps, self.budget = steps, steps.budget
        self._compiled = compiled
        self._batch_size, self._threads = batch_size, threads
        self._probs: dict[tuple[str, str], np.ndarray] = {}

    def network_of(self, result: Result) -> Network:
        """The network of a result's candidate."""
        return self.networks[result.candidate.network]

    def bundle_of(self, result: Result) -> Bundle:
        """The bundle that was built for a result."""
        return self.network_of(result).builder.build(result.candidate)

    def build(self, candidates: Sequence[Candidate], *, share: float = 1.0) -> list[Result]:
        """Build candidates. share: the fraction of the remaining time after which no further one is started."""
        results = self.results.put(Result(candidate=candidate) for candidate in candidates)
        until = self.budget.after(share)
        return [self.results.put([self._build(result, until)])[0] for result in results]

    def _build(self, result: Result, until: float) -> Result:
        kind = f"build {result.candidate.runtime} {result.candidate.precision}"
        if not self.budget.fits(kind, until=until):
            self.steps.leave_out(f"{result.name}: not built")
            return dataclasses.replace(result, outcome=NOT_TRIED)
        self.steps.tell(f"building {result.name}")
        began = self.budget.elapsed()
        try:
            with self.budget.measured(kind):
                built = self._built(result, until)
            return dataclasses.replace(
                result, num_bytes=sum((built.folder / name).stat().st_size for name in _deployed(built))
            )
        except OutOfTime:
            seconds = self.budget.elapsed() - began
            result = result.with_outcome(
                Status.OUT_OF_TIME, f"abandoned: out of time after building for {seconds:.0f} s"
            )
            self.steps.leave_out(f"{result.name}: {result.outcome.reason}")
            return result
        except Exception as error:
            # an exporter that fails rules out this candidate, not the search
            return result.with_outcome(
                Status.FAILED, f"could not be built: {type(error).__name__}: {first_line(error)}"
            )

    def _built(self, result: Result, until: float) -> Bundle:
        if result.candidate.is_exported:
            return self.steps.run_until(until, self.network_of(result).builder.build, result.candidate)
        # only the weights are copied
        return self.bundle_of(result)

    def screen_first(self, *, share: float = 1.0) -> None:
        """Time everything that was built, interleaved. There are no ratios yet, since no baseline is chosen.

        share: the fraction of the remaining time that this may take.
        """
        timings, outcomes = self._screen(list(self.results), share)
        self.results.put(
            dataclasses.replace(
                result, screened=timings.get(result.name), outcome=outcomes.get(result.name, result.outcome)
            )
            for result in self.results
        )

    def screen(self, results: Sequence[Result], baseline: Result, *, share: float = 1.0) -> list[Result]:
        """Time further candidates interleaved with the baseline; those that could be timed. share: as above."""
        timings, outcomes = self._screen([Result(candidate=baseline.candidate), *results], share)
        first = timings.get(baseline.name)
        if first is None:
            why = f"not timed: {baseline.name}, the baseline, could not be timed beside it"
            outcomes = {name: Outcome(Status.FAILED, why) for name in timings} | outcomes
            timings = {}
        measured = [
            dataclasses.replace(
                result,
                screened=timings.get(result.name),
                ratio=ratio_of(first, timings[result.name]) if first is not None and result.name in timings else None,
                outcome=outcomes.get(result.name, result.outcome),
            )
            for result in results
        ]
        return [result for result in self.results.put(measured) if result.screened is not None]

    def _screen(self, results: Sequence[Result], share: float) -> tuple[dict[str, Timings], dict[str, Outcome]]:
        """The first, short timing, by name; and the outcomes of those that could not be timed."""
        sides = {result.name: result for result in remaining(results)}
        outcomes: dict[str, Outcome] = {}

        def failed(side: Side, error: VivaceError) -> None:
            outcomes[side.name] = _not_timed(error)
            if isinstance(error, OutOfTime):
                self.steps.leave_out(f"{side.name}: {first_line(error)}")

        self.steps.tell(f"timing {len(sides)} variants")
        timed = time_sides(
            [self._side(result) for result in sides.values()],
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

    def final_seconds(self, baseline: Result, num_certified: int) -> float:
        """Estimated lower bound for the duration of the final timing, from the baseline's cold start."""
        sides = 2 + num_certified
        blocks = sides * FINAL_ROUNDS / FINAL_PROCESSES * BLOCK_SECONDS
        start = 0.0 if baseline.screened is None else baseline.screened.cold_start_seconds
        return MIN_PROCESSES * (start + blocks)

    def time(self, baseline: Result, certified: Sequence[Result]) -> tuple[Ratio | None, int]:
        """The final timing of the certified variants and the baseline, which is timed twice for the A/A test.

        Returns the ratio of the A/A test, None if there was no time for it, and the number of processes of each side.
        """
        # the first timing is too short to decide who wins
        results = [dataclasses.replace(result, timed=None, ratio=None) for result in self.results.current(certified)]
        self.results.put(results)
        if not self.budget.fits("", seconds=self.final_seconds(baseline, len(certified))):
            self.steps.leave_out("the final timing: not started")
            return None, 0
        self.steps.tell(f"timing {len(certified)} certified variants against {baseline.name}")
        images = self._timed_images([baseline, *certified])
        names = {result.name for result in certified}
        outcomes: dict[str, Outcome] = {}

        def failed(side: Side, error: VivaceError) -> None:
            if side.name not in names:
                raise SideFailure(str(error))
            outcomes[side.name] = _not_timed(error)

        timed = time_sides(
            [self._side(baseline), dataclasses.replace(self._side(baseline), name=AA_TEST)]
            + [self._side(result) for result in certified],
            {**images, AA_TEST: images[baseline.name]},
            batch_size=self._batch_size,
            threads=self._threads,
            rounds=FINAL_ROUNDS,
            processes=FINAL_PROCESSES,
            compiled=self._compiled,
            on_failure=failed,
            deadline=None if self.budget.seconds is None else self.budget.deadline,
        )
        results = self.results.put(
            dataclasses.replace(result, outcome=outcomes.get(result.name, result.outcome)) for result in results
        )
        found = {timings.name: timings for timings in timed}
        if baseline.name not in found or AA_TEST not in found:
            self.steps.leave_out("the final timing: abandoned")
            return None, 0
        first = found[baseline.name]
        num_processes = len(set(first.processes))
        if num_processes < FINAL_PROCESSES:
            self.steps.leave_out(f"the final timing: {num_processes} of {FINAL_PROCESSES} processes were timed")
        (known,) = self.results.current([baseline])
        self.results.put([dataclasses.replace(known, timed=first, ratio=(1.0, 1.0, 1.0))])
        self.results.put(
            dataclasses.replace(result, timed=found[result.name], ratio=ratio_of(first, found[result.name]))
            for result in results
            if result.name in found
        )
        return ratio_of(first, found[AA_TEST]), num_processes

    def profile(self, result: Result) -> Profile | None:
        """Which kernels a variant ran, by its runtime's profiler; None, and a note, if it can't be profiled."""
        images = next(iter(self._timed_images([result]).values()))[: self._batch_size]
        try:
            return self.steps.run(profile_layers, self.bundle_of(result), images, threads=self._threads)
        except OutOfTime:
            self.steps.leave_out(f"the profile of {result.name}")
        except VivaceError as error:
            self.steps.note(f"no profile of {result.name}: {first_line(error)}")
        return None

    def time_preprocessing(self, result: Result) -> PreprocessTimings | None:
        """Time from an image file to the network's input; None without readable files."""
        network = self.network_of(result)
        if not network.splits.files:
            return None
        try:
            return self.steps.run(
                time_preprocessing, network.bundle.preprocess, [Path(f) for f in network.splits.files]
            )
        except OutOfTime:
            self.steps.leave_out("the timing of the preprocessing")
        except VivaceError as error:
            self.steps.note(f"preprocessing was not timed: {first_line(error)}")
        return None

    def answer_seconds(self, result: Result, images: Images) -> float:
        """Estimated seconds for predictions on images, from the timings so far."""
        start = 0.0 if result.screened is None else result.screened.cold_start_seconds
        return start + (0.0 if result.p50_ms == float("inf") else 1e-3 * result.p50_ms * len(images) / self._batch_size)

    def probs(self, result: Result | None, images: Images, part: str) -> np.ndarray:
        """probs_NK of a variant, or of the plain model for None, on images; cached under `part`."""
        key = (result.name if result else "plain", part)
        if key not in self._probs:
            network = self.own if result is None else self.network_of(result)
            self._probs[key] = self.steps.run(network.probs, result.candidate if result else None, images)
        return self._probs[key]

    def loss(
        self, result: Result, images: Images, own_images: Images, part: str, *, confidence: float = 0.95
    ) -> PairedLoss:
        """The loss from the plain model to a variant on the same images, each at its network's input size."""
        before, after = self.probs(None, own_images, part), self.probs(result, images, part)
        return paired_loss(images.right(before), images.right(after), confidence=confidence)

    def parity(self, result: Result) -> Parity:
        """Agreement of a variant with its own network in PyTorch, on the selection images."""
        network = self.network_of(result)
        images = network.splits.select
        expected = (
            self.probs(None, images, "select") if network is self.own else self.steps.run(network.probs, None, images)
        )
        return compare_probs(
            expected,
            self.probs(result, images, "select"),
            runtime=result.candidate.runtime,
            precision=result.candidate.precision,
            images=f"{network.splits.data}, {images.name}",
            thresholds_K=network.bundle.info.thresholds or None,
        )

    def _side(self, result: Result) -> Side:
        candidate = result.candidate
        return Side(
            name=result.name,
            bundle=self.network_of(result).builder.folder(candidate),
            runtime=candidate.runtime,
            precision=candidate.precision,
        )

    def _timed_images(self, results: Sequence[Result]) -> dict[str, np.ndarray]:
        """Images for timing, by the result's name; results of one network share an array."""
        arrays: dict[str, np.ndarray] = {}
        for result in results:
            network = result.candidate.network
            if network not in arrays:
                select = self.network_of(result).splits.select
                images = select.some(max(NUM_TIMED_IMAGES, self._batch_size)).pixels()
                # repeated if there are fewer selection images than a batch has
                arrays[network] = np.concatenate([images] * -(-self._batch_size // len(images)))
        return {result.name: arrays[result.candidate.network] for result in results}


def _not_timed(error: VivaceError) -> Outcome:
    status = Status.OUT_OF_TIME if isinstance(error, OutOfTime) else Status.FAILED
    return Outcome(status, first_line(error))


def _deployed(bundle: Bundle) -> list[str]:
    """Files of a bundle that its runtime reads."""
    graphs = [name for name in bundle.files if name.startswith("model.") and not name.endswith(".safetensors")]
    return graphs or [name for name in bundle.files if name.endswith(".safetensors")]
