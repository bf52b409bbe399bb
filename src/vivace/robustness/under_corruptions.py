"""The accuracy of a predictor on corrupted images."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from vivace.errors import ConfigError
from vivace.predictor import Predictor
from vivace.robustness.corruptions.constants import FAMILIES, LEFT_OUT, SEVERITIES, severities_for
from vivace.robustness.corruptions.corrupt import NAMES, corrupt
from vivace.robustness.results import Corruptions, score_of

__all__ = ["check_corruptible", "measure_corruptions"]


def check_corruptible(predictor: Predictor) -> None:
    """Raises ConfigError for a bundle of sets of labels, or whose images are no 8-bit grey or RGB."""
    bundle = predictor.bundle
    if bundle.info.multi_label:
        raise ConfigError(
            "corruptions and attacks are measured by whether the class is right, and these images have sets of labels. "
            "Leave `corruptions` and `attack` out."
        )
    if bundle.preprocess.is_raw:
        raise ConfigError(
            f"corruptions and attacks are defined for 8-bit grey or RGB: the bundle takes {bundle.preprocess.pixels} "
            f"images of {bundle.preprocess.channels} channels. Leave `corruptions` and `attack` out."
        )


def measure_corruptions(
    predictor: Predictor,
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Corruptions:
    """The accuracy of a bundle, as it is deployed, under 14 corruptions at 5 severities.

    images_NHWC: uint8, as the bundle's Preprocess gives them; at least one. labels_N: int64. What is corrupted is what
    the network sees: after cropping and resizing, before normalisation. progress is called with (rounds done, rounds).
    Raises what `check_corruptible` and `Predictor.probs` raise.
    """
    check_corruptible(predictor)
    started = time.perf_counter()
    rounds = len(NAMES) * len(SEVERITIES)

    def right(images: np.ndarray) -> np.ndarray:
        hits: np.ndarray = predictor.probs(images).argmax(1) == labels_N
        return hits

    clean, hits = right(images_NHWC), np.zeros((len(NAMES), len(SEVERITIES), len(images_NHWC)), bool)
    for row, name in enumerate(NAMES):
        for column, severity in enumerate(SEVERITIES):
            hits[row, column] = right(corrupt(images_NHWC, name, severity, seed=seed, device=predictor.device))
            progress(row * len(SEVERITIES) + column + 1, rounds)
    families = {family: [NAMES.index(name) for name in names] for family, names in FAMILIES.items()}
    return Corruptions(
        num_images=len(images_NHWC),
        constants=severities_for(images_NHWC.shape[1]).name,
        seed=seed,
        clean=score_of(clean),
        mean=score_of(hits.mean((0, 1))),
        families={family: score_of(hits[rows].mean((0, 1))) for family, rows in families.items()},
        corruptions={name: score_of(hits[row].mean(0)) for row, name in enumerate(NAMES)},
        severities={str(severity): score_of(hits[:, column].mean(0)) for column, severity in enumerate(SEVERITIES)},
        cells={name: tuple(hits[row].mean(1).tolist()) for row, name in enumerate(NAMES)},
        left_out=LEFT_OUT,
        seconds=time.perf_counter() - started,
    )
