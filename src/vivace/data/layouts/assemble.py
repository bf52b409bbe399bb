"""Builds a data source from labelled files; drops what does not fit between the splits, and notes what was dropped."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from vivace.data.labelsets import LabelSet, label_sets_of, names_in
from vivace.data.layouts.splitnames import SPLIT_ORDER
from vivace.data.splits import MIN_IMAGES_PER_CLASS, DataSource, Split
from vivace.data.text import case_hint, count_of, first_few
from vivace.errors import DataError

__all__ = ["Items", "assemble", "consistent", "twins"]

Items = list[tuple[str, str]]
T = TypeVar("T")
# a whole number: sign, digits without the zeros before them
NUMBER = re.compile(r"(-?)0*([0-9]+)(?:\.0*)?", re.ASCII)


def assemble(
    name: str,
    root: Path,
    items: Mapping[str, Items],
    *,
    require_train: bool,
    notes: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> DataSource:
    """The data source of `items`: split → (file, label) pairs, in order.

    With `require_train`, two things are left out and noted: classes with a single training image, and images of val and
    test whose class is not in train. Where labels are sets (LabelSet), the images stay, without these labels. Raises
    DataError if the name of a class is not UTF-8, or if val or test has no class in common with train.
    """
    all_notes = list(notes)
    kept = consistent(items, all_notes, require_train=require_train)
    label_sets = None
    multi_label = _has_sets(kept)
    if multi_label:
        classes, label_sets, index = label_sets_of(label for rows in kept.values() for _, label in rows)
    else:
        classes = tuple(sorted({label for rows in kept.values() for _, label in rows}))
        index = {label: number for number, label in enumerate(classes)}
    all_notes += twins(classes)
    prefix = os.fspath(root) + os.sep
    splits = {
        split: Split(
            name=split,
            names=tuple(file[len(prefix) :] if file.startswith(prefix) else file for file, _ in rows),
            labels=np.asarray([index[_text_of(label, multi_label)] for _, label in rows], dtype=np.int64),
            paths=tuple(file for file, _ in rows),
        )
        for split, rows in kept.items()
    }
    return DataSource(
        name=name,
        classes=classes,
        label_sets=label_sets,
        splits=splits,
        root=root,
        ignored=tuple(ignored),
        notes=tuple(all_notes),
    )


def consistent(
    items: Mapping[str, list[tuple[T, str]]], notes: list[str], *, require_train: bool
) -> dict[str, list[tuple[T, str]]]:
    """The splits that have images, in order, without what does not fit between them; the rest is as for `assemble`.

    items: split → (image, class) pairs; in place of a class a LabelSet.
    """
    kept = {split: items[split] for split in SPLIT_ORDER if items.get(split)}
    _check_names({name for rows in kept.values() for _, label in rows for name in names_in(label)})
    if require_train and "train" in kept:
        if _has_sets(kept):
            return _with_trained_labels(kept, notes)
        kept = _without_rare(kept, notes)
        kept = _without_untrained(kept, notes)
    return kept


def _has_sets(items: Mapping[str, list[tuple[T, str]]]) -> bool:
    return any(isinstance(label, LabelSet) for rows in items.values() for _, label in rows)


def _text_of(label: str, multi_label: bool) -> str:
    """The key of a label in the numbering; beside sets, a class is a set of one."""
    return str(LabelSet(names_in(label))) if multi_label else label


def _with_trained_labels(items: dict[str, list[tuple[T, str]]], notes: list[str]) -> dict[str, list[tuple[T, str]]]:
    """Sets of labels without those that have too few training images; the images stay.

    Noted are labels with a single training image, labels of val and test that are not in train, and labels that these
    lack. Raises DataError if one of them has no label in common with train.
    """
    counts = Counter(name for _, label in items["train"] for name in names_in(label))
    trained = {name for name, count in counts.items() if count >= MIN_IMAGES_PER_CLASS}
    if len(trained) < 2:
        # the caller raises an error that states the minimum
        trained = set(counts)
    if rare := sorted(set(counts) - trained):
        notes.append(f"left out {count_of(len(rare), 'label')} with one training image: {first_few(rare)}")
    for split in [name for name in SPLIT_ORDER[1:] if name in items]:
        own = {name for _, label in items[split] for name in names_in(label)}
        if own and not own & trained:
            raise DataError(
                f"train and {split} have no label in common: train has {first_few(sorted(trained))}; {split} has "
                f"{first_few(sorted(own))}{case_hint(own, trained)}. Give them the same names."
            )
        if strange := sorted(own - set(counts)):
            notes.append(
                f"left out {count_of(len(strange), 'label')} of {split} not in train: {first_few(strange)}"
                f"{case_hint(strange, trained)}; their images stay, without them"
            )
        if missing := sorted(trained - own):
            notes.append(f"{split} has no images of {first_few(missing)}, so it gives no metrics for them")
    return {
        split: [(file, LabelSet(name for name in names_in(label) if name in trained)) for file, label in rows]
        for split, rows in items.items()
    }


def _check_names(labels: set[str]) -> None:
    for label in sorted(labels):
        if not _is_utf8(label):
            raise DataError(f"the name of a class is not UTF-8: {ascii(label)[:100]}. Rename it: give UTF-8.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_rare(items: dict[str, list[tuple[T, str]]], notes: list[str]) -> dict[str, list[tuple[T, str]]]:
    """Drop the classes with a single training image: no image of them could be held out for validation."""
    counts = Counter(label for _, label in items["train"])
    rare = sorted(label for label, count in counts.items() if count < MIN_IMAGES_PER_CLASS)
    # with fewer than two classes left, the caller raises an error that states the minimum
    if not rare or len(counts) - len(rare) < 2:
        return items
    notes.append(f"left out {count_of(len(rare), 'class', 'classes')} with one training image: {first_few(rare)}")
    out = set(rare)
    return {split: [row for row in rows if row[1] not in out] for split, rows in items.items()}


def _without_untrained(items: dict[str, list[tuple[T, str]]], notes: list[str]) -> dict[str, list[tuple[T, str]]]:
    """Drop the images of val and test whose class is not in train; note the classes that val and test lack."""
    trained = {label for _, label in items["train"]}
    kept = {"train": items["train"]}
    for split in SPLIT_ORDER[1:]:
        rows = items.get(split)
        if rows is None:
            continue
        own = {label for _, label in rows}
        if not own & trained:
            raise DataError(
                f"train and {split} have no class in common: train has {first_few(sorted(trained))}; {split} has "
                f"{first_few(sorted(own))}{case_hint(own, trained)}. Give them the same class names."
            )
        kept[split] = [row for row in rows if row[1] in trained]
        if own - trained:
            count = len(rows) - len(kept[split])
            notes.append(f"left out {count_of(count, 'image')} of {split} whose classes are not in train: "
                        f"{first_few(sorted(own - trained))}{case_hint(own - trained, trained)}")  # fmt: skip
        if trained - own:
            notes.append(
                f"{split} has no images of {first_few(sorted(trained - own))}, so it gives no metrics for them"
            )
    return kept


def twins(classes: Sequence[str]) -> list[str]:
    """Notes on classes whose names differ only in case, or are the same number: allowed, but often a mistake."""
    notes = []
    for what, key in (("differ only in case", str.lower), ("are the same number", _number)):
        first: dict[str, str] = {}
        pairs = [f"{twin} and {name}" for name in classes if (twin := first.setdefault(key(name), name)) != name]
        notes += [f"classes that {what}: {first_few(pairs, 3)}"] if pairs else []
    return notes


def _number(name: str) -> str:
    """The name with numbers in one spelling, 7 for 007 and 7.0; other names are unchanged."""
    found = NUMBER.fullmatch(name)
    return f"{found[1]}{found[2]}" if found else name
