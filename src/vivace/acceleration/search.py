"""The search: which forms are tried, in which order, within which time.

Latency does not depend on the answers, so it is measured first: every form is timed against the others, and what is
slower than a form that risks less is dropped. The rest are compared on images to select on; where all int8 forms lose
too much one gets layers back in float. Where more speed is asked for, smaller networks are timed, those that can win
are trained, and their forms join. Those that may win are judged on the images to certify on, each once, in the order
of their risk, until one fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.acceleration import decide
from vivace.acceleration.budget import Budget
from vivace.acceleration.candidates import candidates_for
from vivace.acceleration.explain import at_chance, explain
from vivace.acceleration.options import SearchOptions
from vivace.acceleration.rows import Row, Rows, SearchResult, Status, Verdict, going_on
from vivace.acceleration.smaller import Smaller
from vivace.acceleration.splits import Images
from vivace.acceleration.steps import Steps
from vivace.acceleration.variants import Variant, open_variant, rank_layers_of
from vivace.acceleration.workbench import Workbench
from vivace.bundle import Bundle
from vivace.compression.layers import LAYERS
from vivace.data.place import AnyData
from vivace.errors import OutOfTime, VivaceError, first_line
from vivace.runtimes import is_quantized
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss
from vivace.timing.processes import ratio_of

__all__ = ["Search"]

# so much of a given time is for building; training, timing and the certificates take the rest
BUILD_SHARE = 0.35
# and of what is left after that so much for the first timing; of the rest so much for answering on images to certify on
SCREEN_SHARE, CERTIFY_SHARE = 0.5, 0.4
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
        data: AnyData,
        work: Path,
        options: SearchOptions,
        *,
        started: float | None = None,
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        """work: folder for what is built; kept for a next try. started: of time.monotonic, when its time began."""
        self._options = options
        self._max_drop = options.max_drop / 100
        self.budget = Budget(options.within_seconds, started=started)
        self._steps = Steps(self.budget, on_message)
        self._opening: dict[str, Any] = {
            "cache_dir": None if options.cache_dir is None else Path(options.cache_dir),
            "on_bad_image": options.on_bad_image,
        }
        self._bundle, self._data, self._work = bundle, data, work
        self._rows = Rows()

    def run(self) -> SearchResult:
        """Search. Raises VivaceError if not even the plain model can be timed, for another reason than the time."""
        doing = "opening the images"
        try:
            own = self._steps.run(open_variant, "", self._bundle, self._data, self._work, **self._opening)
            doing = "the search"
            return self._searched(own)
        except OutOfTime:
            self._steps.leave_out(f"{doing}: abandoned")
            return self._result(Verdict.UNDECIDED)
        finally:
            self._steps.close()

    def _searched(self, own: Variant) -> SearchResult:
        self._bench = bench = Workbench(
            own,
            self._work / "compiled",
            self._steps,
            batch_size=self._options.images_per_call,
            threads=self._options.threads,
        )
        self._rows = bench.rows
        self._smaller = Smaller(bench, self._data, self._work / "networks", self._opening)
        self.splits = own.splits
        self._certify = own.splits.certify.rows
        hurried = bench.budget.seconds is not None
        candidates, missing = candidates_for(torch.device("cpu"), hurried=hurried)
        bench.build(candidates, share=BUILD_SHARE)
        bench.screen_first(share=SCREEN_SHARE)
        baseline = self._baseline()
        if baseline is None:
            return self._result(Verdict.UNDECIDED, missing=missing, splits=own.splits, num_certify=len(self._certify))
        selected = self._select(self._undominated(_timed(bench.rows), baseline))
        for runtime in LAYERS:
            selected += self._give_back(runtime, baseline)
        if self._wants_training(selected):
            selected += self._train_smaller(baseline, selected)
        finalists = going_on(self._rows.put(decide.finalists_of(selected)))
        self._plan_certify(finalists, baseline)
        judged = decide.certify_in_order(
            finalists, lambda row, confidence: self._judge(row, confidence, baseline), max_drop=self._max_drop
        )
        certified = [row for row in self._rows.put(judged) if row.status is Status.CERTIFIED]
        control, num_processes = self._time(baseline, certified)
        timed_baseline, *certified = self._rows.now([baseline, *certified])
        winner = decide.pick_winner(certified, control, objective=self._options.objective)
        verdict = decide.verdict_of(
            winner, control, num_processes=num_processes, out_of_time=bool(self._steps.left_out)
        )
        # work that begins here changes no verdict
        profile = bench.profile(winner) if winner is not None else None
        preprocessing = bench.time_preprocessing(winner or timed_baseline)
        return self._result(
            verdict,
            missing=missing,
            baseline=timed_baseline,
            winner=winner,
            control=control,
            splits=own.splits,
            num_certify=len(self._certify),
            profile=profile,
            preprocessing=preprocessing,
        )

    def _undominated(self, rows: Sequence[Row], baseline: Row) -> list[Row]:
        """Those that may win, in the order of their risk."""
        return going_on(self._rows.put(decide.drop_dominated(rows, baseline, objective=self._options.objective)))

    def _time(self, baseline: Row, certified: Sequence[Row]) -> tuple[Ratio | None, int]:
        """The control and its number of processes: timed once more where it is not level, and there is time."""
        bench = self._bench
        control, num_processes = bench.time(baseline, certified)
        if control is None or (decide.is_level(control) and not decide.is_noisy(control)):
            return control, num_processes
        if not bench.budget.fits("", seconds=bench.final_seconds(baseline, len(certified))):
            return control, num_processes
        self._steps.tell("the timing was noisy: once more")
        again = bench.time(baseline, certified)
        return again if again[0] is not None else (control, num_processes)

    def _result(self, verdict: Verdict, **found: Any) -> SearchResult:
        result = SearchResult(rows=list(self._rows), missing=found.pop("missing", {}), verdict=verdict, **found)
        result.notes = explain(result.rows, result.winner, result.control, self._max_drop) + self._steps.notes
        result.left_out = self._steps.left_out
        if result.splits is not None:
            chance = at_chance(result.rows, result.splits.certify.labels)
            result.warnings = [] if chance is None else [chance]
        short = self.budget.shortfall() if verdict is Verdict.UNDECIDED else None
        result.warnings += [] if short is None else [short]
        result.seconds = self.budget.elapsed()
        return result

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

    def _baseline(self) -> Row | None:
        """The faster of PyTorch eager and compiled in float32; the ratios of all rows are to it.

        None where the time was over before it was timed.
        """
        rows = _timed(self._bench.rows)
        baseline = min((row for row in rows if _is_baseline(row)), key=lambda row: row.p50_ms, default=None)
        if baseline is None or baseline.screened is None:
            if self._steps.left_out:
                return None
            raise VivaceError(
                f"the plain model could not be timed: {next(iter(self._rows)).outcome.reason}. Is the bundle whole?"
            )
        self._rows.put(
            dataclasses.replace(row, ratio=ratio_of(baseline.screened, row.screened))
            for row in rows
            if row.screened is not None
        )
        return self._rows.now([baseline])[0]

    def _select(self, rows: Sequence[Row]) -> list[Row]:
        """Those that do not plainly lose too much on the images to select on."""
        selected = []
        for row in rows:
            compared = self._compare(row)
            if compared.status is Status.BUILT:
                compared = decide.selected_or_not(compared, self._max_drop)
            selected += self._rows.put([compared])
        return going_on(selected)

    def _compare(self, row: Row) -> Row:
        """The row with what it loses on the images to select on, or with the reason why it could not be compared."""
        bench = self._bench
        images = bench.variant(row).splits.select
        if not bench.budget.fits("", seconds=bench.answer_seconds(row, images)):
            self._steps.leave_out(f"{row.name}: not compared")
            return row.became(Status.OUT_OF_TIME, "not compared: out of time")
        self._steps.tell(f"comparing {row.name} on {len(images):,} images")
        try:
            if not np.isfinite(bench.probs(row, images, "select")).all():
                return row.became(Status.FAILED, "its answers are not finite")
            row = dataclasses.replace(row, selected=bench.loss(row, images, self.splits.select, "select"))
            return dataclasses.replace(row, parity=bench.parity(row))
        except OutOfTime:
            row = row.became(Status.OUT_OF_TIME, "abandoned: out of time while it was compared")
            self._steps.leave_out(f"{row.name}: {row.outcome.reason}")
        except Exception as error:
            # a runtime that fails costs this candidate, never the search
            return row.became(Status.FAILED, f"could not be compared: {type(error).__name__}: {first_line(error)}")
        return row

    def _give_back(self, runtime: str, baseline: Row) -> list[Row]:
        """Where all of a runtime in int8 lost too much, that which lost least with the fewest layers in float that will
        do, if it may be the fastest even so."""
        bench = self._bench
        rows = [row for row in _timed(bench.rows) if row.selected is not None]
        int8 = [row for row in rows if row.candidate.runtime == runtime and is_quantized(row.candidate.precision)]
        if not int8 or not all(decide.lost_too_much(row) for row in int8):
            return []
        row = min(int8, key=lambda row: (decide.drop(row), -row.times_faster))
        rivals = [baseline, *(other for other in rows if not decide.lost_too_much(other))]
        if any(other.times_faster > row.times_faster for other in rivals):
            return []
        images = self.splits.select.some(NUM_RANK_IMAGES)
        self._steps.tell(f"ranking the layers of {row.name}")
        try:
            groups = self._steps.run(rank_layers_of, bench.own, row.candidate, images)
        except OutOfTime:
            self._steps.leave_out(f"{row.name} with some layers in float")
            return []
        except (RuntimeError, ValueError, VivaceError) as error:
            self._steps.note(f"no layers of {row.name} could be ranked: {first_line(error)}")
            return []
        counts = sorted({min(len(groups), 2**step) for step in range(MAX_GIVEN_BACK)} - {0})
        kept = [tuple(name for group in groups[:count] for name in group.layers) for count in counts]
        built = bench.build([dataclasses.replace(row.candidate, kept=layers) for layers in kept])
        for candidate in bench.screen(built, baseline):
            better = [other for other in rivals if other.times_faster > candidate.times_faster]
            if better:
                self._rows.put([decide.slower_than(better[0], candidate)])
            elif selected := self._select([candidate]):
                # those with more layers in float are slower
                return selected
        return []

    def _wants_training(self, selected: Sequence[Row]) -> bool:
        if self._options.train == "auto":
            fastest = max((row.times_faster for row in selected), default=1.0)
            return self._options.target_speedup is not None and fastest < self._options.target_speedup
        return self._options.train == "on"

    def _train_smaller(self, baseline: Row, selected: Sequence[Row]) -> list[Row]:
        """Forms of smaller networks, trained, that may win."""
        own = [row for row in _timed(self._bench.rows) if not row.candidate.kept and not row.candidate.asymmetric]
        forms = sorted(own, key=lambda row: -row.times_faster)[:FORMS_OF_SMALLER]
        fastest = max((row.times_faster for row in selected), default=1.0)
        least = max(fastest * decide.SLACK, self._options.target_speedup or 0.0)
        joined = []
        asked = self._options.target_speedup is not None and least == self._options.target_speedup
        for rows in self._smaller.train(forms, baseline, least_speed=least, asked=asked):
            # forms of one network among themselves: another network is another risk
            joined += self._select(self._undominated(rows, baseline))
        return joined

    def _plan_certify(self, finalists: Sequence[Row], baseline: Row) -> None:
        """Choose how many images are judged, where all of them would take long; before any is looked at."""
        images = self.splits.certify
        seconds = 1e-3 * sum(row.p50_ms for row in [*finalists, baseline]) / self._options.images_per_call * len(images)
        if seconds > min(CERTIFY_SECONDS, CERTIFY_SHARE * self.budget.seconds_left()):
            self._certify = images.some(decide.images_to_certify(finalists, self._max_drop, len(images))).rows

    def _judge(self, row: Row, confidence: float, baseline: Row) -> PairedLoss | None:
        """What a form loses on the images to certify on; None where time is left for this or the last timing only."""
        bench, images = self._bench, self._certify_images(row)
        seconds = bench.answer_seconds(row, images) + bench.final_seconds(baseline, 1)
        try:
            if bench.budget.fits("", seconds=seconds):
                self._steps.tell(f"certifying {row.name} on {len(images):,} images")
                return bench.loss(row, images, self._certify_images(None), "certify", confidence=confidence)
        except OutOfTime:
            pass
        self._steps.leave_out(f"{row.name}: not judged")
        return None


def _timed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.screened is not None]


def _is_baseline(row: Row) -> bool:
    return (row.candidate.runtime, row.candidate.precision) in (("eager", "fp32"), ("inductor", "fp32"))
