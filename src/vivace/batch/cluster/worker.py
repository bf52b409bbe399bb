"""What runs in each process of a cluster: a bundle, opened once, that classifies the batches it is sent."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vivace.batch.pipeline import GROUP, Batch, decoded, outcomes_of
from vivace.errors import BundleError, VivaceError
from vivace.files import sha256_of
from vivace.predictor import Predictor
from vivace.sources.items import Item, NotHere, file_item

__all__ = ["Answer", "Facts", "Job", "Worker", "version_of_vivace"]


@dataclass(frozen=True)
class Job:
    """What every worker is started with."""

    bundle: str
    """Its folder, absolute, the same path on each machine."""
    bundle_sha256: str
    """Of its bundle.json, which names the hashes of all other files."""
    version: str
    """Of vivace, where the rows are written."""
    options: dict[str, Any]
    """Those of `Predictor`."""
    topk: int
    features: bool
    """Whether the features of images are asked for."""


@dataclass(frozen=True)
class Facts:
    """What a worker computes with, which must be the same for all of them."""

    runtime: str
    precision: str
    device: str
    pid: int = 0
    machine: str = ""

    @property
    def same(self) -> tuple[str, str, str]:
        """What must be the same; of several GPUs each worker has one."""
        return self.runtime, self.precision, self.device.partition(":")[0]


@dataclass(frozen=True)
class Answer:
    """What came of a call: one of these."""

    facts: Facts | None = None
    batch: Batch | None = None
    """Without its items, which whoever asked has."""
    not_here: bool = False
    """An image's file is not on this machine as it is where the rows are written: its bytes are needed."""
    error: tuple[str, str] | None = None
    """The name and message of a VivaceError, which ends the run: errors of images are outcomes."""

    def checked(self) -> Answer:
        """Itself. Raises the error."""
        if self.error is None:
            return self
        from vivace import errors

        kind = getattr(errors, self.error[0], VivaceError)
        raised: VivaceError = kind.__new__(kind)
        raised.args = (self.error[1],)
        raise raised


class Worker:
    """A bundle in a process of its own. Threads may call it at the same time, once it is open."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def open(self) -> Answer:
        """Opens the bundle; what it computes with, or what is wrong."""
        return _answered(self._open)

    def _open(self) -> Answer:
        from vivace.batch.embeddings import embedder_of
        from vivace.cachedir import default_cache_dir
        from vivace.kernels.resize import use_fast_resize

        job, machine = self._job, platform.node()
        if (own := version_of_vivace()) != job.version:
            raise VivaceError(
                f"the versions of vivace differ: {job.version} here, {own} on {machine}. Install the same on every "
                "machine of the cluster."
            )
        place = Path(job.bundle, "bundle.json")
        if not place.is_file() or sha256_of(place) != job.bundle_sha256:
            raise BundleError(
                f"the bundle is not on {machine}, or another one is: {job.bundle}. Put it there, or into a folder that "
                "all machines of the cluster see."
            )
        self._predictor = Predictor(job.bundle, **job.options)
        self._embedder = embedder_of(self._predictor) if job.features else None
        # pixels are the same: who uses a cluster has many images
        use_fast_resize(default_cache_dir() / "kernels")
        self._pool = ThreadPoolExecutor(self._predictor.workers)
        found = self._predictor
        return Answer(facts=Facts(found.runtime, found.precision, found.device_name, os.getpid(), machine))

    def classify(self, items: list[Item], *, small: bool) -> Answer:
        """The outcomes of a batch. small: it is the only one, and need not be filled up."""
        return _answered(lambda: self._classify(items, small))

    def _classify(self, items: list[Item], small: bool) -> Answer:
        load = self._predictor.bundle.preprocess.load
        groups = [items[start : start + GROUP] for start in range(0, len(items), GROUP)]
        try:
            found = [pixels for part in self._pool.map(lambda group: _here(group, load), groups) for pixels in part]
        except NotHere:
            return Answer(not_here=True)
        batch = outcomes_of(items, found, self._predictor, self._job.topk, small=small, embedder=self._embedder)
        return Answer(batch=Batch([], batch.outcomes, batch.features))


def version_of_vivace() -> str:
    """Of this installation."""
    return metadata.version("vivace")


def _here(items: list[Item], load: Callable[[Any], Any]) -> list[Any]:
    """The pixels of images. Raises NotHere for a file that is another here, or none."""
    for item in items:
        if item.path is not None and file_item(item.path).stamp != item.stamp:
            raise NotHere(item.path)
    return decoded(items, load)


def _answered(work: Callable[[], Answer]) -> Answer:
    """What it gives; of an error of ours its name and message, as not every error can be sent."""
    try:
        return work()
    except VivaceError as error:
        return Answer(error=(type(error).__name__, str(error)))
