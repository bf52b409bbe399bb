"""How the steps of a search are run: within its time, told as they begin, and noted where they are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vivace.acceleration.budget import Budget
from vivace.acceleration.worker import Worker

__all__ = ["Steps"]

P = ParamSpec("P")
T = TypeVar("T")


class Steps:
    """Runs the steps of a search. Without a limit of time they run in this process."""

    def __init__(self, budget: Budget, on_message: Callable[[str], None] = lambda message: None) -> None:
        self.budget = budget
        self.tell = on_message
        self.notes: list[str] = []
        """What failed or was passed over beside the rows, for the report."""
        self.left_out: list[str] = []
        """What was not started or was abandoned for want of time, for the report."""
        self._worker = Worker()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """function(*args, **kwargs), in a process that is ended at the deadline where there is one.

        Raises OutOfTime then, and what the function raises.
        """
        return self.run_until(self.budget.deadline, function, *args, **kwargs)

    def run_until(self, until: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, with an earlier end, of time.monotonic."""
        if self.budget.seconds is None:
            return function(*args, **kwargs)
        return self._worker.run(min(until, self.budget.deadline), function, *args, **kwargs)

    def note(self, message: str) -> None:
        """Tell something now, and in the report."""
        self.tell(message)
        self.notes.append(message)

    def leave_out(self, what: str) -> None:
        """Note work that was not started, or abandoned, for want of time."""
        self.tell(f"out of time: {what}")
        self.left_out.append(what)

    def close(self) -> None:
        """End what still runs."""
        self._worker.close()
