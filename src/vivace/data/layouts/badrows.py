"""Rows of a manifest that name no usable image or no class: they are treated as corrupt images are (no torch here)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from vivace.data.audit import Audit, Finding, first_messages
from vivace.data.layouts.assemble import Items, count_of, shorter
from vivace.data.splits import BadRow, DataSource
from vivace.errors import DataError

__all__ = ["BadRowError", "Unusable", "audited", "check_rows", "with_bad_rows"]


class Unusable(NamedTuple):
    """A bad row, and the classes that it names."""

    row: BadRow
    labels: frozenset[str]


class BadRowError(DataError):
    """One row can't be used; `reason` is missing_file, missing_label or format_not_allowed."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_rows(items: dict[str, Items], bad: Sequence[Unusable], where: str, *, require_train: bool) -> None:
    """Raise DataError, naming the first lines, if the rows that can be used leave nothing to do."""
    if not bad or (items and (not require_train or len({label for _, label in items.get("train", [])}) > 1)):
        return
    listed = first_messages([row.message for row, _ in bad])
    # a class of one image, or none at all, was nobody's wish
    raise DataError(
        f"{count_of(len(bad), 'row')} of {where} can't be used, and too few are left: {listed}. Correct them."
    )


def with_bad_rows(source: DataSource, bad: Sequence[Unusable]) -> DataSource:
    """The source with its bad rows, and the classes of which nothing else is there."""
    if not bad:
        return source
    lost = frozenset[str]().union(*(labels for _, labels in bad)) - set(source.classes)
    return dataclasses.replace(source, bad_rows=tuple(row for row, _ in bad), lost_classes=tuple(sorted(lost)))


def audited(audit: Audit, source: DataSource) -> Audit:
    """The audit of the images of a source, with a finding for each of its bad rows.

    They are no part of the cache: the table may be corrected while every image stays as it is.
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
            message=f"no row of class {shorter(name)} can be used, and the class is left out",
        )
        for name in source.lost_classes
    ]
    num_rows = len({(row.split, row.file) for row in source.bad_rows})
    return Audit(num_images=audit.num_images + num_rows, findings=(*found, *audit.findings))
