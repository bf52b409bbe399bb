"""What a user's metric must be like for a proof: checked on the first batch, before anything is built."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from vivace.acceleration.modules.batches import Batch
from vivace.acceleration.modules.metrics import Scorer
from vivace.acceleration.modules.signature import flatten, rebuild
from vivace.errors import DataError

__all__ = ["check_metric"]

# two scores of the same sample may differ by rounding
ROUNDING = 1e-4
# outputs that belong to other samples score higher: by so much, and by so many standard errors
HIGHER, ERRORS = 0.1, 4.0


def check_metric(scorer: Scorer, outputs: Any, batch: Batch) -> list[str]:
    """What is to be said of a metric, by the module's outputs for a batch; sets `scorer.by_batch`.

    Raises DataError for a metric that fails, changes what it is given, gives other scores for the same outputs, or is
    lower for better outputs.
    """
    if not scorer.is_own:
        scorer.scores(outputs, batch, outputs)
        return []
    given = {"outputs": flatten(outputs)[0], "targets": _arrays(batch.targets)}
    kept = {name: [_copy(value) for value in values] for name, values in given.items()}
    scores_B = scorer.scores(outputs, batch, outputs)
    for name, values in given.items():
        if not all(map(_equal, values, kept[name])):
            raise DataError(
                f"the metric {scorer.name} changes its {name} in place, which are used again. Let it work on a copy."
            )
    again_B = scorer.scores(outputs, batch, outputs)
    if not np.allclose(scores_B, again_B, atol=ROUNDING):
        place = int(np.abs(scores_B - again_B).argmax())
        raise DataError(
            f"the metric {scorer.name} gives other scores when it is called again with the same outputs: "
            f"{scores_B[place]:.3g} and {again_B[place]:.3g}. It must depend on outputs and targets alone."
        )
    said = _what_is_better(scorer, scores_B, outputs, batch)
    if _depends_on_batch(scorer, scores_B, outputs, batch):
        scorer.by_batch = True
        said.append(
            f"the metric {scorer.name} scores a sample by the others in its batch: batches are compared by their mean, "
            "and a batch counts as one sample. For a tighter proof, let it score each sample by itself"
        )
    return said


def _depends_on_batch(scorer: Scorer, scores_B: np.ndarray, outputs: Any, batch: Batch) -> bool:
    """Whether half of a batch has other scores alone."""
    half = batch.part(0, batch.size // 2) if batch.size > 1 else None
    if half is None:
        return False
    found = _scores_of(scorer, outputs, half, batch.size, slice(half.size))
    return found is not None and not np.allclose(found, scores_B[: half.size], atol=ROUNDING)


def _what_is_better(scorer: Scorer, scores_B: np.ndarray, outputs: Any, batch: Batch) -> list[str]:
    """By outputs that belong to the sample before."""
    places = np.roll(np.arange(batch.size), 1).tolist()
    others_B = _scores_of(scorer, outputs, batch, batch.size, places)
    if others_B is None or batch.size < 2:
        return []
    gained = others_B - scores_B
    # no outputs can be better than the original's own; of labels, a module may know little
    least = max(HIGHER, ERRORS * float(gained.std(ddof=1)) / batch.size**0.5)
    least = 10 * ROUNDING if scorer.by_original else least
    if gained.mean() > least:
        found = (
            f"the metric {scorer.name} is lower for the module's outputs ({scores_B.mean():.3g}) than for those of "
            f"other samples ({others_B.mean():.3g}): 1 must be best"
        )
        if scorer.by_original:
            raise DataError(f"{found}. Of a loss in [0, 1], return 1 - loss.")
        return [f"{found}. If it is a loss, return 1 - loss: a drop of it is no harm"]
    opposite_B = _scores_of(scorer, outputs, batch, batch.size, slice(None), sign=-1)
    if opposite_B is not None and np.ptp(np.concatenate([scores_B, others_B, opposite_B])) == 0:
        return [
            f"the metric {scorer.name} is {scores_B[0]:g} for each sample of the first batch, whatever the outputs "
            "are: if that is so for all, the proof says nothing"
        ]
    return []


def _negated(outputs: Any) -> Any:
    """Outputs whose floats have the opposite sign."""
    tensors, structure = flatten(outputs)
    return rebuild(structure, [-one if one.is_floating_point() else one for one in tensors])


def _scores_of(scorer: Scorer, outputs: Any, batch: Batch, size: int, rows: Any, *, sign: int = 1) -> np.ndarray | None:
    """Of other outputs than the module gave; None where they have no rows, or the metric does not take them."""
    try:
        found = _rows(outputs, size, rows)
        found = _negated(found) if sign < 0 else found
        return scorer.scores(found, batch, _rows(outputs, size, slice(batch.size)))
    except Exception:
        return None


def _rows(outputs: Any, size: int, rows: Any) -> Any:
    """Those of some samples: of each tensor with `size` rows, or of a list with `size` items. Raises ValueError."""
    tensors, structure = flatten(outputs)
    if isinstance(outputs, list) and len(outputs) == size and not all(one.ndim and len(one) == size for one in tensors):
        return outputs[rows] if isinstance(rows, slice) else [outputs[row] for row in rows]
    if structure.opaque_types() or not any(one.ndim and len(one) == size for one in tensors):
        raise ValueError("no rows")
    return rebuild(structure, [one[rows] if one.ndim and len(one) == size else one for one in tensors])


def _arrays(targets: Any) -> list[Any]:
    return [targets] if isinstance(targets, np.ndarray) else list(flatten(targets)[0])


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value.copy()


def _equal(one: Any, other: Any) -> bool:
    """NaN is equal to itself here."""
    same = (one == other) | ((one != one) & (other != other))
    return bool(same.all())
