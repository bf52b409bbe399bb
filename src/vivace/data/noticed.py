"""What was noticed about images that are used: read under another name, one colour only, scaled, or used in part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vivace.data.decoding.decode import shown

__all__ = ["NOTICED_KINDS", "noticed", "some"]

# kind, severity, names as split:name, message
Noticed = tuple[str, Literal["warning", "refuse"], tuple[str, ...], str]
# an audit names so many files of a finding in its message; its `names` has them all
NUM_SHOWN = 3
NOTICED = {
    "extension_mismatch": "{count} files are {kind} under the extension of another format, and were read as {kind}",
    "several_pictures": "{count} files hold several pictures, of which the first was used",
    "channels_dropped": "{count} TIFF files have more channels than colours, which were left out",
}
NOTICED_KINDS = frozenset((*NOTICED, "one_colour", "mixed_depth", "lost_class"))
HOW_DEEP = "save them as 8-bit, or with the TIFF tag MaxSampleValue, if their brightness is to be comparable"


def noticed(
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    notes: Mapping[str, Mapping[int, Sequence[str]]],
    classes: Sequence[str],
) -> list[Noticed]:
    """A finding for each kind, of one colour for each class.

    names and labels int64 [N] per split; notes: per split, position → one_colour, white W, extension_mismatch FORMAT,
    several_pictures, channels_dropped.
    """
    told: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, found in notes.items():
        for index, kinds in found.items():
            for kind in kinds:
                told[kind].append((split, index))
    findings = _of_one_colour(told.pop("one_colour", []), names, labels, classes)
    whites = sorted((kind for kind in told if kind.startswith("white ")), key=lambda kind: int(kind.split()[1]))
    if len(whites) > 1:
        parts = ", ".join(f"{len(told[kind]):,} by {int(kind.split()[1]):,}" for kind in whites)
        members = [member for kind in whites for member in told[kind]]
        findings.append(
            _warning(
                "mixed_depth", f"images of over 8 bits were scaled differently ({parts}): {HOW_DEEP}", members, names
            )
        )
    for kind, members in told.items():
        if kind not in whites:
            name, _, rest = kind.partition(" ")
            text = NOTICED[name].format(count=f"{len(members):,}", kind=rest)
            findings.append(_warning(name, f"{text}: {some(_named(members, names))}", members, names))
    return findings


def _of_one_colour(
    members: Sequence[tuple[str, int]],
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> list[Noticed]:
    """Refused where it is most of a class of a split."""
    groups: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    for split, index in members:
        groups[split, int(labels[split][index])].append((split, index))
    findings: list[Noticed] = []
    for (split, label), found in groups.items():
        total = int((labels[split] == label).sum())
        listed = _named(found, names)
        findings.append(
            (
                "one_colour",
                "refuse" if 2 * len(found) > total else "warning",
                listed,
                f"{len(found):,} of {total:,} images of class {shown(classes[label])} hold one value only "
                f"after decoding: {some(listed)}. Save them with 8 bits a channel, or remove them",
            )
        )
    return findings


def _named(members: Sequence[tuple[str, int]], names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(f"{split}:{names[split][index]}" for split, index in members)


def _warning(
    kind: str, message: str, members: Sequence[tuple[str, int]], names: Mapping[str, Sequence[str]]
) -> Noticed:
    return kind, "warning", _named(members, names), message


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    rest = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(shown(name) for name in names[:NUM_SHOWN]) + rest
