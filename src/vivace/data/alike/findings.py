"""What the audit says of near duplicates (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vivace.data.alike.near import NearGroup
from vivace.data.audit import Finding
from vivace.data.findings import NUM_NAMED
from vivace.data.text import first_few

__all__ = ["near_findings"]


def near_findings(
    groups: Sequence[NearGroup],
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> tuple[Finding, ...]:
    """A warning for each group: near_contradiction under two labels, near_leak in train and another split, else
    near_duplicate.

    names, labels: int64 [N], both per split; classes: what the labels mean. Training uses all of these images: whether
    two pictures are one is for people to say.
    """
    return tuple(_finding(group, names, labels, classes) for group in groups)


def _finding(
    group: NearGroup,
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> Finding:
    members = tuple(f"{split}:{names[split][position]}" for split, position in group.members)
    found = sorted({int(labels[split][position]) for split, position in group.members})
    splits = {split for split, _ in group.members}
    others = " and ".join(sorted(splits - {"train"}))
    listed = f"{first_few(members, NUM_NAMED)}{f' ({group.done})' if group.done else ''}"
    if len(found) > 1:
        labelled = " and ".join(str(classes[label]) for label in found)
        kind, message = "near_contradiction", f"nearly the same image is labelled {labelled}: {listed}"
    elif "train" in splits and others:
        kind, message = "near_leak", f"nearly the same image is in train and {others}: {listed}"
    else:
        kind, message = "near_duplicate", f"nearly the same image: {listed}"
    return Finding(kind=kind, severity="warning", names=members, message=message)
