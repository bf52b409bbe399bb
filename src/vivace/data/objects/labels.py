"""From labels as a program has them, numbers or names, to the names of classes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivace.data.arrays import is_tensor
from vivace.data.text import first_few, shortened
from vivace.errors import DataError, nearest

__all__ = ["Label", "class_names", "label_of", "names_of"]

Label = int | str
# why a float can't be a class, and what to do
FLOAT = "Give class numbers as integers, such as labels.astype(int), or names"


def label_of(value: Any, where: str) -> Label:
    """One label: a whole number or a text, also of NumPy or torch. Raises DataError; `where` begins its message."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: the label is empty: got {value!r}. Give the name of a class.")
        return unicodedata.normalize("NFC", value.strip())
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if is_tensor(value) or isinstance(value, np.ndarray):
        size = int(np.prod(tuple(value.shape)))
        if size != 1:
            raise DataError(
                f"{where}: the label is no single value: got {list(value.shape)}. Give one class per image; of one-hot "
                "rows, their argmax."
            )
        return label_of(value.reshape(-1)[0].item(), where)
    if isinstance(value, float | np.floating):
        raise DataError(f"{where}: the label is {'NaN' if value != value else 'a float'}: got {value!s:.40}. {FLOAT}.")
    kind = "None" if value is None else f"a {type(value).__name__}"
    raise DataError(f"{where}: the label is neither a whole number nor a text: got {kind}. {FLOAT}.")


def class_names(classes: Any, notes: list[str]) -> tuple[str, ...] | None:
    """The names in a data set's attribute `classes`; None if it has none that can be used, which `notes` then says.

    Of a class with several names the first is taken. Raises DataError if two classes have the same name.
    """
    if classes is None:
        return None
    found = []
    if not isinstance(classes, str | Mapping) and hasattr(classes, "__iter__"):
        for name in classes:
            first = name[0] if isinstance(name, Sequence) and not isinstance(name, str) and name else name
            found.append(str(first) if isinstance(first, str | int | np.integer) else None)
    names = tuple(unicodedata.normalize("NFC", name) for name in found if name is not None)
    if not names or len(names) != len(found):
        notes.append(f"the attribute classes is no list of names and was ignored: a {type(classes).__name__}")
        return None
    if twins := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"two classes have the same name: got {first_few(twins, 3)}. Rename one of them.")
    return names


def names_of(labels: Sequence[Label], classes: tuple[str, ...] | None, where: str) -> list[str]:
    """The class name of each label. Raises DataError for a label out of range, or that is no class.

    classes: their names, by number; None: text is the name, and a number is named by its digits.
    """
    kinds = {type(label) for label in labels}
    if len(kinds) > 1:
        raise DataError(f"{where}: some labels are numbers, some are text: got {_examples(labels)}. Give one kind.")
    if str in kinds:
        known = None if classes is None else set(classes)
        for position, label in enumerate(labels):
            if known is not None and label not in known:
                raise DataError(
                    f"{where}: label {shortened(str(label))!r} of item {position} is none of its classes."
                    f"{nearest(str(label), known)} They are {first_few(classes or ())}."
                )
        return [str(label) for label in labels]
    limit = None if classes is None else len(classes)
    for position, label in enumerate(labels):
        if int(label) < 0 or (limit is not None and int(label) >= limit):
            wanted = f"from 0 to {limit - 1}, its {limit} classes" if limit is not None else "from 0 on"
            raise DataError(
                f"{where}: a label is out of range: got {label} of item {position}. Give labels {wanted}; leave out "
                "images without a class."
            )
    return [str(label) for label in labels] if classes is None else [classes[int(label)] for label in labels]


def _examples(labels: Sequence[Label]) -> str:
    number = next(label for label in labels if isinstance(label, int))
    text = next(label for label in labels if isinstance(label, str))
    return f"{number!r} and {shortened(text, 30)!r}"
