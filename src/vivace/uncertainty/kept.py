"""What a bundle tells of its answers that holds for another one with the same weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from vivace.runtimes.table import RUNTIMES, is_quantized
from vivace.uncertainty.record import FEATURES, UNCERTAINTY
from vivace.uncertainty.validated import VALIDATED

__all__ = ["answers_kept"]


class Runs(Protocol):
    """What a bundle runs on."""

    @property
    def runtime(self) -> str: ...
    @property
    def precision(self) -> str: ...


def answers_kept(files: Collection[str], old: Runs, new: Runs, folder: Path) -> list[str]:
    """Those of `files`, of a bundle, that one derived from it gets, unless its `folder` has its own."""
    # in 8 bits answers differ by more than a certificate of parity allows others
    if is_quantized(new.precision) and new.precision != old.precision:
        return []
    names = [] if (folder / VALIDATED).exists() else [VALIDATED]
    if not (folder / UNCERTAINTY).exists():
        # graphs give probabilities alone
        names += [UNCERTAINTY, *([FEATURES] if RUNTIMES[new.runtime].takes_network else [])]
    return [name for name in names if name in files]
