"""A manifest of a data set without what the audit found: the images themselves stay where and as they are."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

from vivace.data.audit import Audit, Finding
from vivace.data.caching.cache import Cache
from vivace.data.decoding.decode import shown
from vivace.data.labelsets import names_in
from vivace.data.layouts.manifests import open_manifest
from vivace.data.splits import DataSource
from vivace.errors import DataError, OutputPathError, VivaceError
from vivace.files import atomic_file
from vivace.notices import collected_warnings
from vivace.outputs import check_file, writing
from vivace.verbs.reportfiles import data_folders

__all__ = ["check_fix", "removed_names", "write_fixed"]

GROUPS = ("near_leak", "near_contradiction", "near_duplicate", "duplicate", "leak")


def check_fix(path: Path, where: object) -> None:
    """Raises OutputPathError unless a manifest may be written there: nothing is overwritten, not even our own.

    where: the data; a manifest in a folder of images could change how that is read.
    """
    check_file(path, outside=data_folders(where), option="`fix`")
    if path.suffix.lower() != ".csv":
        raise OutputPathError(f"`fix` is a table: got {path.name}. Give a name that ends in .csv.")


def removed_names(audit: Audit, findings: Sequence[Finding], *, fix_labels: bool) -> frozenset[str]:
    """The names, as split:name, that a fixed manifest leaves out.

    What train leaves out is out. Of images that are the same or nearly so, test images stay, all of them; then those of
    val; of train the first, if no other split has one and all have one label, else none. Labels that are probably
    wrong are out if fix_labels, in train alone.
    """
    out = set(audit.quarantined | audit.unreadable)
    for finding in findings:
        if finding.kind in GROUPS:
            out |= _of_group(finding, out)
        elif finding.kind == "label_error" and fix_labels:
            out |= {name for name in finding.names if name.startswith("train:")}
    return frozenset(out)


def _of_group(finding: Finding, out: Collection[str]) -> set[str]:
    members = [name for name in finding.names if name not in out]
    of = {split: [name for name in members if name.startswith(f"{split}:")] for split in ("train", "val", "test")}
    if of["test"]:
        return {*of["train"], *of["val"]}
    if of["val"]:
        return {*of["train"], *of["val"][1:]}
    # nobody knows which label is right
    return set(of["train"]) if finding.kind == "near_contradiction" else set(of["train"][1:])


def write_fixed(path: Path, cache: Cache, out: Collection[str]) -> int:
    """Write file_name, label and split of all images but `out`; returns how many are listed.

    Files are named by their absolute paths. Raises DataError for images that are in no files or for names that a table
    would read otherwise, OutputPathError if a file is there by now, VivaceError if it can't be written.
    """
    source = cache.source
    rows = [
        (str(Path(file).absolute()), _cell(source, int(label)), split)
        for split, part in source.splits.items()
        for name, file, label in zip(part.names, _files(source, split), part.labels, strict=True)
        if f"{split}:{name}" not in out
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("file_name", "label", "split"))
    writer.writerows(rows)
    try:
        data = text.getvalue().encode()
    except UnicodeEncodeError:
        raise DataError("a file's name is no UTF-8, so a table can't name it. Rename it, or leave `fix` out.") from None
    check_file(path, option="`fix`")
    with writing(path), atomic_file(path) as file:
        file.write(data)
    _check_read_back(path, source, rows)
    return len(rows)


def _files(source: DataSource, split: str) -> Sequence[str]:
    paths = source.splits[split].paths
    if paths is None:
        raise DataError(f"the images of {source.name} are in no files, which a manifest could list. Leave `fix` out.")
    return paths


def _cell(source: DataSource, label: int) -> str:
    if source.label_sets is None:
        return source.classes[label]
    return "; ".join(name for name, has in zip(source.classes, source.label_sets[label], strict=True) if has)


def _check_read_back(path: Path, source: DataSource, rows: Sequence[tuple[str, str, str]]) -> None:
    """Remove the table again, and raise DataError, unless it is read as it was meant."""
    several = source.label_sets is not None
    try:
        with collected_warnings():
            read = open_manifest(path, require_train=False, multi_label=several)
        found = {
            (file, frozenset(names_in(group)) if not several else frozenset(_names(read, int(label))), split)
            for split, part in read.splits.items()
            for file, label in zip(part.paths or (), part.labels, strict=True)
            for group in [read.group_names[int(label)]]
        }
        meant = {
            (file, frozenset(part for part in cell.split("; ") if part) if several else frozenset([cell]), split)
            for file, cell, split in rows
        }
        # a folder of the path may be a link, so the names of the files are what is compared
        same = _named(found) == _named(meant)
    except VivaceError:
        same = False
    if not same:
        path.unlink()
        odd = next((text for file, cell, _ in rows for text in (Path(file).name, cell) if _is_odd(text)), None)
        such = "a class called NaN or names with ';'" if odd is None else f"the name {shown(odd)}"
        raise DataError(
            f"a table would be read otherwise than {source.name} is, as by {such}. Rename it, or leave `fix` out."
        )


def _is_odd(name: str) -> bool:
    """Whether a table may read a name as something else."""
    return not name.isprintable() or ";" in name or name != name.strip() or name.lower() in ("", "nan", "none", "null")


def _names(source: DataSource, label: int) -> list[str]:
    assert source.label_sets is not None
    return [name for name, has in zip(source.classes, source.label_sets[label], strict=True) if has]


def _named(rows: Collection[tuple[str, frozenset[str], str]]) -> list[tuple[str, tuple[str, ...], str]]:
    return sorted((Path(file).name, tuple(sorted(labels)), split) for file, labels, split in rows)
