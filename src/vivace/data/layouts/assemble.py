"""A data source from labelled files in splits: what people's splits lack or have too much is left out, and said."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vivace.data.decoding.decode import shown
from vivace.data.layouts.splitnames import SPLIT_ORDER
from vivace.data.splits import MIN_IMAGES_PER_CLASS, DataSource, Split
from vivace.errors import DataError

__all__ = ["Items", "assemble", "by_case", "count_of", "shorter", "some"]

Items = list[tuple[str, str]]
NUM_SHOWN = 5
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
    """The data source of `items`: split → (file, label), in order.

    With `require_train`, classes of one image, and images of val and test whose class is not in train, are left out;
    `notes` says so. Raises DataError for a class that is not UTF-8, or a split that has no class of train.
    """
    said = list(notes)
    kept = {split: items[split] for split in SPLIT_ORDER if items.get(split)}
    _check_names({label for rows in kept.values() for _, label in rows})
    if require_train and "train" in kept:
        kept = _without_rare(kept, said)
        kept = _without_strangers(kept, said)
    classes = tuple(sorted({label for rows in kept.values() for _, label in rows}))
    said += _twins(classes)
    index = {label: number for number, label in enumerate(classes)}
    prefix = os.fspath(root) + os.sep
    splits = {
        split: Split(
            name=split,
            names=tuple(file[len(prefix) :] if file.startswith(prefix) else file for file, _ in rows),
            labels=np.asarray([index[label] for _, label in rows], dtype=np.int64),
            paths=tuple(file for file, _ in rows),
        )
        for split, rows in kept.items()
    }
    return DataSource(name=name, classes=classes, splits=splits, root=root, ignored=tuple(ignored), notes=tuple(said))


def some(names: Sequence[str], limit: int = NUM_SHOWN) -> str:
    """Up to `limit` names for one line of text."""
    rest = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shorter(name) for name in names[:limit]) + rest


def shorter(name: str, length: int = 60) -> str:
    """A name for one line of text, cut where it is long."""
    text = shown(name)
    return text if len(text) <= length else text[: length - 1] + "…"


def count_of(count: int, noun: str, plural: str | None = None) -> str:
    """Such as "1 image" or "1,200 images"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


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


def _without_rare(items: dict[str, Items], said: list[str]) -> dict[str, Items]:
    """Without the classes of a single training image: nothing of them could be held out."""
    counts = Counter(label for _, label in items["train"])
    rare = sorted(label for label, count in counts.items() if count < MIN_IMAGES_PER_CLASS)
    # where fewer than two would be left, the refusal that follows states the minimum
    if not rare or len(counts) - len(rare) < 2:
        return items
    said.append(f"{count_of(len(rare), 'class', 'classes')} of one training image left out: {some(rare)}")
    out = set(rare)
    return {split: [row for row in rows if row[1] not in out] for split, rows in items.items()}


def _without_strangers(items: dict[str, Items], said: list[str]) -> dict[str, Items]:
    """val and test without the images whose class was never trained on; classes that they lack are said."""
    trained = {label for _, label in items["train"]}
    kept = {"train": items["train"]}
    for split in SPLIT_ORDER[1:]:
        rows = items.get(split)
        if rows is None:
            continue
        own = {label for _, label in rows}
        if not own & trained:
            raise DataError(
                f"train and {split} have no class in common: train has {some(sorted(trained))}; {split} has "
                f"{some(sorted(own))}{by_case(own, trained)}. Give them the same class names."
            )
        kept[split] = [row for row in rows if row[1] in trained]
        if own - trained:
            count = len(rows) - len(kept[split])
            said.append(f"{count_of(count, 'image')} of {split} left out, of classes that are not in train: "
                        f"{some(sorted(own - trained))}{by_case(own - trained, trained)}")  # fmt: skip
        if trained - own:
            said.append(f"{split} has no images of {some(sorted(trained - own))}: no metrics for these classes there")
    return kept


def by_case(names: Iterable[str], known: Iterable[str]) -> str:
    """A hint for names that are not among the known ones, where some differ by case alone; else ""."""
    own = {name.lower() for name in names}
    same = sorted(name for name in known if name.lower() in own)
    return f" (by case alone other than {some(same, 3)}: rename one of them)" if same else ""


def _twins(classes: Sequence[str]) -> list[str]:
    """Notes on classes whose names differ by case alone, or are one number: meant so at times, and often a slip."""
    said = []
    for what, key in (("differ by case alone", str.lower), ("are the same number", _number)):
        first: dict[str, str] = {}
        pairs = [f"{twin} and {name}" for name in classes if (twin := first.setdefault(key(name), name)) != name]
        said += [f"classes that {what}: {some(pairs, 3)}"] if pairs else []
    return said


def _number(name: str) -> str:
    """7 for 007 and 7.0 as well; other names as they are."""
    found = NUMBER.fullmatch(name)
    return f"{found[1]}{found[2]}" if found else name
