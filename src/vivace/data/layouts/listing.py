"""Which files below a folder count as images, which are skipped and which links are followed (no torch here)."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec

from vivace.data.decoding.decode import advice, shown
from vivace.data.decoding.formats import EXTENSIONS, FORMATS, HEAD_BYTES, REFUSED_EXTENSIONS, sniff
from vivace.data.layouts.splitnames import SYSTEM_FILES, is_system
from vivace.errors import DataError

__all__ = [
    "LeftOut",
    "Listing",
    "Skipped",
    "check_inside",
    "is_candidate",
    "scan",
    "skipped_summary",
    "unreadable_folder",
]

# kinds of skipped files that a summary names
NUM_KINDS = 6
# longer "extensions" are parts of a sentence in the name
MAX_EXTENSION = 8


@dataclass
class Listing:
    """The images below the folder of one data set. Paths are decoded as by os.fsdecode."""

    root: str
    """Links that lead out of it are followed only if `follow_links`."""
    follow_links: bool = False
    ignored: list[str] = field(default_factory=list)
    """Skipped files, and skipped folders with a slash at the end; relative to the root."""
    broken: list[str] = field(default_factory=list)
    """Broken links in class folders, skipped too; relative to the root."""
    _subfolders: dict[str, dict[str, str]] = field(default_factory=dict)
    _with_images: dict[str, bool] = field(default_factory=dict)

    def subfolders(self, folder: str) -> dict[str, str]:
        """Visible subfolders, name → path, sorted.

        Raises DataError for a link that may not be followed, and for a broken link that may have been a folder.
        """
        if folder not in self._subfolders:
            found, real = {}, os.path.realpath(folder)
            for entry in scan(folder):
                if is_system(entry.name):
                    continue
                if _is_broken(entry):
                    # it may be a whole class on a disk that is not mounted: too much for a note, so an error
                    if not _extension(entry.name):
                        raise DataError(
                            f"a broken or circular link, perhaps of a class: {entry.path}. Mount or restore what "
                            "it leads to, or move the link away."
                        )
                elif self._is_folder(entry, real):
                    found[entry.name] = entry.path
            self._subfolders[folder] = dict(sorted(found.items()))
        return self._subfolders[folder]

    def has_files(self, folder: str) -> bool:
        """Whether there are images directly in the folder."""
        return any(
            not is_system(entry.name) and is_candidate(entry) and not _is_broken(entry) for entry in scan(folder)
        )

    def holds_images(self, folder: str) -> bool:
        """Whether there are images in the folder or below; stops at the first one."""
        if folder not in self._with_images:
            self._with_images[folder] = next(self._candidates(folder, note=False), None) is not None
        return self._with_images[folder]

    def labelled(self, folder: str) -> dict[str, str]:
        """The subfolders that hold images, name → path."""
        return {name: path for name, path in self.subfolders(folder).items() if self.holds_images(path)}

    def images(self, folder: str) -> list[str]:
        """All images in the folder and below, sorted; skipped files are added to `ignored`."""
        return sorted(self._candidates(folder, note=True))

    def skip_files(self, folder: str) -> None:
        """Add the files directly in `folder`, beside the class or split folders, to `ignored`."""
        for entry in scan(folder):
            if is_system(entry.name):
                self._note_system(entry)
            elif not entry.is_dir():
                self._note(entry.path)

    def _candidates(self, folder: str, *, note: bool) -> Iterator[str]:
        """Images below `folder`, without recursion: folders may be nested deeper than Python's recursion limit."""
        start = os.path.realpath(folder)
        seen = {start}
        waiting: list[tuple[str, str, tuple[str, ...]]] = [(folder, start, ())]
        while waiting:
            current, real, came_by = waiting.pop()
            for entry in scan(current):
                if is_system(entry.name):
                    if note:
                        self._note_system(entry)
                elif _is_broken(entry):
                    if note:
                        self.broken.append(entry.path[len(self.root) + 1 :])
                elif self._is_folder(entry, real, came_by):
                    linked = entry.is_symlink()
                    inner = os.path.realpath(entry.path) if linked else f"{real}/{entry.name}"
                    # each folder is read once: a few links between folders could make millions of paths
                    if inner not in seen:
                        seen.add(inner)
                        waiting.append((entry.path, inner, (*came_by, real) if linked else came_by))
                    elif note:
                        self._note(entry.path + os.sep)
                elif self._is_image(entry, note=note):
                    yield entry.path

    def _is_image(self, entry: os.DirEntry[str], *, note: bool) -> bool:
        extension = _extension(entry.name)
        if extension in EXTENSIONS and note:
            _check_plain(entry)
        taken = is_candidate(entry)
        if note and not taken:
            self._note(entry.path)
        return taken

    def _is_folder(self, entry: os.DirEntry[str], real: str, came_by: tuple[str, ...] = ()) -> bool:
        if entry.is_symlink():
            self._check_link(entry.path, (*came_by, real))
        return entry.is_dir()

    def _check_link(self, path: str, above: tuple[str, ...]) -> None:
        """Raise DataError for a link to one of its own parent folders, or out of the root if that is not allowed.

        above: the real path of the folder that holds it, and of those that hold the links by which it was reached.
        """
        target = os.path.realpath(path)
        if any((folder + os.sep).startswith(target + os.sep) for folder in above):
            raise DataError(f"circular link: {path} → {target}. Move the link away.")
        if not self.follow_links:
            check_inside(path, os.path.realpath(self.root))

    def _note(self, path: str) -> None:
        self.ignored.append(path[len(self.root) + 1 :])

    def _note_system(self, entry: os.DirEntry[str]) -> None:
        if entry.is_dir():
            self._note(entry.path + os.sep)
        elif entry.name.casefold() not in SYSTEM_FILES and _extension(entry.name) in EXTENSIONS:
            self._note(entry.path)


