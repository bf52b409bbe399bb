"""The search for a faster variant: the order of its steps, and how the time budget is divided among them.

1. Build and time every variant (a runtime in a precision). Latency does not depend on the weights, so it comes first.
   A variant that is slower than one with less risk to accuracy is dropped.
2. Compare the others with the plain model on the selection images. If every int8 variant of a runtime loses too much
   accuracy, revert its most sensitive layers to float.
3. If a higher speed-up is requested, time smaller networks, and train those that can win. Their variants join.
4. Certify the finalists on the certification images, in a fixed order. Each network's sequence ends at its first
   variant that is not proven to be within the accuracy budget.
5. Time the certified variants against the baseline, in several processes each, and pick the winner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.acceleration import decide
from vivace.acceleration.budget import Budget
from vivace.acceleration.candidates import candidates_for
from vivace.acceleration.explain import at_chance, explain
from vivace.acceleration.halving import SuccessiveHalving
from vivace.acceleration.measurements import Measurements
from vivace.acceleration.networks import Network, open_network
from vivace.acceleration.options import SearchOptions
from vivace.acceleration.results import Result, Results, SearchResult, Status, Verdict, remaining, was_screened
from vivace.acceleration.selection import Selection
from vivace.acceleration.splits import Images
from vivace.acceleration.steps import Steps
from vivace.acceleration.thresholds import thresholds_of
from vivace.bundle import Bundle
from vivace.compression.layers import with_int8_layers
from vivace.data.place import AnyData
from vivace.errors import OutOfTime, VivaceError
from vivace.runtimes.table import PORTABLE
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss
from vivace.timing.interleaved import ratio_of
from vivace.uncertainty.record import Calibrated

__all__ = ["Search"]

# fraction of the time budget for building; training, timing and certification share the rest
BUILD_SHARE = 0.35
# fractions of the time that is left then: for the first timing, and for predictions on the certification images
SCREEN_SHARE, CERTIFY_SHARE = 0.5, 0.4
# variants of each smaller network: those that are fastest for the model's own
VARIANTS_PER_NETWORK = 3
# if certification would take longer than this, it uses no more images than should be needed
CERTIFY_SECONDS = 60.0


class Search:
    """One search: build, time, select, train if requested, certify."""

    def __init__(
        self,
        bundle: Bundle,
        data: AnyData,
        work: Path,
        options: SearchOptions,
        *,
        started: float | None = None,
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        """work: folder for what is built, from which an interrupted search continues.

        started: time.monotonic() from which the time budget counts; None: now.
        """
        self._options = options
        self._max_drop = options.max_drop / 100
        self.budget = Budget(options.within_seconds, started=started)
        self._steps = Steps(self.budget, on_message)
        self._opening: dict[str, Any] = {
            "cache_dir": None if options.cache_dir is None else Path(options.cache_dir),
            "on_bad_image": options.on_bad_image,
        }
        self._bundle, self._data, self._work = bundle, data, work
        self._results = Results()

    def run(self) -> SearchResult:
        """Run the search. Raises VivaceError if the plain model can't be timed, unless the time budget ended."""
        doing = "opening the images"
        try:
            own = self._steps.run(open_network, "", self._bundle, self._data, self._work, **self._opening)
            doing = "the search"
            return self._searched(own)
        except OutOfTime:
            self._steps.leave_out(f"{doing}: abandoned")
            return self._result(Verdict.UNDECIDED)
        finally:
            self._steps.close()

    def _searched(self, own: Network) -> SearchResult:
        self._measurements = measurements = Measurements(
            own,
            self._work / "compiled",
            self._steps,
            batch_size=self._options.images_per_call,
            threads=self._options.threads,
        )
        self._results = measurements.results
        self._halving = SuccessiveHalving(measurements, self._data, self._work / "networks", self._opening)
        self._selection = Selection(measurements, max_drop=self._max_drop)
        self.splits = own.splits
        self._certify = own.splits.certify.rows
        hurried = measurements.budget.seconds is not None
        own_network = self._bundle.info.architecture.is_own
        candidates, missing = candidates_for(torch.device("cpu"), hurried=hurried, own=own_network)
        measurements.build(candidates, share=BUILD_SHARE)
        measurements.screen_first(share=SCREEN_SHARE)
        baseline = self._baseline()
        if baseline is None:
            return self._result(Verdict.UNDECIDED, missing=missing, splits=own.splits, num_certify=len(self._certify))
        selected = self._selection.select(self._undominated(was_screened(measurements.results), baseline))
        for runtime in with_int8_layers():
            selected += self._selection.revert_layers(runtime, baseline)
        if self._wants_training(selected):
            selected += self._train_smaller(baseline, selected)
        finalists = remaining(self._results.put(decide.finalists_of(selected)))
        self._plan_certify(finalists, baseline)
        judged = decide.certify_in_order(
            finalists, lambda result, confidence: self._judge(result, confidence, baseline), max_drop=self._max_drop
        )
        certified = [result for result in self._results.put(judged) if result.status is Status.CERTIFIED]
        aa_test, num_processes = self._time(baseline, certified)
        timed_baseline, *certified = self._results.current([baseline, *certified])
        winner = decide.pick_winner(certified, aa_test, objective=self._options.objective)
        verdict = decide.verdict_of(
            winner, aa_test, num_processes=num_processes, out_of_time=bool(self._steps.left_out)
        )
        # from here on nothing changes the verdict
        profile = measurements.profile(winner) if winner is not None else None
        preprocessing = measurements.time_preprocessing(winner or timed_baseline)
        return self._result(
            verdict,
            missing=missing,
            baseline=timed_baseline,
            winner=winner,
            aa_test=aa_test,
            splits=own.splits,
            num_certify=len(self._certify),
            profile=profile,
            preprocessing=preprocessing,
        )

    def _undominated(self, results: Sequence[Result], baseline: Result) -> list[Result]:
        """Results that may win, in the order of their risk."""
        return remaining(self._results.put(decide.drop_dominated(results, baseline, objective=self._options.objective)))

    def _time(self, baseline: Result, certified: Sequence[Result]) -> tuple[Ratio | None, int]:
        """The A/A test and its number of processes. It is repeated once if it is not level and there is time."""
        measurements = self._measurements
        aa_test, num_processes = measurements.time(baseline, certified)
        if aa_test is None or (decide.is_level(aa_test) and not decide.is_noisy(aa_test)):
            return aa_test, num_processes
        if not measurements.budget.fits("", seconds=measurements.final_seconds(baseline, len(certified))):
            return aa_test, num_processes
        self._steps.tell("the timing was noisy: it is repeated once")
        again = measurements.time(baseline, certified)
        return again if again[0] is not None else (aa_test, num_processes)

    def _result(self, verdict: Verdict, **found: Any) -> SearchResult:
        search_result = SearchResult(
            results=list(self._results), missing=found.pop("missing", {}), verdict=verdict, **found
        )
        search_result.notes = (
            explain(search_result.results, search_result.winner, search_result.aa_test, self._max_drop)
            + self._steps.notes
        )
        search_result.left_out = self._steps.left_out
        if search_result.splits is not None:
            what = "set of labels" if self._bundle.info.multi_label else "class"
            chance = at_chance(search_result.results, search_result.splits.certify.labels, what)
            search_result.warnings = [] if chance is None else [chance]
        short = self.budget.shortfall() if verdict is Verdict.UNDECIDED else None
        search_result.warnings += [] if short is None else [short]
        search_result.seconds = self.budget.elapsed()
        return search_result

    def bundle_of(self, result: Result) -> Bundle:
        """The bundle that was built for a result."""
        return self._measurements.bundle_of(result)

    def certify_probs(self, result: Result) -> tuple[np.ndarray, np.ndarray]:
        """probs_NK of a variant on the certification images, and their labels_N."""
        images = self.certify_images(result)
        return self._measurements.probs(result, images, "certify"), images.labels

    def thresholds(self, winner: Result) -> Calibrated | None:
        """Those of its answers, for the bundle; None with sets of labels, or too few selection images."""
        try:
            return thresholds_of(self._measurements, winner)
        finally:
            self._steps.close()

    def certify_images(self, result: Result | None) -> Images:
        """Certification images at the input size of a result's network; None: of the model's own network."""
        network = self._measurements.own if result is None else self._measurements.network_of(result)
        return dataclasses.replace(network.splits.certify, rows=self._certify)

    def _baseline(self) -> Result | None:
        """The faster of PyTorch eager and compiled in float32, to which all ratios are relative.

        Of a network of the user's own its float32 graph, which is faster than these: a search has no code of it.
        None if the time budget ended before it was timed.
        """
        results = was_screened(self._measurements.results)
        baseline = min(
            (result for result in results if self._is_baseline(result)), key=lambda result: result.p50_ms, default=None
        )
        if baseline is None or baseline.screened is None:
            if self._steps.left_out:
                return None
            raise VivaceError(
                f"the plain model could not be timed: {next(iter(self._results)).outcome.reason}. "
                "Is the bundle complete?"
            )
        self._results.put(
            dataclasses.replace(result, ratio=ratio_of(baseline.screened, result.screened))
            for result in results
            if result.screened is not None
        )
        return self._results.current([baseline])[0]

    def _is_baseline(self, result: Result) -> bool:
        if self._bundle.info.architecture.is_own:
            return (result.candidate.runtime, result.candidate.precision) == (PORTABLE, "fp32")
        return result.candidate.is_baseline

    def _wants_training(self, selected: Sequence[Result]) -> bool:
        if self._bundle.info.multi_label:
            if self._options.train == "on" or self._options.target_speedup is not None:
                self._steps.note("smaller networks are not trained: their teacher would have to answer with one class")
            return False
        if self._options.train == "auto":
            fastest = max((result.times_faster for result in selected), default=1.0)
            return self._options.target_speedup is not None and fastest < self._options.target_speedup
        return self._options.train == "on"

    def _train_smaller(self, baseline: Result, selected: Sequence[Result]) -> list[Result]:
        """Variants of trained smaller networks that may win."""
        own = [
            result
            for result in was_screened(self._measurements.results)
            if not result.candidate.float_layers and not result.candidate.asymmetric
        ]
        fastest_own = sorted(own, key=lambda result: -result.times_faster)[:VARIANTS_PER_NETWORK]
        fastest = max((result.times_faster for result in selected), default=1.0)
        least = max(fastest * decide.SLACK, self._options.target_speedup or 0.0)
        joined = []
        requested = self._options.target_speedup is not None and least == self._options.target_speedup
        for results in self._halving.train(fastest_own, baseline, least_speed=least, requested=requested):
            # within one network only: accuracy of different networks is not comparable by their precision
            joined += self._selection.select(self._undominated(results, baseline))
        return joined

    def _plan_certify(self, finalists: Sequence[Result], baseline: Result) -> None:
        """If certifying on all images would take long, choose how many to use, before any of them is looked at."""
        images = self.splits.certify
        seconds = (
            1e-3 * sum(result.p50_ms for result in [*finalists, baseline]) / self._options.images_per_call * len(images)
        )
        if seconds > min(CERTIFY_SECONDS, CERTIFY_SHARE * self.budget.seconds_left()):
            self._certify = images.some(decide.images_to_certify(finalists, self._max_drop, len(images))).rows

    def _judge(self, result: Result, confidence: float, baseline: Result) -> PairedLoss | None:
        """The accuracy drop of a variant on the certification images.

        None if there is no time for this and the final timing.
        """
        measurements, images = self._measurements, self.certify_images(result)
        seconds = measurements.answer_seconds(result, images) + measurements.final_seconds(baseline, 1)
        try:
            if measurements.budget.fits("", seconds=seconds):
                self._steps.tell(f"certifying {result.name} on {len(images):,} images")
                return measurements.loss(result, images, self.certify_images(None), "certify", confidence=confidence)
        except OutOfTime:
            pass
        self._steps.leave_out(f"{result.name}: not certified")
        return None
