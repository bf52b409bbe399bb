"""Which column of a table names the image, which the class and which the split, as people call them (no torch here)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vivace.data.layouts.assemble import some
from vivace.data.layouts.splitnames import split_of
from vivace.errors import DataError, nearest

__all__ = ["Columns", "check_width", "choose_columns", "flag_of", "names_images", "numbered"]

# of a table: a column for each of ten thousand classes
MAX_COLUMNS = 10_000

# in the order in which they are taken; as `_plain` makes them
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
# column → the split of the images that it marks
FLAGS = {"is_valid": "val", "is_val": "val", "is_validation": "val", "valid": "val", "is_test": "test", "test": "test"}
# what is written behind the names of columns that have one name, to tell them apart
NUMBERED = re.compile(r" \(column \d+\)$")
TRUE, FALSE = ("1", "1.0", "true", "t", "yes", "y"), ("", "0", "0.0", "false", "f", "no", "n")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that are read, by their own names."""

    image: str
    label: str | None
    """None: `one_hot`."""
    one_hot: tuple[str, ...] = ()
    """A column for each class, 1 in one of them."""
    split: str | None = None
    flags: tuple[tuple[str, str], ...] = ()
    """(column, split of the rows that it marks)."""
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """Every column that is read."""
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
    """The columns of a table. first: its first row; where: the table, for messages; the others: as the user named them.

    Raises DataError if the image's or the class's is not found, or two columns have the name of one that is used.
    """
    image = _named(names, image_column, where) or _by_name(names, IMAGE_NAMES)
    if image is None:
        raise DataError(
            f"{where}: no column names the image files, only {some(names)} were found."
            f"{nearest('file_name', names)} Call it file_name, or name it by --image-column."
        )
    notes: list[str] = []
    split = _by_name([name for name in names if name != image], SPLIT_COLUMNS)
    if split is not None and _plain(split) != "split" and not split_of(str(first.get(split))):
        notes.append(f"the column {split} names no splits and was not used")
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
            notes.append(f"one-hot columns found: {some(one_hot)}")
        elif len(rest) == 1:
            label = rest[0]
        else:
            raise DataError(
                f"{where}: no column holds the classes, only {some(names)} were found. "
                "Call it label, or name it by --label-column."
            )
    if label is not None and (_plain(image), _plain(label)) != ("file_name", "label"):
        notes.append(f"images are named by the column {image.strip()}, classes by {label.strip()}")
    found = Columns(image=image, label=label, one_hot=one_hot, split=split, flags=flags, notes=tuple(notes))
    _check_single(names, [name for name in found.all if name not in (image_column, label_column)], where)
    return found


def numbered(names: Sequence[str]) -> list[str]:
    """The names of the columns of a CSV, with their places where several have one name."""
    counts = Counter(names)
    return [f"{name} (column {place})" if name and counts[name] > 1 else name for place, name in enumerate(names, 1)]


def flag_of(value: Any) -> bool | None:
    """A truth value as people write it; None for anything else."""
    text = "" if value is None else str(value).strip().lower()
    return True if text in TRUE else False if text in FALSE else None


def check_width(num_columns: int, where: str) -> None:
    """Raise DataError if a table has more columns than any that lists images: each is looked at in several ways."""
    if num_columns > MAX_COLUMNS:
        raise DataError(
            f"{where}: {num_columns:,} columns, the cap is {MAX_COLUMNS:,}. Leave out those that are neither files, "
            "classes nor splits."
        )


def names_images(name: str) -> bool:
    """Whether a column of this name is taken for that of the images."""
    return _plain(name) in IMAGE_NAMES


def find_column(names: Sequence[str], wanted: str) -> str | None:
    """The column of this name, else the first that differs from it by case, blanks and the like alone; or None."""
    for same in (lambda name: name == wanted, lambda name: _plain(name) == _plain(wanted)):
        if found := next(filter(same, names), None):
            return found
    return None


def _check_single(names: Sequence[str], used: Sequence[str], where: str) -> None:
    """Raise DataError if several columns have the name of one that is used: which of them is meant is a guess."""
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault(_plain(name), []).append(name)
    for name in used:
        if len(twins := same[_plain(name)]) > 1:
            raise DataError(
                f"{where}: {len(twins)} columns have one name: {some(twins, 3)}. Rename all but one, or tell which is "
                f"meant by --image-column or --label-column, such as --label-column {twins[0]!r}."
            )


def _named(names: Sequence[str], wanted: str | None, where: str) -> str | None:
    if wanted is None:
        return None
    if found := find_column(names, wanted):
        return found
    raise DataError(f"{where}: there is no column {wanted!r}, only {some(names)}.{nearest(wanted, names)}")


def _by_name(names: Sequence[str], known: Sequence[str]) -> str | None:
    own = {_plain(name): name for name in reversed(names)}
    return next((own[name] for name in known if name in own), None)


def _plain(name: str) -> str:
    """A column's name without regard to case, blanks and the like."""
    return re.sub(r"[\s\-.]+", "_", NUMBERED.sub("", name).strip().strip("\ufeff\"'").lower())
