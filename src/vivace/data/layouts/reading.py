"""How the cells of a table's labels are read: one class, several, or columns of 0 and 1 (no torch here).

A table's labels are looked at as a whole before its rows are read: whether "cat; tabby" is one class or two labels
can't be told from one cell.
"""

from __future__ import annotations

import ast
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivace.data.labelsets import LabelSet
from vivace.data.layouts.badrows import BadRowError
from vivace.data.layouts.columns import Columns, choose_columns, flag_of
from vivace.data.layouts.tables import open_table
from vivace.data.text import count_of, first_few, shortened
from vivace.errors import DataError

__all__ = ["ONE_CLASS", "Reading", "Seen", "hot_of", "listed", "look_at", "normalized", "reading_of", "set_in"]

SEPARATORS = (";", "|")
# of the rows with separators, the fraction whose parts must all be in other cells too
MIN_COMMON = 0.75
# a longer text is no list of labels
MAX_LIST = 20_000
FORCE = "`data.multi_label=True`"
UNDO = "`data.multi_label=False`"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a table's labels are read."""

    multi_label: bool = False
    separator: str | None = None
    """Splits the text of a cell into labels."""
    lists: bool = False
    """A cell holds a list of labels, or the text of one."""
    notes: tuple[str, ...] = ()

    def labels(self, value: Any) -> LabelSet | None:
        """The labels in a cell; None if it is empty, which says nothing about its labels.

        value: text, a number, or a list. Raises ValueError for a list of anything but text and whole numbers.
        """
        names = listed(value) if self.lists else None
        if names is None:
            text = "" if value is None or value != value else str(value).strip()
            if not text:
                return None
            names = text.split(self.separator) if self.separator else [text]
        return LabelSet(name.strip() for name in names if name.strip())


ONE_CLASS = Reading()


@dataclass
class Seen:
    """What the label cells of a table hold, of all of its rows."""

    cells: Counter[str] = field(default_factory=Counter)
    """Texts that are no lists, and how many rows have each."""
    num_lists: int = 0
    """Values that are lists."""
    num_texts_of_lists: int = 0
    longest: int = 0
    """Labels in the longest list."""
    num_hot: Counter[int] = field(default_factory=Counter)
    """Columns that are 1 in a row → rows."""

    def add(self, columns: Columns, row: Mapping[str, Any]) -> None:
        """Look at a row."""
        if columns.label is None:
            self.num_hot[sum(flag_of(row.get(name)) is True for name in columns.one_hot)] += 1
            return
        value = row.get(columns.label)
        try:
            names = listed(value)
        except ValueError:
            # what is wrong with it is said with its line
            names = []
        if names is not None:
            self.longest = max(self.longest, len(names))
            self.num_lists += not isinstance(value, str)
            self.num_texts_of_lists += isinstance(value, str)
        elif isinstance(value, str) and value.strip():
            self.cells[value.strip()] += 1


def look_at(tables: Iterable[Path], *, image_column: str | None, label_column: str | None) -> Seen:
    """What the label cells of the tables of a data set hold. Raises DataError."""
    seen = Seen()
    for path in tables:
        with open_table(path, []) as (names, first, rows):
            if not names:
                continue
            columns = choose_columns(names, first, str(path), image_column=image_column, label_column=label_column)
            for _, row in rows([columns.label] if columns.label else list(columns.one_hot)):
                seen.add(columns, row)
    return seen


def reading_of(seen: Seen, multi_label: bool | None) -> Reading:
    """How such labels are read. multi_label: what the user says; None: by the rule below, with a note.

    Columns of 0 and 1: several labels if a row has several ones. Lists: several labels if a list holds several. Text
    with ; or |: several labels if in three quarters of the rows that have it, at least two, all parts are in other
    cells too, alone or beside others. So classes with such a sign in their names stay whole, and so do paths, such as
    animal|dog, whose last part is in no other.
    """
    if multi_label is False:
        return Reading(lists=bool(seen.num_lists) and seen.longest <= 1)
    if seen.num_hot:
        several, none = sum(count for hot, count in seen.num_hot.items() if hot > 1), seen.num_hot[0]
        if not several:
            return Reading(multi_label=bool(multi_label))
        line = f"several labels an image: {count_of(several, 'row')} with several columns of 1"
        return Reading(multi_label=True, notes=(f"{line}, {none:,} without one" if none else line,))
    if seen.num_lists or (seen.num_texts_of_lists and not seen.cells):
        if seen.longest <= 1 and multi_label is None:
            return Reading(lists=True)
        return Reading(multi_label=True, lists=True, notes=("several labels an image, in lists",))
    separator, common = _separator(seen.cells)
    if multi_label:
        return Reading(multi_label=True, separator=separator, lists=bool(seen.num_texts_of_lists))
    if separator is None:
        return ONE_CLASS
    having = [cell for cell in seen.cells if separator in cell]
    if common:
        rows = sum(seen.cells[cell] for cell in having)
        line = (
            f"several labels an image, with {separator} between them ({count_of(rows, 'row')}, {first_few(having, 1)})"
        )
        lists = bool(seen.num_texts_of_lists)
        note = f"{line}: {UNDO} reads each cell as one class"
        return Reading(multi_label=True, separator=separator, lists=lists, notes=(note,))
    return Reading(
        notes=(
            f"{separator} was read as part of the name of {count_of(len(having), 'class', 'classes')}, such as "
            f"{first_few(having, 1)}: {FORCE} reads several labels",
        )
    )


