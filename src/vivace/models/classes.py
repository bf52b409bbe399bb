"""A trained network for other classes: the rows of known classes are copied by name, new ones are added.

K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vivace.errors import ModelError

__all__ = ["Classes", "fitted_weights", "rows_of_classes"]

MAX_NAMED = 5
# characters of a class name in a message
MAX_NAME = 40


@dataclass(frozen=True)
class Classes:
    """What becomes of the classes of a trained network."""

    kept: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, before: Sequence[str], now: Sequence[str]) -> Classes:
        """Compared by their names, case and spaces included."""
        known, wanted = set(before), set(now)
        return cls(
            kept=tuple(name for name in now if name in known),
            new=tuple(name for name in now if name not in known),
            left_out=tuple(name for name in before if name not in wanted),
        )

    def line(self) -> str:
        """Such as "3 classes kept, 2 new: rose, tulip; 1 left out: daisy"."""
        kept = f"{len(self.kept):,} class{'' if len(self.kept) == 1 else 'es'} kept"
        new = f", {len(self.new):,} new: {_named(self.new)}" if self.new else ""
        left_out = f"; {len(self.left_out):,} left out: {_named(self.left_out)}" if self.left_out else ""
        return kept + new + left_out


def _named(names: Sequence[str]) -> str:
    shown = [name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names[:MAX_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else "")


def rows_of_classes(blank: Mapping[str, Tensor], larger: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the tensors that have a row for each class.

    blank, larger: state dicts of the same network for K and K + 1 classes, which may be on the meta device. Raises
    ModelError where the number of classes changes more than rows.
    """
    changed = [name for name in larger if name not in blank or blank[name].shape != larger[name].shape]
    for name in changed:
        before = blank[name].shape if name in blank else None
        if before is None or len(before) == 0 or larger[name].shape != (before[0] + 1, *before[1:]):
            raise ModelError(f"the head can't be given other classes: {name} has no row for each. Train from scratch.")
    if not changed:
        raise ModelError("the head can't be given other classes: no layer depends on their number.")
    return frozenset(changed)


def fitted_weights(
    weights: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    rows: Collection[str],
    *,
    before: Sequence[str],
    now: Sequence[str],
) -> dict[str, Tensor]:
    """The state dict of a network of the classes `now`, from trained `weights` of the classes `before`.

    fresh: that of the new network as it was initialised. rows: names of the tensors with a row for each class. The row
    of a new class is the mean of those that are kept: its logit begins in the midst of the others. Without a class that
    is kept the head stays as it was initialised. All other tensors are those of `weights`. Raises ModelError for a
    tensor that is missing, foreign, not finite, or of another shape or dtype.
    """
    positions = {name: index for index, name in enumerate(before)}
    kept = [positions[name] for name in now if name in positions]
    targets = [index for index, name in enumerate(now) if name in positions]
    fitted: dict[str, Tensor] = {}
    for name, new in fresh.items():
        old = weights.get(name)
        shape = (len(before), *new.shape[1:]) if name in rows else tuple(new.shape)
        if old is None or tuple(old.shape) != shape or old.dtype != new.dtype:
            got = "nothing" if old is None else f"{str(old.dtype).removeprefix('torch.')} {tuple(old.shape)}"
            raise ModelError(f"the trained weights do not fit: {name} is {got}, expected {shape}. Leave `size` out.")
        if old.is_floating_point() and not bool(old.isfinite().all()):
            raise ModelError(f"the weights hold NaN or Inf: {name}. Give a run that did not diverge.")
        if name not in rows:
            fitted[name] = old
            continue
        values = new.clone()
        if kept:
            values[:] = old[kept].mean(0) if old.is_floating_point() else old[kept[0]]
            values[targets] = old[kept]
        fitted[name] = values
    foreign = sorted(set(weights) - set(fresh))
    if foreign:
        raise ModelError(f"the trained weights do not fit: the network lacks {foreign[0]}. Leave `model` out.")
    return {name: torch.empty_like(fresh[name]).copy_(value) for name, value in fitted.items()}
