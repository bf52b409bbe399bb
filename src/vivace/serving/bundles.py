"""The bundles that are served, by name: each with its predictor and batcher, and opened anew without a gap."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import load_bundle
from vivace.errors import BundleError, ConfigError, VivaceError, nearest
from vivace.predictor import Predictor
from vivace.runtimes.table import REFERENCE
from vivace.serving.batching import Batcher, Decoders
from vivace.serving.drift import DriftMonitor, Unwatched, watch_for
from vivace.serving.heat import HeatMaps
from vivace.serving.metrics import Meters
from vivace.serving.settings import Settings
from vivace.serving.trial import FIRST, SIZES, Batching, Trial, finished, trial_steps
from vivace.serving.web.logs import Log
from vivace.serving.web.refusals import Refusal

__all__ = ["Bundles", "Served", "named"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def named(folders: list[str]) -> dict[str, Path]:
    """name → folder of bundles given as NAME=FOLDER or FOLDER, whose name is then that of the folder or run.

    Raises ConfigError for a name that can't be part of a URL, and for two bundles of one name.
    """
    found: dict[str, Path] = {}
    for given in folders:
        name, separator, place = given.partition("=")
        shown = name
        if not separator or Path(given).exists():
            folder = Path(given)
            # a run's bundle lies in a folder of that name, in the run's
            parts = [part for part in folder.absolute().parts if part not in ("/", "bundle")]
            shown = parts[-1] if parts else "bundle"
            name, place = re.sub(r"[^A-Za-z0-9._-]+", "-", shown).strip(".-_"), given
        if not NAME.fullmatch(name):
            raise ConfigError(
                "a bundle's name is part of URLs, of ASCII letters, digits, and ._- after the first: got "
                f"{shown[:80]!r}. Give one before the folder: NAME={place[:200]}"
            )
        if name in found:
            raise ConfigError(
                f"two bundles have the name {name!r}: {found[name]} and {place}. Name them: {name}-2={place}"
            )
        found[name] = Path(place)
    if not found:
        raise ConfigError("BUNDLE is missing: got no bundle. Give a bundle's folder, or a run's.")
    return found


@dataclass(frozen=True)
class Served:
    """A bundle that answers."""

    name: str
    folder: Path
    predictor: Predictor
    batcher: Batcher
    generation: int
    """1 for the first of this name; one more after each reload."""
    opened_at: float
    """Unix time."""
    drift: DriftMonitor | Unwatched
    heat: HeatMaps

    async def stop(self) -> None:
        """End its threads once all images that it took are through."""
        await self.batcher.stop()
        await asyncio.get_running_loop().run_in_executor(None, self.heat.close)

    def describe(self) -> dict[str, Any]:
        """What clients may know of it: no folder of this machine."""
        info = self.predictor.bundle.info
        return {
            "name": self.name,
            "classes": list(info.classes),
            "task": info.task,
            "network": info.architecture.name,
            "size": info.preprocess.size,
            "channels": info.preprocess.channels,
            "pixels": info.preprocess.dtype,
            "runtime": self.predictor.runtime,
            "precision": self.predictor.precision,
            "max_batch": self.batcher.max_batch,
            "max_wait_ms": round(self.batcher.max_wait * 1000, 3),
            "generation": self.generation,
            "drift": self.drift.describe(),
            "heat_map": self.heat.describe(),
        }


class Bundles:
    """All bundles of a server; the first is the one that answers where none is named."""

    def __init__(
        self, folders: Mapping[str, Path], settings: Settings, meters: Meters, log: Log, *, threads: int | None = None
    ) -> None:
        self._folders, self._settings, self._meters, self._log = dict(folders), settings, meters, log
        self._threads = threads
        self._retiring: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        opened = {name: self._opened(name, generation=1) for name in self._folders}
        self.decoders = Decoders(max(predictor.workers for predictor, _, _ in opened.values()))
        self._served = {name: self._running(name, *found, generation=1) for name, found in opened.items()}

    @property
    def names(self) -> list[str]:
        return list(self._served)

    @property
    def all(self) -> list[Served]:
        return list(self._served.values())

    def get(self, name: str | None) -> Served:
        """The bundle of this name, the first one for None. Raises Refusal (404) for a name that is none."""
        if name is None:
            return next(iter(self._served.values()))
        found = self._served.get(name)
        if found is None:
            raise Refusal(
                404,
                "unknown_bundle",
                f"no bundle has this name: got {name[:80]!r}.{nearest(name, self.names)} Known: "
                f"{', '.join(self.names[:20])}.",
            )
        return found

    async def reload(self) -> bool:
        """Open every bundle's folder anew, beside the one that answers, and let it answer from then on.

        One that can't be opened, or whose check fails, is refused: the one before it goes on. Whether all were taken.
        Requests that have begun end with the bundle that they began with.
        """
        async with self._reloading:
            return all([await self._reload(name) for name in self.names])

    async def _reload(self, name: str) -> bool:
        old, loop = self._served[name], asyncio.get_running_loop()
        generation = old.generation + 1
        try:
            found = await loop.run_in_executor(None, lambda: self._opened(name, generation=generation))
        except (VivaceError, MemoryError) as error:
            self._meters.reloads.labels(name, "refused").inc()
            self._log.event("reload_refused", level="error", bundle=name, reason=str(error)[:500])
            return False
        self._served[name] = self._running(name, *found, generation=generation)
        self._meters.reloads.labels(name, "taken").inc()
        if old.predictor.classes != found[0].classes:
            self._log.event("classes_changed", level="warning", bundle=name, classes=len(found[0].classes))
        # those that it has are answered still
        task = asyncio.create_task(old.stop())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    async def stop(self) -> None:
        """Answer what was taken, then end all threads."""
        await asyncio.gather(*self._retiring, *(served.stop() for served in self.all))
        await asyncio.get_running_loop().run_in_executor(None, self.decoders.stop)

    def _opened(self, name: str, *, generation: int) -> tuple[Predictor, Batching, Trial | None]:
        """A predictor of the folder that has answered, its batching, and the trial that is to choose a better one.

        The first answer does not wait for a trial. Raises BundleError if the folder does not do.
        """
        settings = self._settings
        bundle = load_bundle(self._folders[name])
        _check_certificate(bundle)
        predictor = Predictor(bundle, batch_size=settings.max_batch or max(SIZES), threads=self._threads)
        size, channels = predictor.bundle.preprocess.size, predictor.bundle.preprocess.channels
        # what it answers is checked there: probabilities, as many as there are classes
        predictor.probs(np.full((1, size, size, channels), 1, predictor.bundle.preprocess.dtype))
        trial = None
        if settings.max_batch is not None:
            batching = self._waiting(Batching(settings.max_batch, 0.002 if settings.max_batch > 1 else 0.0, {}))
        else:
            batching, trial = self._waiting(FIRST), self._trial(predictor)
            if generation > 1:
                # the one before answers meanwhile
                batching, trial = finished(trial), None
        self._log.event(
            "bundle_opened",
            bundle=name,
            generation=generation,
            runtime=predictor.runtime,
            precision=predictor.precision,
            classes=len(predictor.classes),
            **_told(batching),
        )
        return predictor, batching, trial

    def _trial(self, predictor: Predictor) -> Trial:
        return self._waiting((yield from trial_steps(predictor, self._settings.trial_seconds / len(self._folders))))

    def _waiting(self, batching: Batching) -> Batching:
        """With the time that is set for an image to wait, if any is."""
        wait = self._settings.max_wait_ms
        return batching if wait is None else dataclasses.replace(batching, max_wait=wait / 1000)

    def _running(
        self, name: str, predictor: Predictor, batching: Batching, trial: Trial | None, *, generation: int
    ) -> Served:
        def drifted(told: dict[str, Any]) -> None:
            self._log.event("drift", level="warning", bundle=name, generation=generation, **told)

        drift = watch_for(predictor.bundle, self._meters.of_drift(name), drifted)
        if isinstance(drift, Unwatched):
            self._log.event("drift_not_watched", bundle=name, reason=drift.reason)

        def chosen(found: Batching | None, problem: str) -> None:
            told = {"reason": problem[:500]} if found is None else _told(found)
            level = "warning" if found is None else "info"
            self._log.event("batching_chosen", level=level, bundle=name, generation=generation, **told)

        batcher = Batcher(
            predictor,
            self.decoders,
            self._meters.of_bundle(name),
            max_batch=batching.max_batch,
            max_wait=batching.max_wait,
            capacity=self._settings.queue,
            observe=drift.observe,
            patience=self._settings.answer_seconds,
            trial=trial,
            on_chosen=chosen,
        )
        return Served(
            name=name,
            folder=self._folders[name],
            predictor=predictor,
            batcher=batcher,
            generation=generation,
            opened_at=time.time(),
            drift=drift,
            heat=HeatMaps(predictor),
        )


def _told(batching: Batching) -> dict[str, Any]:
    """What the log says of a batching."""
    return {
        "max_batch": batching.max_batch,
        "max_wait_ms": round(batching.max_wait * 1000, 3),
        "trial_ms": {str(count): round(1000 * seconds, 2) for count, seconds in batching.seconds.items()},
    }


def _check_certificate(bundle: Any) -> None:
    """Raises BundleError for a bundle of another runtime whose own certificate of parity does not hold."""
    parity, needed = bundle.info.parity, bundle.info.parity.get("agreement_needed", 1.0)
    agreement = parity.get("top1_agreement", parity.get("set_agreement", 1.0))
    if bundle.info.runtime == REFERENCE or not parity:
        return
    if parity["max_difference"] > parity.get("tolerance", 1.0) or agreement < needed:
        raise BundleError(
            f"the bundle's certificate says that it does not agree with PyTorch: {bundle.folder} (agreement "
            f"{agreement:.2%}, difference {parity['max_difference']:.2g}). Export it again."
        )