def _separator(cells: Mapping[str, int]) -> tuple[str | None, bool]:
    """(the sign that most cells have between other text, whether its parts are labels by the rule); (None, False).

    cells: text → rows.
    """
    having = {sign: [cell for cell in cells if len(_parts(cell, sign)) > 1] for sign in SEPARATORS}
    sign = max(SEPARATORS, key=lambda sign: len(having[sign]))
    if not having[sign]:
        return None, False
    in_cells = Counter(part for cell in cells for part in _parts(cell, sign))
    num_rows = sum(cells[cell] for cell in having[sign])
    common = sum(cells[cell] for cell in having[sign] if all(in_cells[part] > 1 for part in _parts(cell, sign)))
    return sign, num_rows > 1 and common >= MIN_COMMON * num_rows


def _parts(cell: str, sign: str) -> set[str]:
    return {part.strip() for part in cell.split(sign) if part.strip()}


def listed(value: Any) -> list[str] | None:
    """The labels in a list, or in the text of one as JSON and Python write it; None for anything else.

    Raises ValueError for a list of anything but text and whole numbers.
    """
    if isinstance(value, list | tuple):
        items = list(value)
    elif isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        found = _parsed(value.strip())
        if found is None:
            return None
        items = found
    else:
        return None
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int):
            raise ValueError(f"a list of labels holds {str(item)[:60]!r}. Write names or whole numbers")
    return [str(item) for item in items]


def _parsed(text: str) -> list[Any] | None:
    if len(text) > MAX_LIST:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, list):
            return found
    return None


def set_in(reading: Reading, row: Mapping[str, Any], column: str, where: str) -> str | None:
    """The labels in a cell, or the name in a list of one; None where a cell is read as the text of one class.

    Raises BadRowError for an empty cell, DataError for a list of anything but names.
    """
    if not (reading.multi_label or reading.lists):
        return None
    try:
        found = reading.labels(row.get(column))
    except ValueError as error:
        raise DataError(f"{where}: {shortened(column, 30)}: {error}.") from None
    if reading.multi_label:
        if found is None:
            # which of the two is meant would be a guess
            raise BadRowError(
                f"{shortened(column, 30)} is empty; write [] where an image has no label", "missing_label"
            )
        return found
    if found is None or not found.names:
        raise BadRowError(f"{shortened(column, 30)} is empty", "missing_label")
    return found.names[0]


def normalized(label: str) -> str:
    """The class or classes in Unicode's normal form C."""
    if isinstance(label, LabelSet):
        return LabelSet(unicodedata.normalize("NFC", name) for name in label.names)
    return unicodedata.normalize("NFC", label)


def hot_of(names: tuple[str, ...], row: Mapping[str, Any], where: str, *, several: bool = False) -> str:
    """The class whose column holds 1; several: the set of these."""
    hot = []
    for name in names:
        flag = flag_of(row.get(name))
        if flag is None:
            raise DataError(
                f"{where}: the one-hot column {shortened(name)} is neither 0 nor 1: got {row.get(name)!r}. "
                "If the classes are in one column, name it by `label_column`."
            )
        hot += [name] if flag else []
    if several:
        return LabelSet(name.strip() for name in hot)
    if not hot:
        raise BadRowError("none of the one-hot columns is 1", "missing_label")
    if len(hot) != 1:
        raise DataError(
            f"{where}: {len(hot)} one-hot columns are 1, but an image has one class: got "
            f"{', '.join(map(shortened, hot[:3]))}. Give one class per image, name its column by `label_column`, or "
            f"set {FORCE}."
        )
    return hot[0].strip()
