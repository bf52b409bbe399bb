"""Which engine computes: this process, or workers of a Ray cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from vivace.bundle import Bundle
from vivace.config import check_choice
from vivace.errors import ConfigError
from vivace.predictor import Predictor, check_whole, predictor_for

if TYPE_CHECKING:
    from vivace.batch.cluster.engine import RayEngine

__all__ = ["ENGINES", "engine_for", "predictor_beside"]

ENGINES = ("local", "ray")


def engine_for(
    name: str,
    bundle: Bundle | Predictor | str | Path,
    *,
    workers: int | None,
    ray_address: str | None,
    threads: int | None,
    device: str,
    precision: str,
) -> contextlib.AbstractContextManager[RayEngine | None]:
    """A context with the engine of this name; None: this process computes.

    Raises ConfigError for an unknown one, or for options that go with another; MissingExtra without Ray.
    """
    check_choice("engine", name, ENGINES)
    if name == "local":
        for option, given in (("workers", workers), ("ray_address", ray_address)):
            if given is not None:
                raise ConfigError(f"`{option}` goes with `engine='ray'`: got {given!r} without it. Leave it out.")
        return contextlib.nullcontext()
    if workers is not None:
        check_whole("workers", workers)
    if threads is not None:
        check_whole("threads", threads)
    from vivace.batch.cluster.engine import RayEngine, check_ray

    check_ray()
    own = isinstance(bundle, Predictor)
    return RayEngine(workers, threads, ray_address, None if own else device, precision)


def predictor_beside(
    engine: RayEngine | None,
    bundle: Bundle | Predictor | str | Path,
    device: str,
    batch_size: int,
    precision: str,
    threads: int | None,
    *,
    coverage: float | None,
    abstain: float | None,
    decode: str = "fine",
) -> Predictor:
    """As `predictor_for`; beside an engine one that only says what the bundle is, on the processor that is there."""
    if engine is not None and not isinstance(bundle, Predictor):
        device, precision, threads = "cpu", "auto", None
    return predictor_for(
        bundle, device, batch_size, precision, threads, coverage=coverage, abstain=abstain, decode=decode
    )
