"""What a search decides, from what was measured: pure functions of rows, which nothing here builds, times or changes.

A function that decides over rows returns them anew, each with what became of it; those that go on are BUILT still, in
the order in which they go on.

A row's `ratio` says how many times as fast as the baseline it is; accuracies are those of `selected` and `certified`.

The A/A test, or control, is the baseline timed against itself like any other side. No speed is believed where its 95 %
interval leaves [1 / MAX_CONTROL, MAX_CONTROL], or where too few processes were timed to have one: a machine that makes
two processes of the same program differ by that much makes any two differ. Where the interval is narrower and does not
hold 1, as one in twenty does by chance, a winner has to be faster by more than the control's far bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from vivace.acceleration.rows import Outcome, Row, Status, Verdict
from vivace.runtimes import is_quantized
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss, images_to_prove

__all__ = [
    "MAX_CONTROL",
    "UNKNOWN",
    "certify_in_order",
    "drop",
    "drop_dominated",
    "finalists_of",
    "images_to_certify",
    "is_level",
    "is_noisy",
    "loses_too_much",
    "lost_too_much",
    "pick_winner",
    "selected_or_not",
    "slower_than",
    "verdict_of",
]

# of what was not compared
UNKNOWN = PairedLoss(num_images=1, top1_before=0, top1_after=0, lost=0, gained=0, bound=1.0, confidence=0.95)
# a form that is slower than one of less risk by this much is dropped: closer ones go on to the longer timing
SLACK = 1.05
# forms of the model's own network that are judged on the images to certify on
MAX_FINALISTS = 4
# of everything that is called proven, together
CONFIDENCE = 0.95
# of the images that should suffice so many more: what was seen on few images to select on is not exact
SPARE = 2.0
LEAST_CERTIFIED = 1000
# how far the interval of the baseline against itself may reach: 1.01 to 1.12 where nothing else ran, 2 to 1,000 beside
# other work
MAX_CONTROL = 1.25
# an interval over fewer processes says next to nothing: Student's quantile of two is 12.7
LEAST_PROCESSES = 3


def drop_dominated(rows: Sequence[Row], baseline: Row, *, objective: str) -> list[Row]:
    """The rows in the order of their risk; what is slower than one of less risk can't win."""
    front: list[Row] = []
    decided: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.candidate.risk, -row.times_faster)):
        better = [other for other in [baseline, *front] if _beats(other, row, baseline, objective)]
        if row.name == baseline.name:
            decided.append(row.became(Status.BASELINE, "the baseline"))
        elif better:
            decided.append(slower_than(better[0], row))
        else:
            front.append(row)
            decided.append(row)
    return decided


def slower_than(other: Row, row: Row) -> Row:
    """What becomes of a row because of a better one."""
    return row.became(Status.SLOWER, f"slower than {other.name}")


def _beats(other: Row, row: Row, baseline: Row, objective: str) -> bool:
    """Whether a form of less risk leaves `row` nothing to win."""
    smaller = objective == "size" and other.name != baseline.name and row.num_bytes < other.num_bytes
    return other.times_faster > row.times_faster * SLACK and not smaller


def loses_too_much(row: Row, max_drop: float) -> bool:
    """Whether a form is out by what it lost on the images to select on.

    A smaller network answers otherwise on many images: what it loses on few of them is uncertain by points, and it is
    out only where it loses more than the budget by a standard error.
    """
    loss = row.selected or UNKNOWN
    spare = math.sqrt(loss.lost + loss.gained) / loss.num_images if row.candidate.network else 0.0
    return loss.drop - spare > max_drop


def selected_or_not(row: Row, max_drop: float) -> Row:
    """What becomes of a row that was compared: one that loses too much must not cost a look at the images to certify
    on. What risks nothing is never out for that."""
    assert row.selected is not None
    if loses_too_much(row, max_drop) and row.candidate.risk > (False, 0, 0):
        return row.became(Status.INACCURATE, f"loses {100 * row.selected.drop:.2f} points on the images to select on")
    return row


def drop(row: Row) -> float:
    """What a form lost on the images to select on, a share; 1 where that is not known."""
    return row.selected.drop if row.selected else 1.0


def lost_too_much(row: Row) -> bool:
    """Whether a form in int8 lost more than the budget when selecting: with some layers in float it may do."""
    return is_quantized(row.candidate.precision) and row.status is Status.INACCURATE


def finalists_of(rows: Sequence[Row]) -> list[Row]:
    """The fastest of each network that were selected, in the order in which they are to be judged; then the others.

    Of a smaller network the fastest and the surest: in int8 it may lose points for a hundredth of its time. The model's
    own network first, then the others, and of each the surest first.
    """
    groups, dropped = [], []
    for network, rivals in _by_network(rows).items():
        fastest = sorted(rivals, key=lambda row: -row.times_faster)
        chosen = [fastest[0], min(fastest, key=_bound)] if network else fastest[:MAX_FINALISTS]
        names = {row.name for row in chosen}
        dropped += [slower_than(fastest[0], row) for row in fastest if row.name not in names]
        kept = [row for row in fastest if row.name in names]
        groups.append(sorted(kept, key=lambda row: (_bound(row), row.candidate.risk)))
    groups.sort(key=lambda group: (bool(group[0].candidate.network), _bound(group[0]), group[0].candidate.network))
    return [row for group in groups for row in group] + dropped


