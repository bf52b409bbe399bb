"""Opens what a search reads: the data, and before them `calibration`, on whose samples nothing is proven."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vivace.acceleration.modules.batches import Batch, Batches, read_batches
from vivace.acceleration.modules.digests import sample_digests
from vivace.acceleration.modules.options import ModuleOptions
from vivace.acceleration.modules.subject import Subject
from vivace.errors import DataError, ModelError

__all__ = ["CALIBRATION_SAMPLES", "opened"]

# that ranges for int8 are measured on
CALIBRATION_SAMPLES = 256


def opened(
    data: Any, options: ModuleOptions, subject: Subject, *, stop: Callable[[], bool]
) -> tuple[Batches, ModuleOptions]:
    """(the data, the options with `calibration` as a list of Batch: several candidates need it).

    stop: as of Batches. Raises DataError for data without a sample, and a `calibration` that the module does not take.
    """
    calibration = _calibration(options, subject)
    withheld = frozenset(digest for batch in calibration or () for digest in sample_digests(batch.call, batch.size))
    batches = Batches(data, subject.signature, subject.device, stop=stop, withheld=withheld)
    structure = batches.first.call.flatten()[1]
    if calibration is not None and all(batch.call.flatten()[1] != structure for batch in calibration):
        raise DataError("no batch of `calibration` is called like the data's. Give batches like these.")
    return batches, dataclasses.replace(options, calibration=calibration)


def _calibration(options: ModuleOptions, subject: Subject) -> list[Batch] | None:
    """Its first batches, read once."""
    if options.calibration is None:
        return None
    found: list[Batch] = []
    for batch in read_batches(options.calibration, "`calibration`", subject.signature, subject.device):
        if any(bool(tensor.isnan().any()) for tensor in batch.call.flatten()[0] if tensor.is_floating_point()):
            raise DataError("`calibration` holds NaN, on which no ranges can be measured. Leave such samples out.")
        found.append(batch)
        if sum(one.size for one in found) >= CALIBRATION_SAMPLES:
            break
    if not found:
        raise DataError("`calibration` holds no batch. Give batches like the data's, or leave it out.")
    try:
        subject.outputs(found[0])
    except ModelError as error:
        raise DataError(f"`calibration` does not fit: {error}") from error
    return found
