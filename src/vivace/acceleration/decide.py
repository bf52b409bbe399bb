"""The decisions of a search: pure functions of what was measured.

Nothing here builds, times or changes anything. A function that decides over several results returns new ones, each with
its outcome. Those that stay in the search still have the status BUILT, and are in the order in which to continue.

A result's `ratio` is its speed relative to the baseline. Its accuracy drops are `selected`, on the selection images,
and `certified`, on the certification images.

In the A/A test the baseline is timed against a second copy of itself, like any other side. If the 95 % interval of that
ratio leaves [1 / MAX_AA_RATIO, MAX_AA_RATIO], or too few processes were timed for an interval, no ratio of this machine
is trusted. If the interval is narrower but excludes 1, as one in twenty does by chance, a winner has to be faster by
more than its far bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from vivace.acceleration.results import Outcome, Result, Status, Verdict
from vivace.runtimes.table import is_quantized
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss, images_to_prove

__all__ = [
    "MAX_AA_RATIO",
    "UNKNOWN",
    "certify_in_order",
    "drop_dominated",
    "finalists_of",
    "images_to_certify",
    "is_level",
    "is_noisy",
    "loses_too_much",
    "lost_too_much",
    "pick_winner",
    "rule_out_inaccurate",
    "selection_drop",
    "slower_than",
    "verdict_of",
]

# the loss of a variant that was not compared
UNKNOWN = PairedLoss(num_images=1, top1_before=0, top1_after=0, lost=0, gained=0, bound=1.0, confidence=0.95)
# a variant is dropped if one with less risk is faster by more than this; closer ones continue to the longer timing
SLACK = 1.05
# variants of the model's own network that are judged on the certification images
MAX_FINALISTS = 4
# that everything called proven is right, together
CONFIDENCE = 0.95
# times the images that should be enough: the drop on the few selection images is an estimate
SPARE = 2.0
MIN_CERTIFIED = 1000
# limit for the interval of the A/A test; docs/how-it-works/timing.md has what it reached on idle and on busy machines
MAX_AA_RATIO = 1.25
# with fewer processes the interval is too wide to be useful: Student's quantile for two is 12.7
MIN_PROCESSES = 3


def drop_dominated(results: Sequence[Result], baseline: Result, *, objective: str) -> list[Result]:
    """Results in the order of their risk; one that is slower than another with less risk is SLOWER."""
    front: list[Result] = []
    decided: list[Result] = []
    for result in sorted(results, key=lambda result: (result.candidate.risk, -result.times_faster)):
        better = [other for other in [baseline, *front] if _beats(other, result, baseline, objective)]
        if result.name == baseline.name:
            decided.append(result.with_outcome(Status.BASELINE, "the baseline"))
        elif better:
            decided.append(slower_than(better[0], result))
        else:
            front.append(result)
            decided.append(result)
    return decided


def slower_than(other: Result, result: Result) -> Result:
    """`result`, ruled out by a better one."""
    return result.with_outcome(Status.SLOWER, f"slower than {other.name}")


def _beats(other: Result, result: Result, baseline: Result, objective: str) -> bool:
    """Whether `other`, which has less risk, leaves `result` no way to win."""
    smaller = objective == "size" and other.name != baseline.name and result.num_bytes < other.num_bytes
    return other.times_faster > result.times_faster * SLACK and not smaller


def loses_too_much(result: Result, max_drop: float) -> bool:
    """Whether the accuracy drop on the selection images rules a variant out.

    A smaller network disagrees with the model on many images, so its drop on a few of them has a standard error of
    points: it is ruled out only if the drop exceeds the budget by more than that.
    """
    loss = result.selected or UNKNOWN
    spare = math.sqrt(loss.lost + loss.gained) / loss.num_images if result.candidate.network else 0.0
    return loss.drop - spare > max_drop


def rule_out_inaccurate(result: Result, max_drop: float) -> Result:
    """A compared result: INACCURATE if it loses too much, so that no certification images are spent on it.

    Variants without risk, in float32, are never ruled out here.
    """
    assert result.selected is not None
    if loses_too_much(result, max_drop) and result.candidate.risk > (False, 0, 0):
        return result.with_outcome(
            Status.INACCURATE, f"loses {100 * result.selected.drop:.2f} points on the images to select on"
        )
    return result


def selection_drop(result: Result) -> float:
    """Accuracy drop on the selection images, a fraction; 1 if it is unknown."""
    return result.selected.drop if result.selected else 1.0


def lost_too_much(result: Result) -> bool:
    """Whether an int8 variant was ruled out as INACCURATE: with some layers in float it may be accurate enough."""
    return is_quantized(result.candidate.precision) and result.status is Status.INACCURATE


def finalists_of(results: Sequence[Result]) -> list[Result]:
    """The finalists, in the order in which they are to be judged; then the other results, as SLOWER.

    Of the model's own network its MAX_FINALISTS fastest variants. Of a smaller network the fastest, and the one with
    the smallest bound: int8 may cost it points of accuracy for 1 % of its time. The model's own network comes first,
    and within a network the variant with the smallest bound.
    """
    groups, dropped = [], []
    for network, rivals in _by_network(results).items():
        fastest = sorted(rivals, key=lambda result: -result.times_faster)
        chosen = [fastest[0], min(fastest, key=_bound)] if network else fastest[:MAX_FINALISTS]
        names = {result.name for result in chosen}
        dropped += [slower_than(fastest[0], result) for result in fastest if result.name not in names]
        kept = [result for result in fastest if result.name in names]
        groups.append(sorted(kept, key=lambda result: (_bound(result), result.candidate.risk)))
    groups.sort(key=lambda group: (bool(group[0].candidate.network), _bound(group[0]), group[0].candidate.network))
    return [result for group in groups for result in group] + dropped


def _bound(result: Result) -> float:
    return result.selected.bound if result.selected else 1.0


def _by_network(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by network, in their order."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.candidate.network, []).append(result)
    return found


def images_to_certify(finalists: Sequence[Result], max_drop: float, available: int) -> int:
    """How many certification images should prove all finalists, estimated from the selection images, with a margin.

    Chosen before any of them is looked at. All that are available if that many would not be enough.
    """
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(_by_network(finalists)))
    needed = [images_to_prove(_worse(result.selected, confidence), max_drop) for result in finalists if result.selected]
    if not needed or any(count is None for count in needed):
        return available
    return min(available, max(MIN_CERTIFIED, round(SPARE * max(count or 0 for count in needed))))


def _worse(loss: PairedLoss, confidence: float) -> PairedLoss:
    """The loss plus one standard error, and at least one image: a small loss on few images may be luck."""
    more = max(1, math.ceil(math.sqrt(loss.lost + loss.gained)))
    return PairedLoss(
        num_images=loss.num_images,
        top1_before=loss.top1_before,
        top1_after=loss.top1_after,
        lost=min(loss.lost + more, loss.num_images - loss.gained),
        gained=loss.gained,
        bound=loss.bound,
        confidence=confidence,
    )


def certify_in_order(
    finalists: Sequence[Result], judge: Callable[[Result, float], PairedLoss | None], *, max_drop: float
) -> list[Result]:
    """Judge the variants of each network on the certification images, in order, until one is not proven.

    judge: a result and a confidence → its loss, with a bound at that confidence; None if no time is left.
    However many variants are judged, the probability that any of them is wrongly accepted is at most 1 - CONFIDENCE:
    within a network the sequence is fixed (Maurer, Hothorn and Lehmacher 1995), and that probability is divided among
    the networks; a network whose variants were all proven passes its part to the next (fallback, Wiens 2003).
    """
    networks = _by_network(finalists)
    handed_on = 0.0
    decided = []
    for results in networks.values():
        chance = (1 - CONFIDENCE) / len(networks) + handed_on
        # the outcome of all that follow the first one that is not proven
        stopped: Outcome | None = None
        for result in results:
            if stopped is not None:
                decided.append(dataclasses.replace(result, outcome=stopped))
                continue
            loss = judge(result, 1 - chance)
            if loss is None:
                stopped = Outcome(Status.OUT_OF_TIME, "not judged: out of time")
                decided.append(dataclasses.replace(result, outcome=stopped))
            elif loss.bound <= max_drop:
                decided.append(dataclasses.replace(result, certified=loss).with_outcome(Status.CERTIFIED, "certified"))
            else:
                decided.append(
                    dataclasses.replace(result, certified=loss).with_outcome(Status.NOT_PROVEN, "not proven")
                )
                stopped = Outcome(Status.NOT_JUDGED, f"not judged: {result.name} before it was not proven")
        handed_on = chance if stopped is None else 0.0
    return decided


def is_noisy(aa_test: Ratio) -> bool:
    """Whether the baseline differs too much from itself: other work ran, or the machine changed its speed."""
    _, low, high = aa_test
    # not "low < …": NaN must count as noisy
    return low is None or high is None or not (low >= 1 / MAX_AA_RATIO and high <= MAX_AA_RATIO)


def is_level(aa_test: Ratio) -> bool:
    """Whether the interval of the A/A test includes 1, as 95 of 100 do."""
    _, low, high = aa_test
    return low is not None and high is not None and low <= 1 <= high


def pick_winner(certified: Sequence[Result], aa_test: Ratio | None, *, objective: str) -> Result | None:
    """The best certified result whose lower bound is faster than the baseline; None if the A/A test was noisy.

    If the A/A test's interval excludes 1, a result has to be faster by more than its far bound.
    """
    if aa_test is None or is_noisy(aa_test):
        return None
    _, low, high = aa_test
    assert low is not None
    assert high is not None
    least = 1.0 if is_level(aa_test) else max(high, 1 / low)
    faster = [result for result in certified if result.times_faster and _lowest(result) > least]
    if objective == "size":
        return min(faster, key=lambda result: (result.num_bytes, -result.times_faster), default=None)
    return max(faster, key=lambda result: result.times_faster, default=None)


def _lowest(result: Result) -> float:
    """Lower bound of the ratio to the baseline; 0 without one."""
    low = None if result.ratio is None else result.ratio[1]
    return 0.0 if low is None else low


def verdict_of(winner: Result | None, aa_test: Ratio | None, *, num_processes: int, out_of_time: bool) -> Verdict:
    """How a search ends.

    aa_test: None if it was not timed. out_of_time: whether anything was left out because the time budget ended.
    """
    if winner is not None:
        return Verdict.ACCELERATED
    if out_of_time and (aa_test is None or num_processes < MIN_PROCESSES):
        return Verdict.UNDECIDED
    if aa_test is not None and is_noisy(aa_test):
        return Verdict.NOISY
    return Verdict.UNDECIDED if out_of_time else Verdict.NOTHING_FASTER
