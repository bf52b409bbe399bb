"""Corruptions and attacks on some of the images that are evaluated."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vivace.config import parse_duration, shown_value
from vivace.data.caching.cache import CachedSplit
from vivace.errors import ConfigError
from vivace.notices import warn
from vivace.predictor import Predictor, check_whole
from vivace.robustness.results import Attacked, Corruptions
from vivace.signals import StopSignals

__all__ = ["Hardened", "Hardship", "chosen_at_random", "measured_under"]

# by default
MOST_IMAGES = 1000
# more than the time for attacks, as a multiple, is told
OVERRUN = 1.1


@dataclass(frozen=True, kw_only=True)
class Hardship:
    """What is to be measured beside the images as they are. Raises ConfigError for values out of range."""

    corruptions: bool = False
    corruption_images: int = MOST_IMAGES
    """At most, chosen at random."""
    attack: str | None = None
    """Such as "linf:8/255"."""
    attack_images: int = MOST_IMAGES
    """At most, chosen at random."""
    attack_methods: tuple[str, ...] = ()
    """Names of attacks; none: all."""
    attack_precision: str = "auto"
    """In which attacks look for points: auto, fp32 or bf16."""
    within: str | float | None = None
    """Time for the attacks."""
    keep_interrupted: bool = False
    """SIGINT and SIGTERM end the attacks as the end of their time does, and are not raised."""
    seed: int = 0
    """Of the choice of images and of everything random in corruptions and attacks."""

    def __post_init__(self) -> None:
        for name in ("corruption_images", "attack_images"):
            check_whole(name, getattr(self, name))
        if not self.corruptions and self.corruption_images != MOST_IMAGES:
            raise ConfigError("corruption_images would be ignored. Give `corruptions` too, or leave it out.")
        unused = {
            "attack_images": self.attack_images != MOST_IMAGES,
            "within": self.within is not None,
            "attack_methods": bool(self.attack_methods),
            "attack_precision": self.attack_precision != "auto",
        }
        if self.attack is None and any(unused.values()):
            name = next(name for name, is_given in unused.items() if is_given)
            raise ConfigError(f"{name} would be ignored: it is for attacks. Give `attack`, such as linf:8/255, too.")
        if self.within is not None:
            parse_duration(self.within)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is out of range: got {shown_value(self.seed)}. Give a whole number below 2**31.")

    def check(self, predictor: Predictor) -> None:
        """Raises ConfigError if what is asked for can't be measured of this bundle."""
        if self.corruptions:
            from vivace.robustness.under_corruptions import check_corruptible

            check_corruptible(predictor)
        if self.attack is not None:
            from vivace.robustness.attacks.threat import Threat
            from vivace.robustness.under_attack import check_attackable, search_precision

            search_precision(predictor, self.attack_precision)
            check_attackable(predictor, Threat.parse(self.attack), self.attack_methods)

    @property
    def seconds(self) -> float | None:
        """For the attacks; None: as long as they take."""
        return None if self.within is None else parse_duration(self.within)


@dataclass(frozen=True, kw_only=True)
class Hardened:
    """What was measured; None: it was not asked for."""

    corruptions: Corruptions | None = None
    attack: Attacked | None = None


def measured_under(
    hardship: Hardship,
    predictor: Predictor,
    split: CachedSplit,
    rows: np.ndarray,
    progress: Callable[[int, int], None],
    stage: Callable[..., None],
) -> Hardened:
    """The results for images among `rows` of the split. stage: as `CountingBar.stage`."""
    return Hardened(
        corruptions=_corrupted(hardship, predictor, split, rows, progress, stage) if hardship.corruptions else None,
        attack=_attacked(hardship, predictor, split, rows, progress, stage) if hardship.attack is not None else None,
    )


def _corrupted(
    hardship: Hardship,
    predictor: Predictor,
    split: CachedSplit,
    rows: np.ndarray,
    progress: Callable[[int, int], None],
    stage: Callable[..., None],
) -> Corruptions:
    from vivace.robustness.under_corruptions import measure_corruptions

    stage("corruptions", unit="rounds")
    images_NHWC, labels_N = _some(predictor, split, rows, hardship.corruption_images, hardship.seed)
    return measure_corruptions(predictor, images_NHWC, labels_N, seed=hardship.seed, progress=progress)


def _attacked(
    hardship: Hardship,
    predictor: Predictor,
    split: CachedSplit,
    rows: np.ndarray,
    progress: Callable[[int, int], None],
    stage: Callable[..., None],
) -> Attacked:
    from vivace.robustness.attacks.threat import Threat
    from vivace.robustness.under_attack import measure_attack

    images_NHWC, labels_N = _some(predictor, split, rows, hardship.attack_images, hardship.seed)
    with StopSignals() if hardship.keep_interrupted else contextlib.nullcontext() as signals:

        def clock() -> float:
            # a signal is the end of the time
            return time.monotonic() if signals is None or signals.received is None else float("inf")

        found = measure_attack(
            predictor,
            images_NHWC,
            labels_N,
            Threat.parse(str(hardship.attack)),
            methods=hardship.attack_methods,
            precision=hardship.attack_precision,
            seconds=hardship.seconds,
            seed=hardship.seed,
            clock=clock,
            progress=progress,
            stage=stage,
        )
    seconds = hardship.seconds
    if seconds is not None and found.seconds > OVERRUN * seconds:
        warn(f"the attacks took {found.seconds:.1f} s, and {seconds:g} s were given: a step once begun is finished")
    if signals is None or signals.received is None:
        return found
    return dataclasses.replace(found, cut_off_by=signal.Signals(signals.received).name)


def _some(
    predictor: Predictor, split: CachedSplit, rows: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(images_NHWC as the network sees them, labels_N) of some rows."""
    chosen = chosen_at_random(rows, count, seed)
    return predictor.bundle.preprocess.view(np.asarray(split.images_NHWC[chosen])), split.labels_N[chosen]


def chosen_at_random(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the rows, or all if there are no more, in their order; the same for the same seed."""
    if count >= len(rows):
        return rows
    chosen: np.ndarray = rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]
    return chosen
