"""The time budget of a search: how much is left, and whether a piece of work still fits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

__all__ = ["Budget", "now"]

# reserved for writing the bundle, its report and figure after the search: seconds, but at most this fraction
FINISH_SECONDS, FINISH_SHARE = 3.0, 0.1
# a search that exceeds its budget by more than this factor warns
MAX_OVERRUN = 1.05
# what a search that decided nothing suggests: this factor times the budget, or time for the step that did not fit
ENOUGH, SAFETY = 2.0, 1.5


def now() -> float:
    """The clock of budgets, s: what they are counted from."""
    return time.monotonic()


class Budget:
    """Seconds for a search, counted from `started`; None: no limit."""

    def __init__(self, seconds: float | None = None, *, started: float | None = None) -> None:
        """started: time.monotonic() when the process began or the function was called; None: now."""
        self.seconds = seconds
        self.started = time.monotonic() if started is None else started
        self._slowest: dict[str, float] = {}
        self._refused: tuple[float, float] | None = None

    @property
    def deadline(self) -> float:
        """time.monotonic() when the search must end; infinite without a limit."""
        if self.seconds is None:
            return float("inf")
        return self.started + self.seconds - min(FINISH_SECONDS, FINISH_SHARE * self.seconds)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float:
        """Until the deadline; infinite without one."""
        return self.deadline - time.monotonic()

    def after(self, share: float) -> float:
        """time.monotonic() when this fraction of what is left now will have passed."""
        return time.monotonic() + share * self.seconds_left()

    def fits(self, kind: str, *, seconds: float = 0.0, until: float | None = None) -> bool:
        """Whether work can end in time, estimated by the longest of its kind so far and by `seconds`."""
        left = (self.deadline if until is None else min(until, self.deadline)) - time.monotonic()
        needed = max(seconds, self._slowest.get(kind, 0.0))
        if left <= needed:
            self._refused = needed, max(0.0, left)
        return left > needed

    @contextlib.contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        """Record how long the block took, as work of this kind; not if it raises."""
        began = time.monotonic()
        yield
        self._slowest[kind] = max(self._slowest.get(kind, 0.0), time.monotonic() - began)

    def shortfall(self) -> str | None:
        """How much time was left, why nothing more was started, and how much to give; None without a limit."""
        if self.seconds is None:
            return None
        left = max(0.0, self.seconds - self.elapsed())
        why, enough = (
            "what was started did not end in its share of the time",
            ENOUGH * max(self.seconds, self.elapsed()),
        )
        if self._refused is not None and self._refused[0] > 0:
            needed, had = self._refused
            why = f"the next step was estimated at {needed:.0f} s, {had:.0f} s of its share were left"
            enough = max(enough, self.seconds - had + SAFETY * needed)
        asked = f"{math.ceil(enough / 60)}m" if enough > 60 else f"{math.ceil(enough)}s"
        return f"{left:.0f} s of {self.seconds:g} s were left when the search ended: {why}. Try `within={asked!r}`"

    def overrun(self) -> str | None:
        """A warning if the budget was exceeded by more than 5 %; else None."""
        if self.seconds is None or self.elapsed() <= MAX_OVERRUN * self.seconds:
            return None
        return f"it took {self.elapsed():.0f} s, and the time budget was {self.seconds:g} s"
