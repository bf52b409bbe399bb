"""The audit: what is wrong with the images of a data set, and how grave it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vivace.config import from_dict, to_dict
from vivace.data.noticed import NOTICED_KINDS, noticed, some
from vivace.errors import DataError
from vivace.files import atomic_file
from vivace.notices import warn
from vivace.outputs import csv_text

__all__ = ["Audit", "Finding", "audit_images", "check_audit", "first_messages", "write_left_out"]

Severity = Literal["warning", "quarantine", "refuse"]
# more images than this are not left out unless the user says so: such data are rather misunderstood than damaged
MAX_LEFT_OUT = 0.05
# how many findings about rows of a table one message names, and in how many characters
NUM_TOLD, MAX_TOLD = 5, 300
NUM_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found."""

    kind: str
    """A problem of `read_image` such as truncated, or duplicate, contradiction, leak, ignored."""
    severity: Severity
    """warning: told; quarantine: the images are left out, or the data set is refused; refuse: it is always refused."""
    names: tuple[str, ...]
    """As split:name; of a leak those of train; as they are in the file system for ignored files."""
    message: str
    lines: tuple[int, ...] = ()
    """Of the manifest, where one of its rows is at fault."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All findings of a data set."""

    num_images: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def quarantined(self) -> frozenset[str]:
        """Names, as split:name, of the images that training does without."""
        return frozenset(
            name for finding in self.findings if finding.severity == "quarantine" for name in finding.names
        )

    @property
    def unreadable(self) -> frozenset[str]:
        """Names, as split:name, of the files that the system does not let us read."""
        return frozenset(name for finding in self.findings if finding.kind == "unreadable" for name in finding.names)

    def noticed(self) -> list[str]:
        """What is worth telling of images that are used."""
        return [finding.message for finding in self.of("warning") if finding.kind in NOTICED_KINDS]

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def reasons(self) -> str:
        """Why images are left out, such as "2 truncated, 1 missing_file (line 62)"."""
        kinds: dict[str, set[str]] = defaultdict(set)
        lines: dict[str, list[int]] = defaultdict(list)
        for finding in self.of("quarantine"):
            kinds[finding.kind].update(finding.names)
            lines[finding.kind] += finding.lines
        return ", ".join(f"{len(names):,} {kind}{_listed(lines[kind])}" for kind, names in sorted(kinds.items()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Audit:
        """The inverse of `to_dict`."""
        return from_dict(cls, values, where="audit")


def audit_images(
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    digests: Mapping[str, np.ndarray],
    problems: Mapping[str, Mapping[int, tuple[str, str]]],
    classes: Sequence[str],
    ignored: Sequence[str] = (),
    notes: Mapping[str, Mapping[int, Sequence[str]]] | None = None,
    *,
    allow_leaks: bool = False,
) -> Audit:
    """The audit of decoded splits.

    names, labels int64 [N] and digests [N] per split; problems: per split, position → (problem, message) of the images
    that could not be used. Equal digests are equal pixels. notes: per split, position → what was noticed about an image
    that is used (`data.noticed`). allow_leaks: an image of train that is in another split too is told of, and not left
    out of train.
    """
    findings = [
        Finding(kind=problem, severity=_severity(problem), names=(f"{split}:{names[split][index]}",), message=message)
        for split, found in problems.items()
        for index, (problem, message) in sorted(found.items())
    ]
    findings += _copies(names, labels, digests, problems, classes, allow_leaks)
    findings += [
        Finding(kind=kind, severity=severity, names=found, message=message)
        for kind, severity, found, message in noticed(names, labels, notes or {}, classes)
    ]
    if ignored:
        findings.append(
            Finding(
                kind="ignored",
                severity="warning",
                names=tuple(ignored),
                message=(
                    f"{len(ignored)} files are no images, or lie in no class folder, and were passed over: "
                    f"{some(ignored)}"
                ),
            )
        )
    return Audit(num_images=sum(len(split) for split in names.values()), findings=tuple(findings))


def check_audit(audit: Audit, name: str, *, on_bad_image: str) -> None:
    """Raise DataError for what the audit of the data set `name` refuses.

    on_bad_image: "auto": images that can't be used, contradict each other, or are in another split too, are left out,
    up to a twentieth of all, but no class whose rows of a manifest are all bad; "skip": any number; "refuse": none.
    """
    unreadable = [finding for finding in audit.findings if finding.kind == "unreadable"]
    if unreadable:
        raise DataError(f"{len(unreadable):,} files of {name} can't be read: {unreadable[0].message}")
    blank = [finding for finding in audit.of("refuse") if finding.kind == "one_colour"]
    if blank:
        raise DataError(f"{name} has images without content: {blank[0].message}.")
    bad, total = len(audit.quarantined), max(audit.num_images, 1)
    lost = [finding for finding in audit.findings if finding.kind == "lost_class"]
    if not bad or on_bad_image == "skip":
        return
    if on_bad_image == "auto" and bad <= MAX_LEFT_OUT * total:
        if not lost:
            return
        listed = first_messages([row.message for row in audit.of("quarantine") if row.lines])
        raise DataError(
            f"{lost[0].message} of {name}: {listed}. Correct them, or go on without it by --on-bad-image skip."
        )
    share = f" ({100 * bad / total:.0f} %; up to {100 * MAX_LEFT_OUT:.0f} % are left out)"
    limit = share if on_bad_image == "auto" else ""
    rows = [finding.message for finding in audit.of("quarantine") if finding.lines]
    first = first_messages(rows) if rows else audit.of("quarantine")[0].message.rstrip(".")[:250]
    raise DataError(
        f"{bad:,} of {total:,} images of {name} can't be used{limit}: {first}. "
        "Correct them, or go on without them by --on-bad-image skip. 'vivace audit' lists all."
    )


def first_messages(messages: Sequence[str]) -> str:
    """The first few of many messages in one line, and how many there are besides."""
    told: list[str] = []
    for message in messages[:NUM_TOLD]:
        if told and sum(map(len, told)) + len(message) > MAX_TOLD:
            break
        told.append(message.rstrip("."))
    more = len(messages) - len(told)
    return "; ".join(told) + (f"; and {more:,} more" if more else "")


def _listed(lines: Sequence[int]) -> str:
    if not lines:
        return ""
    more = f" and {len(lines) - NUM_LINES:,} more" if len(lines) > NUM_LINES else ""
    return f" (line{'s' * (len(lines) > 1)} {', '.join(map(str, sorted(lines)[:NUM_LINES]))}{more})"


def write_left_out(audit: Audit, path: Path) -> None:
    """Write the images that are left out, and why, as CSV: split, file, reason, message. Raises DataError."""
    rows: list[tuple[str, ...]] = [("split", "file", "reason", "message")]
    for finding in audit.of("quarantine"):
        for name in finding.names:
            split, _, file = name.partition(":")
            rows.append((split, file, finding.kind, finding.message))
    try:
        with atomic_file(path) as out:
            out.write(csv_text(rows))
    except OSError as error:
        raise DataError(f"the list of left out images can't be written: {path} ({error.strerror}).") from None
    warn(f"the images left out are listed in {path}")


def _severity(problem: str) -> Severity:
    # a file without rights, or on a disk that fails, may be a good image: to go on without it would hide the fault
    return "refuse" if problem == "unreadable" else "quarantine"


def _copies(
    names: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    digests: Mapping[str, np.ndarray],
    problems: Mapping[str, Mapping[int, tuple[str, str]]],
    classes: Sequence[str],
    allow_leaks: bool,
) -> list[Finding]:
    groups: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, values in digests.items():
        for index, digest in enumerate(values.tolist()):
            if index not in problems.get(split, {}):
                groups[digest].append((split, index))
    findings = []
    for members in groups.values():
        if len(members) < 2:
            continue
        copies = tuple(f"{split}:{names[split][index]}" for split, index in members)
        found = sorted({int(labels[split][index]) for split, index in members})
        if len(found) > 1:
            listed = " and ".join(str(classes[label]) for label in found)
            findings.append(
                Finding(
                    kind="contradiction",
                    severity="quarantine",
                    names=copies,
                    message=f"the same image is labelled {listed}: {some(copies)}",
                )
            )
        elif "train" in (splits := {split for split, _ in members}) and len(splits) > 1:
            others = " and ".join(sorted(splits - {"train"}))
            findings.append(
                Finding(
                    kind="leak",
                    severity="warning" if allow_leaks else "quarantine",
                    # the other splits stay whole: what is measured on them is comparable
                    names=copies if allow_leaks else tuple(name for name in copies if name.startswith("train:")),
                    message=f"the same image is in train and {others}: {some(copies)}",
                )
            )
        else:
            findings.append(
                Finding(kind="duplicate", severity="warning", names=copies, message=f"equal images: {some(copies)}")
            )
    return findings
