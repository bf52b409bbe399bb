"""Rows of a manifest without a usable image or class; they are treated like corrupt images (no torch here)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from vivace.data.audit import Audit, Finding, first_messages
from vivace.data.layouts.assemble import Items
from vivace.data.splits import BadRow, DataSource
from vivace.data.text import count_of, shortened
from vivace.errors import DataError

__all__ = ["BadRowError", "Unusable", "audited", "check_rows", "with_bad_rows"]


class Unusable(NamedTuple):
    """A bad row and the classes that it names."""

    row: BadRow
    labels: frozenset[str]


class BadRowError(DataError):
    """One row can't be used; `reason` is missing_file, missing_label or format_not_allowed."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_rows(items: dict[str, Items], bad: Sequence[Unusable], where: str, *, require_train: bool) -> None:
    """Raise DataError, with the first messages, if there are bad rows and too few usable ones."""
    if not bad or (items and (not require_train or len({label for _, label in items.get("train", [])}) > 1)):
        return
    listed = first_messages([row.message for row, _ in bad])
    # fewer than two classes left to train on, or no image at all
    raise DataError(
        f"{count_of(len(bad), 'row')} of {where} can't be used, and too few remain: {listed}. Correct them."
    )


def with_bad_rows(source: DataSource, bad: Sequence[Unusable]) -> DataSource:
    """The source with its bad rows, and the classes that have no other row."""
    if not bad:
        return source
    lost = frozenset[str]().union(*(labels for _, labels in bad)) - set(source.classes)
    return dataclasses.replace(source, bad_rows=tuple(row for row, _ in bad), lost_classes=tuple(sorted(lost)))


def audited(audit: Audit, source: DataSource) -> Audit:
    """The audit of a source's images, with a finding added for each bad row of its table.

    These findings are not kept in the cache: the table may be corrected while the images stay the same.
    """
    if not source.bad_rows:
        return audit
    found = [
        Finding(
            kind=row.reason,
            severity="quarantine",
            names=(f"{row.split}:{row.file}",),
            message=row.message,
            lines=row.lines,
        )
        for row in source.bad_rows
    ]
    found += [
        Finding(
            kind="lost_class",
            severity="warning",
            names=(),
            message=f"no row of class {shortened(name)} can be used, so the class is left out",
        )
        for name in source.lost_classes
    ]
    num_rows = len({(row.split, row.file) for row in source.bad_rows})
    return Audit(num_images=audit.num_images + num_rows, findings=(*found, *audit.findings))
