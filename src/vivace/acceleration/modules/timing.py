"""Times calls of several programs in this process, interleaved, and says whether one is faster than the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vivace.acceleration import decide
from vivace.acceleration.budget import Budget
from vivace.measure import TimeUp, time_call
from vivace.statistics.intervals import Ratio, student_ratio

__all__ = [
    "FINAL_ROUNDS",
    "FINAL_ROUND_MS",
    "SETTLE_MS",
    "Judged",
    "Timer",
    "judge",
    "per_call_ms",
    "ratio_of",
    "rounds",
]

# rounds of the first timing of a search, and of the last. A round is as long as this at least, or one call: timers and
# interrupts matter less
FIRST_ROUNDS, FINAL_ROUNDS = 3, 11
FIRST_ROUND_MS, FINAL_ROUND_MS = 30.0, 60.0
# what was so many times as fast as the baseline in the first timing is timed in fewer last rounds
CLEAR, CLEAR_ROUNDS = 1.5, 5
# what takes as many times as long as the module as it is is not timed for longer
HOPELESS = 3.0
# fraction of a short time budget that all last rounds of one function may take
FINAL_SHARE = 0.02
# after a program with threads of its own (OpenVINO, ONNX Runtime), calls of the next one take up to three times as long
# for 50 to 120 ms, until the system has spread its threads over the cores again: docs/log/2026-11-29.md. Whoever uses
# one program alone never sees that, so it is no part of a round
SETTLE_MS = 120.0
# the largest block that glibc learns from (DEFAULT_MMAP_THRESHOLD_MAX of malloc/malloc.c, 32 MiB), less its header
LEARNED_BYTES = 2**25 - 2**16


def rounds(
    functions: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    num_rounds: int,
    round_ms: float = FIRST_ROUND_MS,
    stop: Callable[[], bool] = lambda: False,
    hopeless: float = float("inf"),
) -> np.ndarray:
    """Milliseconds per call, [rounds, functions], after two calls of each; in every second round in reverse order.

    A round of a function is the median of calls that take `round_ms` together, one at least; where another function
    ran before it, it is first called for SETTLE_MS. stop: asked before each round: there are fewer then. hopeless:
    of a function that takes that many times as long as the first one, the calls before the rounds are all. Raises
    TimeUp if there are fewer than two rounds by then.
    """
    _keep_freed_memory()
    first = [min(time_call(function, device) for _ in range(2)) for function in functions]
    worthy = [place for place, ms in enumerate(first) if place == 0 or ms <= hopeless * first[0]]
    if len(worthy) == 1 < len(functions):
        return np.array([first, first])
    found: list[np.ndarray] = []
    previous: Callable[[], object] | None = None
    for index in range(num_rounds):
        if stop():
            break
        row = np.array(first)
        for place in reversed(worthy) if index % 2 else worthy:
            if functions[place] is not previous:
                _calls_ms(functions[place], SETTLE_MS, device)
            row[place] = float(np.median(_calls_ms(functions[place], round_ms, device)))
            previous = functions[place]
        found.append(row)
    if len(found) < 2:
        raise TimeUp
    return np.array(found)


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors of up to 32 MB free, up to 64 MB, as in a process that once freed such a tensor.

    What it gives back to the system is cleared anew, page by page, when it is allocated again. Whether it does so
    depends on what else lies in memory: the same calls of PyTorch took 12 or 22 ms, which is no property of the module.
    """
    # freed at once; its pages are never touched
    torch.empty(LEARNED_BYTES, dtype=torch.uint8)


def _calls_ms(function: Callable[[], object], least_ms: float, device: torch.device) -> list[float]:
    """Milliseconds of each of so many calls that all together take `least_ms`."""
    found = [time_call(function, device)]
    total = found[0]
    while total < least_ms:
        found.append(time_call(function, device))
        total += found[-1]
    return found


