"""What an object was found to hold, in one split, before splits are made consistent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vivace.data.labelsets import names_in
from vivace.data.layouts.badrows import Unusable
from vivace.data.objects.pixels import Kind
from vivace.data.splits import Arrays, Items

__all__ = ["Found", "in_order"]


@dataclass(kw_only=True)
class Found:
    """Labelled images of one split; one of `paths`, `arrays` and `items` is given."""

    labels: list[str]
    """The class name of each image, or a LabelSet."""
    order: tuple[str, ...]
    """All of its classes in their order, also those without an image."""
    names: list[str] = field(default_factory=list)
    """The name of each image, where it is in no file of its own."""
    paths: list[str] | None = None
    arrays: Arrays | None = None
    items: Items | None = None
    is_grey: bool = False
    """All images are known to have one channel."""
    kind: Kind = None
    """(channels, dtype) of images that are kept as they are."""
    notes: list[str] = field(default_factory=list)
    bad: list[Unusable] = field(default_factory=list)


def in_order(labels: Sequence[str], classes: tuple[str, ...] | None, *, numbers: bool) -> tuple[str, ...]:
    """The order of classes: that of `classes` if there is one, else by number or name. numbers: names are numbers."""
    if classes is not None:
        return classes
    names = {name for label in labels for name in names_in(label)}
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else (lambda name: (0, name))))