def check_inside(path: str, root: str, where: str | None = None) -> None:
    """Raise DataError if links lead `path` out of the data set's folder.

    root: the real path of that folder. where: the start of the message, such as a table and its line.
    """
    target = os.path.realpath(path)
    if not (target + os.sep).startswith(root.rstrip(os.sep) + os.sep):
        raise DataError(
            f"{where + ': ' if where else ''}a link leads out of the data set: {path} → {target}. Follow it by "
            "`follow_links`, or move the link away."
        )


def scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder. Raises DataError if it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise unreadable_folder(folder, error) from None


def unreadable_folder(folder: str, error: OSError) -> DataError:
    """The error to raise if a folder can't be listed."""
    return DataError(f"the folder can't be read: {folder} ({error.strerror}). {advice(error)}")


def _is_broken(entry: os.DirEntry[str]) -> bool:
    """Whether it is a broken or circular link."""
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


def is_candidate(entry: os.DirEntry[str] | str) -> bool:
    """Whether a file counts as an image: by its extension, or by its first bytes if the extension is unknown."""
    path, name = (entry, entry) if isinstance(entry, str) else (entry.path, entry.name)
    extension = _extension(name)
    if extension in REFUSED_EXTENSIONS:
        return False
    if extension in EXTENSIONS:
        return extension not in FORMATS["HEIF"] or (heif_is_read() and _begins_as_heif(path))
    # reading from a pipe would block forever
    if not (os.path.isfile(entry) if isinstance(entry, str) else entry.is_file()):  # noqa: PTH113
        return False
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            kind = sniff(file.read(HEAD_BYTES))
    except OSError:
        return False
    return kind is not None and (kind != "HEIF" or heif_is_read())


