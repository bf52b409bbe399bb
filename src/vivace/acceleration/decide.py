"""What a search decides, from what was measured: pure functions of rows, which nothing here builds or times.

A row's `ratio` says how many times as fast as the baseline it is; accuracies are those of `selected` and `certified`.

The A/A test, or control, is the baseline timed against itself like any other side. No speed is believed where its 95 %
interval leaves [1 / MAX_CONTROL, MAX_CONTROL], or where too few processes were timed to have one: a machine that makes
two processes of the same program differ by that much makes any two differ. Where the interval is narrower and does not
hold 1, as one in twenty does by chance, a winner has to be faster by more than the control's far bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vivace.acceleration.rows import Outcome, Row, Status, Verdict
from vivace.runtimes import is_quantized
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss, images_to_prove

__all__ = [
    "at_chance",
    "certify_in_order",
    "drop",
    "explain",
    "finalists_of",
    "images_to_certify",
    "is_level",
    "is_noisy",
    "loses_too_much",
    "lost_too_much",
    "nearest",
    "pick_winner",
    "slower_than",
    "undominated",
    "verdict_of",
]

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


def undominated(rows: Sequence[Row], baseline: Row, *, objective: str) -> list[Row]:
    """Rows that may win, in the order of their risk; the others are told why not."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.candidate.risk, -row.times_faster)):
        better = [other for other in [baseline, *front] if _beats(other, row, baseline, objective)]
        if row is baseline or better:
            row.outcome = Outcome(Status.BASELINE, "the baseline") if row is baseline else slower_than(better[0])
            continue
        front.append(row)
    return front


def slower_than(other: Row) -> Outcome:
    """What becomes of a candidate because of a better one."""
    return Outcome(Status.SLOWER, f"slower than {other.name}")


def _beats(other: Row, row: Row, baseline: Row, objective: str) -> bool:
    """Whether a form of less risk leaves `row` nothing to win."""
    smaller = objective == "size" and other is not baseline and row.num_bytes < other.num_bytes
    return other.times_faster > row.times_faster * SLACK and not smaller


def loses_too_much(row: Row, max_drop: float) -> bool:
    """Whether a form is out by what it lost on the images to select on.

    A smaller network answers otherwise on many images: what it loses on few of them is uncertain by points, and it is
    out only where it loses more than the budget by a standard error.
    """
    loss = row.selected or _NONE
    spare = math.sqrt(loss.lost + loss.gained) / loss.num_images if row.candidate.network else 0.0
    return loss.drop - spare > max_drop


def drop(row: Row) -> float:
    """What a form lost on the images to select on, a share; 1 where that is not known."""
    return row.selected.drop if row.selected else 1.0


def lost_too_much(row: Row) -> bool:
    """Whether a form in int8 lost more than the budget when selecting: with some layers in float it may do."""
    return is_quantized(row.candidate.precision) and row.status is Status.INACCURATE


def finalists_of(rows: Sequence[Row]) -> list[Row]:
    """The fastest of each network that were selected, in the order in which they are to be judged.

    Of a smaller network the fastest and the surest: in int8 it may lose points for a hundredth of its time. The model's
    own network first, then the others, and of each the surest first.
    """
    groups = []
    for network, rivals in _by_network(rows).items():
        fastest = sorted(rivals, key=lambda row: -row.times_faster)
        chosen = [fastest[0], min(fastest, key=_bound)] if network else fastest[:MAX_FINALISTS]
        for row in fastest:
            if row not in chosen:
                row.outcome = slower_than(fastest[0])
        kept = [row for row in fastest if row in chosen]
        groups.append(sorted(kept, key=lambda row: (_bound(row), row.candidate.risk)))
    groups.sort(key=lambda group: (bool(group[0].candidate.network), _bound(group[0]), group[0].candidate.network))
    return [row for group in groups for row in group]


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
    """Judge the forms of each network on the images to certify on, in their order, until one fails; the proven ones.

    judge: a row and a confidence → its loss, bounded at that; None where there is no time left. The chance that
    anything is wrongly accepted stays at that of a single test, however many are judged: within a network the sequence
    is fixed (Maurer, Hothorn and Lehmacher 1995), each network has its share of that chance, and one whose forms were
    all proven hands its own on to the next (fallback, Wiens 2003).
    """
    networks = _by_network(finalists)
    handed_on = 0.0
    for rows in networks.values():
        chance = (1 - CONFIDENCE) / len(networks) + handed_on
        # once one is not proven, what becomes of those that come after it
        stopped: Outcome | None = None
        for row in rows:
            if stopped is not None:
                row.outcome = stopped
                continue
            row.certified = judge(row, 1 - chance)
            if row.certified is None:
                row.outcome = stopped = Outcome(Status.OUT_OF_TIME, "not judged: out of time")
            elif row.certified.bound <= max_drop:
                row.outcome = Outcome(Status.CERTIFIED, "certified")
            else:
                row.outcome = Outcome(Status.NOT_PROVEN, "not proven")
                stopped = Outcome(Status.NOT_JUDGED, f"not judged: {row.name} before it was not proven")
        handed_on = chance if stopped is None else 0.0
    return [row for row in finalists if row.status is Status.CERTIFIED]


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