def per_call_ms(times_RF: np.ndarray, place: int) -> float:
    """Median time of a call of one function, ms."""
    return float(np.median(times_RF[:, place]))


def ratio_of(times_RF: np.ndarray, baseline: int, candidate: int) -> Ratio:
    """(speedup, low, high) of a candidate over a baseline, with Student's 95 % interval over the rounds."""
    return student_ratio(list(times_RF[:, baseline] / times_RF[:, candidate]))


class Timer:
    """The timings of a search, within its time budget. All raise TimeUp at its end."""

    def __init__(self, device: torch.device, budget: Budget, tell: Callable[[str], None]) -> None:
        self._device, self._budget, self._tell = device, budget, tell

    def first(self, functions: Sequence[Callable[[], object]]) -> np.ndarray:
        """Times as `rounds`, the module as it is first: what disturbs them disturbs all."""
        return self._rounds(functions, FIRST_ROUNDS, FIRST_ROUND_MS, hopeless=HOPELESS)

    def final(
        self, baseline: Callable[[], object], candidate: Callable[[], object], *, expected: float = 1.0
    ) -> np.ndarray:
        """Times of (baseline, candidate, baseline) for `judge`.

        expected: how many times as fast as the baseline the candidate was. If that is much, in few rounds; then in all
        if it does not show, or, as for any other, if the baseline differed too much from itself and the time allows it.
        """
        functions, is_clear = [baseline, candidate, baseline], expected >= CLEAR
        times = self._final_rounds(functions, CLEAR_ROUNDS if is_clear else FINAL_ROUNDS)
        judged = judge(times)
        if judged.is_noisy:
            self._tell("the machine was busy with something else: timing once more")
        elif judged.is_faster or not is_clear:
            return times
        if self._budget.seconds_left() < self.final_seconds(per_call_ms(times, 0)):
            return times
        return self._final_rounds(functions, FINAL_ROUNDS)

    def final_seconds(self, baseline_ms: float) -> float:
        """About how long all final rounds of a candidate take."""
        return FINAL_ROUNDS * (3 * max(FINAL_ROUND_MS, baseline_ms) + 2 * max(SETTLE_MS, baseline_ms)) / 1e3

    def _final_rounds(self, functions: Sequence[Callable[[], object]], num: int) -> np.ndarray:
        shared_ms = 1e3 * FINAL_SHARE * (self._budget.seconds or float("inf")) / FINAL_ROUNDS
        return self._rounds(functions, num, min(FINAL_ROUND_MS, shared_ms))

    def _rounds(
        self, functions: Sequence[Callable[[], object]], num: int, ms: float, *, hopeless: float = float("inf")
    ) -> np.ndarray:
        return rounds(
            functions,
            self._device,
            num_rounds=num,
            round_ms=ms,
            hopeless=hopeless,
            stop=lambda: self._budget.seconds_left() <= 0,
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What rounds of (baseline, candidate, baseline) say."""

    ratio: Ratio
    """Of the candidate to the baseline."""
    aa_test: Ratio
    """Of the baseline to itself."""

    @property
    def is_noisy(self) -> bool:
        """Whether the baseline differs too much from itself for a verdict, but for one that is beyond doubt."""
        return decide.is_noisy(self.aa_test)

    @property
    def is_faster(self) -> bool:
        """Whether the candidate is faster for sure: by more than the baseline may differ from itself, where it does."""
        return (self.ratio[1] or 0.0) > self._least

    @property
    def _least(self) -> float:
        _, low, high = self.aa_test
        if decide.is_level(self.aa_test) and not self.is_noisy:
            return 1.0
        return max(high or float("inf"), 1 / low if low else float("inf"))


def judge(times_R3: np.ndarray) -> Judged:
    """The verdict on a candidate from rounds of (baseline, candidate, baseline)."""
    return Judged(ratio=ratio_of(times_R3, 0, 1), aa_test=ratio_of(times_R3, 0, 2))
