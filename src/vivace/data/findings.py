"""Findings about images that are used: wrong extension, a single colour, scaled bit depth, or only partly used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vivace.data.decoding.decode import shown
from vivace.data.text import first_few

__all__ = ["IMAGE_FINDING_KINDS", "NUM_NAMED", "image_findings"]

# kind, severity, names as split:name, message
ImageFinding = tuple[str, Literal["warning", "refuse"], tuple[str, ...], str]
# files that the message of a finding names; its `names` has them all
NUM_NAMED = 3
MESSAGES = {
    "extension_mismatch": "{count} files have another format's extension; they are {kind} and were read as {kind}",
    "several_pictures": "{count} files hold several pictures; only the first was used",
    "channels_dropped": "{count} TIFF files have extra channels besides the colours; these were ignored",
}
IMAGE_FINDING_KINDS = frozenset((*MESSAGES, "one_colour", "mixed_depth", "lost_class"))
HOW_TO_SAVE = "to make their brightness comparable, save them as 8-bit or with the TIFF tag MaxSampleValue"


def image_findings(
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    notes: Mapping[str, Mapping[int, Sequence[str]]],
    classes: Sequence[str] | None,
) -> list[ImageFinding]:
    """One finding per kind of note; for one_colour one per class of a split. classes: None for sets of labels.

    names, labels: int64 [N] per split. notes: per split, position → notes of `workers.notes_on`: one_colour, white W,
    extension_mismatch FORMAT, several_pictures, channels_dropped.
    """
    members_of: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, found in notes.items():
        for index, kinds in found.items():
            for kind in kinds:
                members_of[kind].append((split, index))
    findings = _of_one_colour(members_of.pop("one_colour", []), names, labels, classes)
    whites = sorted((kind for kind in members_of if kind.startswith("white ")), key=lambda kind: int(kind.split()[1]))
    if len(whites) > 1:
        parts = ", ".join(f"{len(members_of[kind]):,} by {int(kind.split()[1]):,}" for kind in whites)
        members = [member for kind in whites for member in members_of[kind]]
        findings.append(
            _warning(
                "mixed_depth",
                f"images with over 8 bits per channel were scaled differently ({parts}): {HOW_TO_SAVE}",
                members,
                names,
            )
        )
    for kind, members in members_of.items():
        if kind not in whites:
            name, _, rest = kind.partition(" ")
            text = MESSAGES[name].format(count=f"{len(members):,}", kind=rest)
            findings.append(_warning(name, f"{text}: {first_few(_named(members, names), NUM_NAMED)}", members, names))
    return findings


def _of_one_colour(
    members: Sequence[tuple[str, int]],
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str] | None,
) -> list[ImageFinding]:
    """A refusal where most images of a class in a split have one colour, otherwise a warning."""
    groups: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    for split, index in members:
        groups[split, 0 if classes is None else int(labels[split][index])].append((split, index))
    findings: list[ImageFinding] = []
    for (split, label), found in groups.items():
        total = len(labels[split]) if classes is None else int((labels[split] == label).sum())
        where = split if classes is None else f"class {shown(classes[label])}"
        listed = _named(found, names)
        findings.append(
            (
                "one_colour",
                "refuse" if 2 * len(found) > total else "warning",
                listed,
                f"{len(found):,} of {total:,} images of {where} are a single colour "
                f"after decoding: {first_few(listed, NUM_NAMED)}. Save them with 8 bits per channel, or remove them",
            )
        )
    return findings


def _named(members: Sequence[tuple[str, int]], names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(f"{split}:{names[split][index]}" for split, index in members)


def _warning(
    kind: str, message: str, members: Sequence[tuple[str, int]], names: Mapping[str, Sequence[str]]
) -> ImageFinding:
    return kind, "warning", _named(members, names), message
