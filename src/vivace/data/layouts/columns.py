"""Which columns of a table hold the image, the class and the split, by their usual names (no torch here)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vivace.data.layouts.splitnames import split_of
from vivace.data.text import first_few
from vivace.errors import DataError, nearest

__all__ = ["Columns", "check_width", "choose_columns", "flag_of", "names_images", "numbered"]

# enough for one-hot columns of ten thousand classes
MAX_COLUMNS = 10_000

# in order of preference; spelled as by `_plain`
IMAGE_NAMES = (
    "file_name", "filename", "file", "image", "img", "image_name", "image_path", "image_file", "image_filename",
    "img_name", "img_path", "img_file", "path", "filepath", "file_path", "fname", "image_id", "img_id", "photo",
    "picture", "name", "id",
)  # fmt: skip
LABEL_NAMES = (
    "label", "class", "label_name", "class_name", "classname", "class_label", "category", "category_name", "target",
    "labels", "breed", "species", "variety", "cultivar", "diagnosis", "dx", "emotion", "type", "tag", "tags",
    "classification", "label_group", "label_id", "class_id", "category_id", "y",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "data_set", "dataset", "phase", "usage")
# column → the split of the rows that it marks
FLAGS = {"is_valid": "val", "is_val": "val", "is_validation": "val", "valid": "val", "is_test": "test", "test": "test"}
# the suffix that `numbered` gives to columns of the same name
NUMBERED = re.compile(r" \(column \d+\)$")
TRUE, FALSE = ("1", "1.0", "true", "t", "yes", "y"), ("", "0", "0.0", "false", "f", "no", "n")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns to read, by their names in the table."""

    image: str
    label: str | None
    """None: the classes are in `one_hot`."""
    one_hot: tuple[str, ...] = ()
    """One column per class; exactly one of them is 1."""
    split: str | None = None
    flags: tuple[tuple[str, str], ...] = ()
    """(column, split of the rows that it marks)."""
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """All columns to read."""
        flags = [name for name, _ in self.flags]
        return [name for name in (self.image, self.label, *self.one_hot, self.split, *flags) if name is not None]


def choose_columns(
    names: Sequence[str],
    first: Mapping[str, Any],
    where: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Columns:
    """The columns of a table that hold the image, the class and the split.

    first: the first row. where: the table, for messages. image_column, label_column: as named by the user; None: found
    by their usual names. Raises DataError if there is no such column, or if several have the same name.
    """
    image = _named(names, image_column, where) or _by_name(names, IMAGE_NAMES)
    if image is None:
        raise DataError(
            f"{where}: no column holds the image files: got {first_few(names)}."
            f"{nearest('file_name', names)} Call it file_name, or name it by `image_column`."
        )
    notes: list[str] = []
    split = _by_name([name for name in names if name != image], SPLIT_COLUMNS)
    if split is not None and _plain(split) != "split" and not split_of(str(first.get(split))):
        notes.append(f"the column {split} holds no splits and was ignored")
        split = None
    flags = tuple(
        (name, FLAGS[_plain(name)]) for name in names if _plain(name) in FLAGS and flag_of(first.get(name)) is not None
    )
    taken = {image, split, *(name for name, _ in flags)}
    rest = [name for name in names if name not in taken and name.strip()]
    label = _named(names, label_column, where) or _by_name(rest, LABEL_NAMES)
    one_hot: tuple[str, ...] = ()
    if label is None:
        numbers = tuple(name for name in rest if flag_of(first.get(name)) is not None and str(first.get(name)).strip())
        if len(numbers) > 1:
            one_hot = numbers
            notes.append(f"one-hot columns found: {first_few(one_hot)}")
        elif len(rest) == 1:
            label = rest[0]
        else:
            raise DataError(
                f"{where}: no column holds the classes: got {first_few(names)}. "
                "Call it label, or name it by `label_column`."
            )
    if label is not None and (_plain(image), _plain(label)) != ("file_name", "label"):
        notes.append(f"image files are in the column {image.strip()}, classes in {label.strip()}")
    found = Columns(image=image, label=label, one_hot=one_hot, split=split, flags=flags, notes=tuple(notes))
    _check_single(names, [name for name in found.all if name not in (image_column, label_column)], where)
    return found


def numbered(names: Sequence[str]) -> list[str]:
    """The column names of a CSV, with their positions added where several columns have the same name."""
    counts = Counter(names)
    return [f"{name} (column {place})" if name and counts[name] > 1 else name for place, name in enumerate(names, 1)]


def flag_of(value: Any) -> bool | None:
    """A truth value as people write it; None for anything else."""
    text = "" if value is None else str(value).strip().lower()
    return True if text in TRUE else False if text in FALSE else None


def check_width(num_columns: int, where: str) -> None:
    """Raise DataError if a table has more columns than a list of images can need; each costs time."""
    if num_columns > MAX_COLUMNS:
        raise DataError(
            f"{where}: {num_columns:,} columns, the limit is {MAX_COLUMNS:,}. Keep only those for files, classes and "
            "splits."
        )


def names_images(name: str) -> bool:
    """Whether a column of this name is taken to hold the images."""
    return _plain(name) in IMAGE_NAMES


def find_column(names: Sequence[str], wanted: str) -> str | None:
    """The column of this name, or the first that differs only in case, blanks and the like; None if there is none."""
    for same in (lambda name: name == wanted, lambda name: _plain(name) == _plain(wanted)):
        if found := next(filter(same, names), None):
            return found
    return None


def _check_single(names: Sequence[str], used: Sequence[str], where: str) -> None:
    """Raise DataError if a used column shares its name with others: which is meant would be a guess."""
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault(_plain(name), []).append(name)
    for name in used:
        if len(twins := same[_plain(name)]) > 1:
            raise DataError(
                f"{where}: {len(twins)} columns have the same name: {first_few(twins, 3)}. Rename all but one, or "
                f"select one by `image_column` or `label_column`, as in `label_column={twins[0]!r}`."
            )


def _named(names: Sequence[str], wanted: str | None, where: str) -> str | None:
    if wanted is None:
        return None
    if found := find_column(names, wanted):
        return found
    raise DataError(
        f"{where}: there is no column {wanted!r}.{nearest(wanted, names)} Name one of its columns: {first_few(names)}."
    )


def _by_name(names: Sequence[str], known: Sequence[str]) -> str | None:
    own = {_plain(name): name for name in reversed(names)}
    return next((own[name] for name in known if name in own), None)


def _plain(name: str) -> str:
    """A column's name, normalized: lower case, underscores for blanks, hyphens and dots."""
    return re.sub(r"[\s\-.]+", "_", NUMBERED.sub("", name).strip().strip("\ufeff\"'").lower())
