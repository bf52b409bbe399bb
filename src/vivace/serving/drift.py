"""Whether live answers come as those to validation images did: the classes, and the confidences.

The rate of false alarms is over all that a server answers until the bundle is opened anew, however often it is looked
at: see `vivace.statistics.drift`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import BundleError
from vivace.serving.metrics import DriftMeters
from vivace.statistics.drift import BLOCK, DriftTest
from vivace.uncertainty.validated import Validated

__all__ = ["RATE", "WINDOW", "DriftMonitor", "Unwatched", "watch_for"]

# of servers without drift, those that ever raise an alarm
RATE = 0.01
# the last images, which the page shows beside the validation images
WINDOW = 50
MAX_CLASSES_TOLD = 5
NO_RECORD = (
    "the bundle does not say what its answers to validation images were: it was made by an older vivace, privately, or "
    "by converting another one to 8 bits. Train or accelerate it again"
)


class Unwatched:
    """In place of a monitor, where there is nothing to compare with."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def observe(self, probs_NK: np.ndarray) -> None:
        """Nothing."""

    def describe(self) -> dict[str, Any]:
        """Why it is not watched."""
        return {"watched": False, "reason": self.reason}


class DriftMonitor:
    """Compares live answers with those to validation images. Threads may call it at the same time.

    on_alarm: called once, with `describe`'s value, by the thread whose image made it.
    """

    def __init__(
        self,
        found: Validated,
        classes: tuple[str, ...],
        meters: DriftMeters,
        on_alarm: Callable[[dict[str, Any]], None],
    ) -> None:
        self._found, self._classes, self._meters, self._on_alarm = found, classes, meters, on_alarm
        self._test = DriftTest(found.class_counts, found.below_counts, found.num_images, rate=RATE)
        self._lock = threading.Lock()
        self._window: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._new: list[tuple[int, float]] = []
        meters.alarm.set(0)
        meters.evidence.set(self._test.evidence())

    def observe(self, probs_NK: np.ndarray) -> None:
        """Take in the probabilities of N images that were answered."""
        answers = list(zip(probs_NK.argmax(1).tolist(), probs_NK.max(1).tolist(), strict=True))
        with self._lock:
            before = self._test.alarm
            self._window.extend(answers)
            self._new += answers
            # to fold in fifty takes as long as to fold in one
            if len(self._new) >= BLOCK:
                self._fold()
            told = self._described() if self._test.alarm and not before else None
        if told is not None:
            self._on_alarm(told)

    def describe(self) -> dict[str, Any]:
        """What is known, up to the last image, as JSON holds it."""
        with self._lock:
            before = self._test.alarm
            self._fold()
            told = self._described()
        if self._test.alarm and not before:
            self._on_alarm(told)
        return told

    def _fold(self) -> None:
        if not self._new:
            return
        labels_N, confidence_N = (np.array(values) for values in zip(*self._new, strict=True))
        self._new = []
        classes_NK = labels_N[:, None] == np.arange(len(self._classes))
        self._test.update(np.concatenate([classes_NK, confidence_N[:, None] < np.array(self._found.edges)], 1))
        self._meters.images.inc(len(labels_N))
        self._meters.evidence.set(self._test.evidence())
        self._meters.alarm.set(int(self._test.alarm))
        of_classes, of_confidence = self._distances()
        self._meters.class_distance.set(of_classes)
        self._meters.confidence_distance.set(of_confidence)

    def _rates(self) -> tuple[np.ndarray, np.ndarray]:
        """(fractions of the classes in the window, and of confidences below each edge)."""
        labels_N, confidence_N = (np.array(values) for values in zip(*self._window, strict=True))
        classes_K = np.bincount(labels_N, minlength=len(self._classes)) / len(labels_N)
        below_J: np.ndarray = (confidence_N[:, None] < np.array(self._found.edges)).mean(0)
        return classes_K, below_J

    def _validated_rates(self) -> tuple[np.ndarray, np.ndarray]:
        found = self._found
        return np.array(found.class_counts) / found.num_images, np.array(found.below_counts) / found.num_images

    def _distances(self) -> tuple[float, float]:
        """Total variation of the classes, and the largest difference of the distribution functions of confidence."""
        (classes_K, below_J), (expected_K, expected_J) = self._rates(), self._validated_rates()
        return float(np.abs(classes_K - expected_K).sum() / 2), float(np.abs(below_J - expected_J).max())

    def _described(self) -> dict[str, Any]:
        test, found = self._test, self._found
        told: dict[str, Any] = {
            "watched": True,
            "alarm": test.alarm,
            "alarm_at_image": test.alarm_at,
            "images": test.num_images,
            "evidence": min(test.evidence(), 1e12),
            "alarm_from": test.threshold,
            "false_alarm_rate": RATE,
            "validation_images": found.num_images,
            "validated": f"{found.images}, {found.variant}",
            "window": None,
        }
        if self._window:
            (classes_K, below_J), (expected_K, expected_J) = self._rates(), self._validated_rates()
            most = np.argsort(-np.abs(classes_K - expected_K), kind="stable")[:MAX_CLASSES_TOLD]
            event, more = test.strongest()
            names = [*self._classes, *(f"confidence < {edge:g}" for edge in found.edges)]
            live, expected = np.concatenate([classes_K, below_J]), np.concatenate([expected_K, expected_J])
            told["window"] = {
                "images": len(self._window),
                "mean_confidence": float(np.mean([confidence for _, confidence in self._window])),
                "validation_mean_confidence": found.mean_confidence,
                "classes": [
                    {
                        "label": self._classes[index],
                        "live": float(classes_K[index]),
                        "validation": float(expected_K[index]),
                    }
                    for index in most
                ],
                "strongest": {
                    "what": names[event],
                    "more": more,
                    "live": float(live[event]),
                    "validation": float(expected[event]),
                },
            }
        return told


def watch_for(
    bundle: Bundle, meters: DriftMeters, on_alarm: Callable[[dict[str, Any]], None]
) -> DriftMonitor | Unwatched:
    """What watches the answers of a bundle that is served; a record that is damaged is no reason not to serve it."""
    try:
        found = bundle.validated()
    except BundleError as error:
        return Unwatched(str(error))
    if found is None:
        return Unwatched(NO_RECORD + ".")
    return DriftMonitor(found, bundle.classes, meters, on_alarm)