def _bound(row: Row) -> float:
    return row.selected.bound if row.selected else 1.0


def _by_network(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each network, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.candidate.network, []).append(row)
    return found


def images_to_certify(finalists: Sequence[Row], max_drop: float, available: int) -> int:
    """How many images will prove all finalists, by what was seen when selecting, with some to spare.

    Decided before one of them is looked at; all there are where so few would not do.
    """
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(_by_network(finalists)))
    needed = [images_to_prove(_worse(row.selected, confidence), max_drop) for row in finalists if row.selected]
    if not needed or any(count is None for count in needed):
        return available
    return min(available, max(LEAST_CERTIFIED, round(SPARE * max(count or 0 for count in needed))))


def _worse(loss: PairedLoss, confidence: float) -> PairedLoss:
    """As if a standard error more had been lost, and one image at least: what was seen on few images may be luck."""
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
    finalists: Sequence[Row], judge: Callable[[Row, float], PairedLoss | None], *, max_drop: float
) -> list[Row]:
    """Judge the forms of each network on the images to certify on, in their order, until one fails.

    judge: a row and a confidence → its loss, bounded at that; None where there is no time left. The chance that
    anything is wrongly accepted stays at that of a single test, however many are judged: within a network the sequence
    is fixed (Maurer, Hothorn and Lehmacher 1995), each network has its share of that chance, and one whose forms were
    all proven hands its own on to the next (fallback, Wiens 2003).
    """
    networks = _by_network(finalists)
    handed_on = 0.0
    decided = []
    for rows in networks.values():
        chance = (1 - CONFIDENCE) / len(networks) + handed_on
        # once one is not proven, what becomes of those that come after it
        stopped: Outcome | None = None
        for row in rows:
            if stopped is not None:
                decided.append(dataclasses.replace(row, outcome=stopped))
                continue
            loss = judge(row, 1 - chance)
            if loss is None:
                stopped = Outcome(Status.OUT_OF_TIME, "not judged: out of time")
                decided.append(dataclasses.replace(row, outcome=stopped))
            elif loss.bound <= max_drop:
                decided.append(dataclasses.replace(row, certified=loss).became(Status.CERTIFIED, "certified"))
            else:
                decided.append(dataclasses.replace(row, certified=loss).became(Status.NOT_PROVEN, "not proven"))
                stopped = Outcome(Status.NOT_JUDGED, f"not judged: {row.name} before it was not proven")
        handed_on = chance if stopped is None else 0.0
    return decided


def is_noisy(control: Ratio) -> bool:
    """Whether the baseline can't be compared even with itself: something else ran, or the machine changed its speed."""
    _, low, high = control
    # not "low < …": a bound that is NaN is no bound
    return low is None or high is None or not (low >= 1 / MAX_CONTROL and high <= MAX_CONTROL)


def is_level(control: Ratio) -> bool:
    """Whether the interval of the baseline against itself holds 1, as 95 in 100 do."""
    _, low, high = control
    return low is not None and high is not None and low <= 1 <= high


def pick_winner(certified: Sequence[Row], control: Ratio | None, *, objective: str) -> Row | None:
    """The best of what was proven and is faster than the baseline, for sure; None without a level control.

    Where the control, the baseline against itself, is not level, a form must be faster by more than that.
    """
    if control is None or is_noisy(control):
        return None
    _, low, high = control
    assert low is not None
    assert high is not None
    least = 1.0 if is_level(control) else max(high, 1 / low)
    faster = [row for row in certified if row.times_faster and _lowest(row) > least]
    if objective == "size":
        return min(faster, key=lambda row: (row.num_bytes, -row.times_faster), default=None)
    return max(faster, key=lambda row: row.times_faster, default=None)


def _lowest(row: Row) -> float:
    """The lower bound of how many times as fast a form is; 0 where it has none."""
    low = None if row.ratio is None else row.ratio[1]
    return 0.0 if low is None else low


def verdict_of(winner: Row | None, control: Ratio | None, *, num_processes: int, out_of_time: bool) -> Verdict:
    """What a search ends with. control: None where it was not timed. out_of_time: something was left out for that."""
    if winner is not None:
        return Verdict.ACCELERATED
    if out_of_time and (control is None or num_processes < LEAST_PROCESSES):
        return Verdict.UNDECIDED
    if control is not None and is_noisy(control):
        return Verdict.NOISY
    return Verdict.UNDECIDED if out_of_time else Verdict.NOTHING_FASTER
