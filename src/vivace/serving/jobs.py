"""The images of a request on their way through the batcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vivace.serving.web.refusals import Refusal

__all__ = ["Item", "Job", "Source"]

Source = bytes | np.ndarray
clock = time.perf_counter


class Item:
    """One image on its way."""

    __slots__ = ("decided", "error", "job", "pixels", "probs", "ready", "source")

    def __init__(self, job: Job, source: Source) -> None:
        self.job = job
        self.source: Source | None = source
        """An encoded file, or pixels as the network sees them."""
        self.pixels: np.ndarray | None = None
        self.probs: np.ndarray | None = None
        """float32 [K], once it is classified."""
        self.decided: tuple[Any, int] | None = None
        """What the bundle's thresholds say of its batch, and its place there; None: the bundle has none."""
        self.error: Refusal | None = None
        self.ready = 0.0


class Job:
    """The images of one request."""

    __slots__ = ("done", "gone", "items", "late", "left", "live", "started")

    def __init__(self, images: Sequence[Source], seconds: float, *, live: bool = True) -> None:
        self.started = clock()
        self.late = self.started + seconds
        """When it is not worth working on any more."""
        self.gone = False
        """Whether the client has left."""
        self.live = live
        """Whether its images count as live traffic, whose drift is watched."""
        self.items = [Item(self, image) for image in images]
        self.left = len(self.items)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        """The client has left: what was not begun is passed over."""
        self.gone = True
        if not self.done.done():
            self.done.set_result(None)
