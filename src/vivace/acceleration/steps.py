"""Runs the steps of a search within its time budget; reports them as they begin, and notes what is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vivace.acceleration.budget import Budget
from vivace.acceleration.worker import Worker

__all__ = ["Steps"]

P = ParamSpec("P")
T = TypeVar("T")


class Steps:
    """Runs the steps of a search. Without a time budget they run in this process."""

    def __init__(self, budget: Budget, on_message: Callable[[str], None] = lambda message: None) -> None:
        self.budget = budget
        self.tell = on_message
        self.notes: list[str] = []
        """For the report: what failed or was skipped and has no row of its own."""
        self.left_out: list[str] = []
        """For the report: what was not started, or was abandoned, because the time budget ended."""
        self._worker = Worker()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """function(*args, **kwargs), in a process that is ended at the deadline, if there is one.

        Raises OutOfTime at the deadline, and what the function raises.
        """
        return self.run_until(self.budget.deadline, function, *args, **kwargs)

    def run_until(self, until: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `run`, with an earlier deadline, of time.monotonic()."""
        if self.budget.seconds is None:
            return function(*args, **kwargs)
        return self._worker.run(min(until, self.budget.deadline), function, *args, **kwargs)

    def note(self, message: str) -> None:
        """Report something now, and in the final report."""
        self.tell(message)
        self.notes.append(message)

    def leave_out(self, what: str) -> None:
        """Note work that was not started, or was abandoned, because the time budget ended."""
        self.tell(f"out of time: {what}")
        self.left_out.append(what)

    def close(self) -> None:
        """End the process, if there is one."""
        self._worker.close()
