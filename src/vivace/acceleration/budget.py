"""The time that a search was given: how much is left, and whether a piece of work still fits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

__all__ = ["Budget"]

# writing the bundle, its report and its figure comes after the search: so much is kept for it, and no more than a share
FINISH_SECONDS, FINISH_SHARE = 3.0, 0.1
# a search that took longer than it was given by more than this says so
MAX_OVERRUN = 1.05
# a search that decided nothing is told to try so many times its time, or what the step that did not fit takes
ENOUGH, SAFETY = 2.0, 1.5


class Budget:
    """Seconds for a search, from `started` on; without any there is no limit, and everything fits."""

    def __init__(self, seconds: float | None = None, *, started: float | None = None) -> None:
        """started: of time.monotonic, when the process began or the function was called; None: now."""
        self.seconds = seconds
        self.started = time.monotonic() if started is None else started
        self._slowest: dict[str, float] = {}
        self._refused: tuple[float, float] | None = None

    @property
    def deadline(self) -> float:
        """Of time.monotonic, when the search must end; infinite without a limit."""
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
        """The moment, of time.monotonic, at which this share of what is left now will be gone."""
        return time.monotonic() + share * self.seconds_left()

    def fits(self, kind: str, *, seconds: float = 0.0, until: float | None = None) -> bool:
        """Whether work of a kind can end in time, by the longest of its kind so far, or by `seconds`."""
        left = (self.deadline if until is None else min(until, self.deadline)) - time.monotonic()
        needed = max(seconds, self._slowest.get(kind, 0.0))
        if left <= needed:
            self._refused = needed, max(0.0, left)
        return left > needed

    @contextlib.contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        """Remember how long the block took, as work of this kind; one that fails says nothing of the others."""
        began = time.monotonic()
        yield
        self._slowest[kind] = max(self._slowest.get(kind, 0.0), time.monotonic() - began)

    def shortfall(self) -> str | None:
        """What was left of the time, why nothing more was begun in it, and how much might do; None without a limit."""
        if self.seconds is None:
            return None
        left = max(0.0, self.seconds - self.elapsed())
        why, enough = "what was begun did not end in its share of the time", ENOUGH * self.seconds
        if self._refused is not None and self._refused[0] > 0:
            needed, had = self._refused
            why = f"the next step was estimated at {needed:.0f} s, {had:.0f} s were left for it"
            enough = max(enough, self.seconds - had + SAFETY * needed)
        asked = f"{math.ceil(enough / 60)}m" if enough > 60 else f"{math.ceil(enough)}s"
        return f"{left:.0f} s of {self.seconds:g} s were left when the search ended: {why}. Try --within {asked}"

    def overrun(self) -> str | None:
        """A warning where more than 5 % more time went by than was given."""
        if self.seconds is None or self.elapsed() <= MAX_OVERRUN * self.seconds:
            return None
        return f"it took {self.elapsed():.0f} s, and {self.seconds:g} s were given"
