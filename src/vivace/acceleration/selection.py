"""The comparison on the selection images: what loses too much accuracy is ruled out, or gets layers in float."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vivace.acceleration import decide
from vivace.acceleration.measurements import Measurements
from vivace.acceleration.networks import rank_layers_of
from vivace.acceleration.results import Result, Status, remaining, was_screened
from vivace.errors import OutOfTime, VivaceError, first_line
from vivace.runtimes.table import is_quantized

__all__ = ["Selection"]

# selection images that layers are ranked on, and how many sets of float layers are tried
NUM_RANK_IMAGES = 256
NUM_FLOAT_SETS = 3


class Selection:
    """Selects the candidates that may be certified."""

    def __init__(self, measurements: Measurements, *, max_drop: float) -> None:
        """max_drop: accuracy budget, a fraction in (0, 1)."""
        self._measurements, self._steps = measurements, measurements.steps
        self._max_drop = max_drop

    def select(self, results: Sequence[Result]) -> list[Result]:
        """Compare variants on the selection images; those that do not clearly lose too much accuracy."""
        selected = []
        for result in results:
            compared = self._compare(result)
            if compared.status is Status.BUILT:
                compared = decide.rule_out_inaccurate(compared, self._max_drop)
            selected += self._measurements.results.put([compared])
        return remaining(selected)

    def _compare(self, result: Result) -> Result:
        """The result with its accuracy drop on the selection images, or with the reason why it has none."""
        measurements = self._measurements
        images = measurements.network_of(result).splits.select
        if not measurements.budget.fits("", seconds=measurements.answer_seconds(result, images)):
            self._steps.leave_out(f"{result.name}: not compared")
            return result.with_outcome(Status.OUT_OF_TIME, "not compared: out of time")
        self._steps.tell(f"comparing {result.name} on {len(images):,} images")
        try:
            if not np.isfinite(measurements.probs(result, images, "select")).all():
                return result.with_outcome(Status.FAILED, "its answers are not finite")
            result = dataclasses.replace(
                result, selected=measurements.loss(result, images, self._measurements.own.splits.select, "select")
            )
            return dataclasses.replace(result, parity=measurements.parity(result))
        except OutOfTime:
            result = result.with_outcome(Status.OUT_OF_TIME, "abandoned: out of time while it was compared")
            self._steps.leave_out(f"{result.name}: {result.outcome.reason}")
        except Exception as error:
            # a runtime that fails rules out this candidate, not the search
            return result.with_outcome(
                Status.FAILED, f"could not be compared: {type(error).__name__}: {first_line(error)}"
            )
        return result

    def revert_layers(self, runtime: str, baseline: Result) -> list[Result]:
        """If every int8 variant of a runtime lost too much accuracy, the one that lost least, with layers in float.

        As few layers as are enough. Nothing is tried if an accurate variant is faster even than int8 without them.
        """
        measurements = self._measurements
        results = [result for result in was_screened(measurements.results) if result.selected is not None]
        int8 = [
            result
            for result in results
            if result.candidate.runtime == runtime and is_quantized(result.candidate.precision)
        ]
        if not int8 or not all(decide.lost_too_much(result) for result in int8):
            return []
        result = min(int8, key=lambda result: (decide.selection_drop(result), -result.times_faster))
        rivals = [baseline, *(other for other in results if not decide.lost_too_much(other))]
        if any(other.times_faster > result.times_faster for other in rivals):
            return []
        images = self._measurements.own.splits.select.some(NUM_RANK_IMAGES)
        self._steps.tell(f"ranking the layers of {result.name}")
        try:
            groups = self._steps.run(rank_layers_of, measurements.own, result.candidate, images)
        except OutOfTime:
            self._steps.leave_out(f"{result.name} with some layers in float")
            return []
        except (RuntimeError, ValueError, VivaceError) as error:
            self._steps.note(f"no layers of {result.name} could be ranked: {first_line(error)}")
            return []
        counts = sorted({min(len(groups), 2**step) for step in range(NUM_FLOAT_SETS)} - {0})
        sets = [tuple(name for group in groups[:count] for name in group.layers) for count in counts]
        built = measurements.build([dataclasses.replace(result.candidate, float_layers=layers) for layers in sets])
        for candidate in measurements.screen(built, baseline):
            better = [other for other in rivals if other.times_faster > candidate.times_faster]
            if better:
                self._measurements.results.put([decide.slower_than(better[0], candidate)])
            elif selected := self.select([candidate]):
                # with more layers in float it would be slower
                return selected
        return []
