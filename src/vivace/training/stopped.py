"""What is left of a run that a signal stops outside of its loop, which saves by itself (no torch here)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

from vivace.errors import Interrupted
from vivace.manifest import holds_bundle
from vivace.training.loop.signals import Stopped, raised_signals

__all__ = ["says_what_is_left"]


@contextlib.contextmanager
def says_what_is_left(run: Path, *, is_private: bool) -> Iterator[None]:
    """Within, SIGINT and SIGTERM outside of the loop, which saves by itself, raise Interrupted: what is kept, and how
    to go on. is_private: whether training is, which never goes on."""
    with raised_signals():
        try:
            yield
        except Stopped as stopped:
            said = (_left_of_private if is_private else _left)(run)
            raise Interrupted(
                f"stopped by {Signals(stopped.number).name} {said}", signal_number=stopped.number
            ) from None


def _left(run: Path) -> str:
    if not (run / "recipe.yaml").is_file():
        return "before the run began: nothing was written, give the same command again"
    return "outside of the steps of training, which are saved; go on with `resume=True`"


def _left_of_private(run: Path) -> str:
    if not (run / "recipe.yaml").is_file():
        return (
            "in private training: nothing was written, and unless an accuracy was shown nothing was released, so no "
            "epsilon was spent. It can't go on, as what drew its images and noise is kept nowhere: give the same "
            "command again"
        )
    if holds_bundle(run / "bundle"):
        return f"after private training: the bundle is saved in {run}, what follows it, as the report, may be missing"
    return (
        f"after private training and before its bundle was saved. It can't go on: start a new run. {run} may hold "
        "weights: whoever sees them and those of the new run has seen both, and their epsilons add up"
    )
