"""The audit: what is wrong with the images of a data set, and how serious it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vivace.config import from_dict, to_dict
from vivace.data.findings import IMAGE_FINDING_KINDS, NUM_NAMED, image_findings
from vivace.data.text import first_few
from vivace.errors import DataError
from vivace.files import atomic_file
from vivace.notices import warn
from vivace.outputs import csv_text

__all__ = ["Audit", "Finding", "audit_images", "check_audit", "first_messages", "write_left_out"]

Severity = Literal["warning", "quarantine", "refuse"]
# more bad images than this fraction are left out only on request: the data set was probably misunderstood
MAX_LEFT_OUT = 0.05
# findings quoted in one message, and their total number of characters
NUM_QUOTED, MAX_QUOTED = 5, 300
NUM_LINES = 3
# kinds that read otherwise after a number
SHOWN = {"contradiction": "contradictory"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem, with the images that have it."""

    kind: str
    """A `problem` of ImageError such as truncated, or duplicate, contradiction, leak, ignored."""
    severity: Severity
    """warning: reported; quarantine: the images are left out, or the data set is refused; refuse: always refused."""
    names: tuple[str, ...]
    """As split:name. Of a leak those in train; of ignored files the names in the file system."""
    message: str
    lines: tuple[int, ...] = ()
    """Lines of the manifest, if the problem is in its rows."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All findings of a data set."""

    num_images: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def quarantined(self) -> frozenset[str]:
        """Names, as split:name, of the images that are left out of training."""
        return frozenset(
            name for finding in self.findings if finding.severity == "quarantine" for name in finding.names
        )

    @property
    def unreadable(self) -> frozenset[str]:
        """Names, as split:name, of the files that could not be read from disk."""
        return frozenset(name for finding in self.findings if finding.kind == "unreadable" for name in finding.names)

    def image_warnings(self) -> list[str]:
        """The warnings about images that are used."""
        return [finding.message for finding in self.of("warning") if finding.kind in IMAGE_FINDING_KINDS]

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
        return ", ".join(
            f"{len(names):,} {SHOWN.get(kind, kind)}{_listed(lines[kind])}" for kind, names in sorted(kinds.items())
        )

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
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
    multi_label: bool = False,
) -> Audit:
    """The audit of decoded splits.

    names, labels: int64 [N], digests: [N], all per split; equal digests mean equal pixels. problems: per split,
    position → (problem, message) of the unusable images. notes: per split, position → notes on a usable image (see
    `data.findings`). allow_leaks: an image of train that is also in another split is reported, but stays in train.
    multi_label: classes are combinations of labels, many of them of a few images.
    """
    findings = [
        Finding(kind=problem, severity=_severity(problem), names=(f"{split}:{names[split][index]}",), message=message)
        for split, found in problems.items()
        for index, (problem, message) in sorted(found.items())
    ]
    findings += _copies(names, labels, digests, problems, classes, allow_leaks)
    findings += [
        Finding(kind=kind, severity=severity, names=found, message=message)
        for kind, severity, found, message in image_findings(
            names, labels, notes or {}, None if multi_label else classes
        )
    ]
    if ignored:
        findings.append(
            Finding(
                kind="ignored",
                severity="warning",
                names=tuple(ignored),
                message=(
                    f"skipped {len(ignored):,} files that are not images or not in a class folder: "
                    f"{first_few(ignored, NUM_NAMED)}"
                ),
            )
        )
    return Audit(num_images=sum(len(split) for split in names.values()), findings=tuple(findings))


def check_audit(audit: Audit, name: str, *, on_bad_image: str) -> None:
    """Raise DataError if the data set `name` can't be used as it is.

    on_bad_image: how many quarantined images may be left out, which are unusable, contradict each other, or are also
    in another split. "auto": up to 5 % of all, unless a class loses all its rows in a manifest; "skip": any number;
    "refuse": none.
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
            f"{lost[0].message} of {name}: {listed}. Correct them, or continue without it by `on_bad_image='skip'`."
        )
    fraction = f" ({100 * bad / total:.0f} %; up to {100 * MAX_LEFT_OUT:.0f} % are left out)"
    limit = fraction if on_bad_image == "auto" else ""
    rows = [finding.message for finding in audit.of("quarantine") if finding.lines]
    first = first_messages(rows) if rows else audit.of("quarantine")[0].message.rstrip(".")[:250]
    raise DataError(
        f"{bad:,} of {total:,} images of {name} can't be used{limit}: {first}. "
        "Correct them, or continue without them by `on_bad_image='skip'`. 'vivace audit' lists all."
    )


def first_messages(messages: Sequence[str]) -> str:
    """The first few messages in one line, and how many more there are."""
    quoted: list[str] = []
    for message in messages[:NUM_QUOTED]:
        if quoted and sum(map(len, quoted)) + len(message) > MAX_QUOTED:
            break
        quoted.append(message.rstrip("."))
    more = len(messages) - len(quoted)
    return "; ".join(quoted) + (f"; and {more:,} more" if more else "")


def _listed(lines: Sequence[int]) -> str:
    if not lines:
        return ""
    more = f" and {len(lines) - NUM_LINES:,} more" if len(lines) > NUM_LINES else ""
    return f" (line{'s' * (len(lines) > 1)} {', '.join(map(str, sorted(lines)[:NUM_LINES]))}{more})"


def write_left_out(audit: Audit, path: Path) -> None:
    """Write the images that are left out, with the reasons, as CSV: split, file, reason, message. Raises DataError."""
    rows: list[tuple[str, ...]] = [("split", "file", "reason", "message")]
    for finding in audit.of("quarantine"):
        for name in finding.names:
            split, _, file = name.partition(":")
            rows.append((split, file, finding.kind, finding.message))
    try:
        with atomic_file(path) as out:
            out.write(csv_text(rows))
    except OSError as error:
        raise DataError(f"the list of excluded images can't be written: {path} ({error.strerror}).") from None
    warn(f"the excluded images are listed in {path}")


def _severity(problem: str) -> Severity:
    # a file without read permission or on a failing disk may be a good image: leaving it out would hide the fault
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
                    message=f"the same image is labelled {listed}: {first_few(copies, NUM_NAMED)}",
                )
            )
        elif "train" in (splits := {split for split, _ in members}) and len(splits) > 1:
            others = " and ".join(sorted(splits - {"train"}))
            findings.append(
                Finding(
                    kind="leak",
                    severity="warning" if allow_leaks else "quarantine",
                    # val and test stay complete, so that their metrics are comparable
                    names=copies if allow_leaks else tuple(name for name in copies if name.startswith("train:")),
                    message=f"the same image is in train and {others}: {first_few(copies, NUM_NAMED)}",
                )
            )
        else:
            findings.append(
                Finding(
                    kind="duplicate",
                    severity="warning",
                    names=copies,
                    message=f"duplicate images: {first_few(copies, NUM_NAMED)}",
                )
            )
    return findings
