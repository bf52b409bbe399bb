"""Finds the files that a table names: as named, with an extension added, or in a subfolder (no torch here)."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from pathlib import Path

from vivace.data.decoding.formats import EXTENSIONS, REFUSED_EXTENSIONS
from vivace.data.layouts.badrows import BadRowError
from vivace.data.layouts.listing import check_inside, scan
from vivace.data.layouts.splitnames import is_system, split_of
from vivace.data.text import shortened
from vivace.errors import DataError, printable

__all__ = ["Finder", "quoted"]

SURROGATE = re.compile(r"[\ud800-\udfff]")
# subfolders that are searched for a file which is not where the table says
MAX_FOLDERS = 100
# entries in all searched folders together, counted once per link to a folder: some seconds and a GB of memory
MAX_LISTED = 5_000_000
ENDINGS = ("", *sorted(EXTENSIONS), *sorted(ending.upper() for ending in EXTENSIONS))


class Finder:
    """Finds the files that a table names.

    inside_only: absolute names outside the table's folder are refused. follow_links: links may lead out of it.
    """

    def __init__(self, table: Path, *, inside_only: bool, follow_links: bool) -> None:
        self._root = os.fspath(table.parent.resolve())
        self._inside_only, self._follow_links = inside_only, follow_links
        self._stem, self._table = table.stem, table.name
        self._last: tuple[str, str] | None = None
        self._folders: list[str] | None = None
        self._subfolders: list[frozenset[str]] = []
        self._listed: dict[str, dict[str, int]] = {}
        self._num_listed = 0
        self._inside: set[str] = set()
        self._example = self._backslashes = ""

    def find(self, name: str, where: str) -> str:
        """The path of a readable image file.

        where: the start of error messages, such as a table and its line. Raises BadRowError if there is no such file
        or its format is not allowed, DataError if it may not be read.
        """
        file = self._joined("", name, where)
        if not _is_file(file):
            file = self._slashed(name, where) or self._elsewhere(name, where)
        if not self._follow_links and (self._inside_only or not os.path.isabs(name)):  # noqa: PTH117
            self._check_links(file, where)
        if not os.access(file, os.R_OK, effective_ids=True):
            raise DataError(f"{where}: the file can't be read: {quoted(name)}. Check its permissions.")
        if os.path.splitext(file)[1].lower() in REFUSED_EXTENSIONS:  # noqa: PTH122
            raise BadRowError(f"the format is not allowed: {quoted(name)}", "format_not_allowed")
        return file

    def notes(self) -> list[str]:
        """Notes on guesses."""
        return [note for note in (self._backslashes, self._example) if note]

    def _joined(self, folder: str, name: str, where: str) -> str:
        file = os.path.normpath(os.path.join(self._root, folder, name))  # noqa: PTH118
        inside = file.startswith(self._root + os.sep)
        if not inside and (self._inside_only or not os.path.isabs(name)):  # noqa: PTH117
            raise DataError(f"{where}: the file lies outside the manifest's folder: {quoted(name)}. Move it in.")
        return file

    def _check_links(self, file: str, where: str) -> None:
        folder = os.path.dirname(file)  # noqa: PTH120 (a million rows)
        if folder not in self._inside:
            check_inside(folder, self._root, where)
            self._inside.add(folder)
        if os.path.islink(file):  # noqa: PTH114
            check_inside(file, self._root, where)

    def _slashed(self, name: str, where: str) -> str | None:
        """The file of a name with Windows' backslashes, or None."""
        if "\\" not in name:
            return None
        file = self._joined("", name.replace("\\", "/"), where)
        if not _is_file(file):
            return None
        self._note_backslashes(name)
        return file

    def _note_backslashes(self, name: str) -> None:
        self._backslashes = self._backslashes or (
            f"backslashes in file names of {self._table} were read as slashes, as in {quoted(name)}"
        )

    def _elsewhere(self, given: str, where: str) -> str:
        name = os.path.normpath(given)
        found = self._like_the_last(name, where) or self._looked_up(name, where)
        slashed = given.replace("\\", "/")
        if found is None and slashed != given:
            name = os.path.normpath(slashed)
            found = self._like_the_last(name, where) or self._looked_up(name, where)
            if found is not None:
                self._note_backslashes(given)
        if found is None:
            # bytes that are not UTF-8 are surrogates
            hint = " (the name is not UTF-8: save the table as UTF-8)" if SURROGATE.search(given) else ""
            hint = " (nor with / in place of \\)" + hint if slashed != given else hint
            raise BadRowError(f"there is no such file: {quoted(given)}{hint}", "missing_file")
        folder, ending = self._last = found
        file = self._joined(folder, name + ending, where)
        if not self._example:
            short = file.removeprefix(self._root + os.sep)
            self._example = f"files that are not where the table says were found elsewhere, such as {short}"
        return file

    def _like_the_last(self, name: str, where: str) -> tuple[str, str] | None:
        """(folder, ending) of the file found last, if this one is there too: usually all of them are."""
        if self._last is not None and _is_file(self._joined(self._last[0], name + self._last[1], where)):
            return self._last
        return None

    def _looked_up(self, name: str, where: str) -> tuple[str, str] | None:
        """(folder, ending) of the first folder that has the file; each folder is listed only once."""
        inner, base = os.path.split(name)
        if inner not in self._listed:
            self._listed[inner] = self._list(inner, where)
        there, known = self._listed[inner], os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122
        found = [(there[base + ending], ending) for ending in ENDINGS[: 1 if known else None] if base + ending in there]
        # the first folder that has it
        place = min(found, key=lambda pair: pair[0], default=None)
        return None if place is None else (self._places()[place[0]], place[1])

    def _list(self, inner: str, where: str) -> dict[str, int]:
        """File name in `inner` → index of the first folder in `_places` that has such a file."""
        there: dict[str, int] = {}
        places, first = enumerate(self._places()), inner.partition(os.sep)[0]
        for number, folder in itertools.islice(places, 1 if os.path.isabs(inner) else None):  # noqa: PTH117
            if first and first not in self._subfolders[number]:
                # most files that don't exist are dismissed here, without listing a folder
                continue
            path = os.path.join(self._root, folder, inner)  # noqa: PTH118
            if not os.access(path, os.R_OK | os.X_OK, effective_ids=True) or not os.path.isdir(path):  # noqa: PTH112
                continue
            entries = scan(path)
            self._num_listed += len(entries)
            if self._num_listed > MAX_LISTED:
                raise DataError(
                    f"{where}: searched over {MAX_LISTED:,} files for those that are not where {self._table} says. "
                    "Write the file names relative to its folder."
                )
            for entry in entries:
                # entry.is_file raises OSError for a link to itself
                if os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():  # noqa: PTH113
                    there.setdefault(entry.name, number)
        return there

    def _places(self) -> list[str]:
        if self._folders is None:
            entries = [entry for entry in scan(self._root) if not is_system(entry.name)]
            found = [entry.name for entry in entries if _is_folder(entry)]
            own = split_of(self._stem)
            # train.csv: search in train/ first
            self._folders = ["", *sorted(found, key=lambda folder: (own is None or split_of(folder) != own, folder))]
            self._folders = self._folders[:MAX_FOLDERS]
            self._subfolders = [_subfolders(os.path.join(self._root, folder)) for folder in self._folders]  # noqa: PTH118
        return self._folders


def _subfolders(path: str) -> frozenset[str]:
    with contextlib.suppress(DataError):
        return frozenset(entry.name for entry in scan(path) if _is_folder(entry))
    return frozenset()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir raises OSError for a link to itself; for anything but a link it needs no system call
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112


def _is_file(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a million rows)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode)


def quoted(name: str) -> str:
    """A name in quotes, as it is written; repr would double its backslashes."""
    return f"'{shortened(printable(name))}'"
