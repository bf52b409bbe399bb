"""What `vivace.train` adds at the end of a run: packages that stand above training are given to it (no torch here)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vivace.data.audit import Audit
from vivace.errors import MissingExtra, first_line
from vivace.metrics.measured import Measured
from vivace.notices import warn

if TYPE_CHECKING:
    import numpy as np

    from vivace.bundle import Bundle

__all__ = ["Complete", "Finished", "written_report"]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run whose files are written, and what it measured last."""

    run: Path
    bundle: Bundle
    measured: Mapping[str, Measured]
    """The answers to "val" and, if there is one, "test"."""
    audit: Audit
    folders: tuple[Path, ...]
    """Below which the images lie."""


@dataclass(frozen=True, kw_only=True)
class Complete:
    """What is done at the end of a run."""

    graph: Callable[[Bundle, np.ndarray, str], str | None]
    """(bundle of a network of the user's own, with its code; images_NHWC uint8 at its size; what they are) → why it
    got no graph that runs without the code, or None."""
    report: Callable[[Finished], Path]
    """Writes a report of the run and gives its path."""


def written_report(complete: Complete | None, finished: Callable[[], Finished]) -> Path | None:
    """The report, or None: where its library is not installed, and, with a warning, where it can't be written.

    The run is finished by then, and nothing that a report meets may take that back.
    """
    if complete is None:
        return None
    try:
        return complete.report(finished())
    except MissingExtra:
        return None
    except Exception as error:
        warn(f"the report was not written: {type(error).__name__}: {first_line(error)}")
        return None