def _begins_as_heif(path: str) -> bool:
    """Whether a second box follows the first, as in every HEIC file; phones leave placeholders of photos in a cloud."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(HEAD_BYTES)
            file.seek(int.from_bytes(head[:4], "big"))
            return sniff(head) is not None and (head[4:8] != b"ftyp" or file.read(8)[4:].isalnum())
    except OSError:
        # the audit reports why it can't be read
        return True


@functools.cache
def heif_is_read() -> bool:
    """Whether pillow-heif, which reads HEIC, is installed."""
    return find_spec("pillow_heif") is not None


class LeftOut(str):
    """The name of a file that is skipped for a reason which its extension does not tell."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, name: str, reason: str) -> LeftOut:
        """reason: as in "3 links", plural."""
        made = super().__new__(cls, name)
        made.reason = reason
        return made


class Skipped:
    """Files that are skipped, counted by their kinds: a folder may hold millions."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """names: as in `Listing.ignored`."""
        self.num_files = 0
        self._kinds: Counter[str] = Counter()
        self._folders: Counter[str] = Counter()
        self._heic = False
        for name in names:
            self.append(name)

    def __repr__(self) -> str:
        return f"Skipped(num_files={self.num_files}, kinds={dict(self._kinds)}, folders={dict(self._folders)})"

    def __len__(self) -> int:
        """Number of files, and of folders of the system."""
        return self.num_files + self._folders.total()

    def append(self, name: str) -> None:
        """Count a file, or a folder whose name ends in a slash."""
        if isinstance(name, LeftOut):
            self.num_files += 1
            self._kinds[name.reason] += 1
        elif name.endswith(os.sep):
            self._folders[os.path.basename(name[:-1])] += 1  # noqa: PTH119
        else:
            self.num_files += 1
            self._kinds[_kind(name)] += 1
            self._heic = self._heic or _extension(name) in FORMATS["HEIF"]

    def summary(self, num_taken: int) -> str | None:
        """One line with the number of skipped files and their kinds; None if there are none.

        num_taken: files that were used.
        """
        parts = []
        if self.num_files:
            kinds = self._kinds.most_common()
            listed = [f"{count:,} {kind}" for kind, count in kinds[:NUM_KINDS]]
            if rest := sum(count for _, count in kinds[NUM_KINDS:]):
                listed.append(f"{rest:,} others")
            hint = "; to read HEIC: pip install 'vivace[heic]'" if self._heic and not heif_is_read() else ""
            total = num_taken + self.num_files
            parts.append(f"skipped {self.num_files:,} of {total:,} files: {', '.join(listed)}{hint}")
        if self._folders:
            common = self._folders.most_common(NUM_KINDS)
            listed = [f"{name} ({count:,})" if count > 1 else name for name, count in common]
            parts.append(f"skipped folders of the system, or linked twice: {', '.join(map(shown, listed))}")
        return "; ".join(parts) or None


def skipped_summary(ignored: Iterable[str], num_taken: int) -> str | None:
    """`Skipped.summary` of these names."""
    return Skipped(ignored).summary(num_taken)


def _kind(name: str) -> str:
    """The kind of a skipped file, as the summary names it."""
    base = os.path.basename(name)  # noqa: PTH119
    extension = _extension(base)
    if base.startswith("."):
        return "hidden"
    if not extension:
        return "without extension"
    if len(extension) > MAX_EXTENSION or not extension[1:].isalnum() or not extension.isascii():
        return "with other names"
    if extension in EXTENSIONS and extension not in FORMATS["HEIF"]:
        return f"{extension} outside class folders"
    return extension


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (60,000 Path objects are a second's work)


def _check_plain(entry: os.DirEntry[str]) -> None:
    # reading from a pipe would block forever
    if not entry.is_file():
        raise DataError(f"not a regular file: {entry.path} is a pipe, socket or device. Move it away.")
    # the effective user is the one who will read it
    if not os.access(entry.path, os.R_OK, effective_ids=True):
        raise DataError(f"the file can't be read: {entry.path}. Check its permissions.")