def explain(rows: Sequence[Row], winner: Row | None, control: Ratio | None, max_drop: float) -> list[str]:
    """What a person should know of a search beside its table."""
    notes = []
    for row in rows:
        if row.status is Status.NOT_PROVEN and row.certified is not None:
            notes.append(_unproven(row.name, row.certified, max_drop))
    best = nearest(rows) if winner is None else None
    if best is not None:
        notes.append(f"the best that was not accepted: {best.name}, {_speed_and_loss(best)}")
    return notes if control is None else notes + _about(control)


def _about(control: Ratio) -> list[str]:
    ratio, low, high = control
    if low is None or high is None:
        return ["the baseline was timed against itself in a single process: no interval follows from that"]
    if is_noisy(control):
        return [
            f"{Verdict.NOISY.reason}: the baseline is {ratio:.2f} [{low:.2f}, {high:.2f}] times as fast as itself, and "
            f"no speed is believed outside {1 / MAX_CONTROL:g} to {MAX_CONTROL:g}; search again when nothing else runs"
        ]
    if is_level(control):
        return []
    return [
        f"the baseline in a second process is [{low:.3f}, {high:.3f}] times as fast as in the first: no form is called "
        "faster by less than that"
    ]


def at_chance(rows: Sequence[Row], labels_N: np.ndarray) -> str | None:
    """A warning where the model is right no more often than an answer that is always the same would be."""
    seen = next((loss for row in rows for loss in (row.certified, row.selected) if loss is not None), None)
    if seen is None or not len(labels_N):
        return None
    constant = float(np.bincount(labels_N).max() / len(labels_N))
    # two standard errors of a share
    if seen.top1_before > constant + 2 * math.sqrt(constant * (1 - constant) / seen.num_images):
        return None
    return (
        f"the model is at chance level: {seen.top1_before:.1%} on {seen.num_images:,} images, and always the most "
        f"frequent class gives {constant:.1%}; a bound on what such a model loses says nothing"
    )


def nearest(rows: Sequence[Row]) -> Row | None:
    """Where nothing was accepted, the form that came nearest: of those that are faster, the one of the least bound."""
    faster = [row for row in rows if row.times_faster > 1 and row.selected is not None]
    return min(faster, key=lambda row: (row.certified or row.selected or _NONE).bound, default=None)


_NONE = PairedLoss(num_images=1, top1_before=0, top1_after=0, lost=0, gained=0, bound=1.0, confidence=0.95)


def _speed_and_loss(row: Row) -> str:
    loss = row.certified or row.selected or _NONE
    return (
        f"{row.times_faster:.2f} times as fast, {100 * loss.drop:.2f} points lost on {loss.num_images:,} images, "
        f"at most {100 * loss.bound:.2f}"
    )


def _unproven(name: str, loss: PairedLoss, max_drop: float) -> str:
    needed = images_to_prove(loss, max_drop)
    would = (
        f"about {needed:,} images like these would prove it"
        if needed is not None
        else "no number of images would prove it, for what was lost is not under the budget"
    )
    return (
        f"{name}: {100 * loss.drop:.2f} points lost on {loss.num_images:,} images, at most "
        f"{100 * loss.bound:.2f} with {100 * loss.confidence:.3g} % confidence: not within {100 * max_drop:g}; {would}"
    )
