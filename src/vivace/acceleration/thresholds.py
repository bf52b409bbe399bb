"""The thresholds of what a search chose: its own answers, not those of the network it replaces."""

from __future__ import annotations

import dataclasses

import numpy as np

from vivace.acceleration.measurements import Measurements
from vivace.acceleration.results import Result
from vivace.acceleration.splits import Images
from vivace.errors import OutOfTime, VivaceError, first_line
from vivace.uncertainty.calibrate import MIN_IMAGES, calibrate
from vivace.uncertainty.generated import NUM_GENERATED, generated_images
from vivace.uncertainty.record import Calibrated
from vivace.uncertainty.scores import Answers

__all__ = ["thresholds_of"]


def thresholds_of(measurements: Measurements, winner: Result) -> Calibrated | None:
    """From the winner's answers to the selection images, which are known already; None with sets of labels.

    Also None, with a note, for under 20 images. Its score of unlike images is one of probabilities: graphs give no
    more.
    """
    network = measurements.network_of(winner)
    images, info = network.splits.select, network.bundle.info
    if info.multi_label:
        return None
    if len(images) < MIN_IMAGES:
        measurements.steps.note(
            f"no thresholds of prediction sets are in it: {len(images)} of {MIN_IMAGES} selection images that it takes"
        )
        return None
    probs_NK = measurements.probs(winner, images, "select")
    chose = ["the variant", *(["the temperature"] if info.temperature is not None else [])]
    return calibrate(
        Answers(probs_NK),
        images.labels,
        _generated(measurements, winner, images),
        variant=f"{winner.candidate.runtime} {winner.candidate.precision}",
        images="selection images",
        also_chose=chose,
    )


def _generated(measurements: Measurements, winner: Result, images: Images) -> dict[str, Answers]:
    """Name → answers to generated images; of a time budget that has no room for them there are none, with a note."""
    some = images.some(min(NUM_GENERATED, max(1, len(images) // 4)))
    stored_NHWC = np.asarray(images.stored_NHWC[some.rows])
    found = {}
    for name, generated_NHWC in generated_images(stored_NHWC).items():
        rows = np.arange(len(generated_NHWC))
        those = dataclasses.replace(some, name=name, stored_NHWC=generated_NHWC, rows=rows)
        try:
            network = measurements.network_of(winner)
            found[name] = Answers(measurements.steps.run(network.probs, winner.candidate, those))
        except (OutOfTime, VivaceError) as error:
            measurements.steps.note(f"{name} was not answered: {first_line(error)}")
            break
    return found
