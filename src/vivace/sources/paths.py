"""The files behind paths: folders, globs, and lists on stdin, in the order given."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

from vivace.data.layouts.listing import LeftOut, is_candidate, unreadable_folder
from vivace.data.layouts.splitnames import is_system
from vivace.errors import DataError
from vivace.sources.kinds import packed_extension

__all__ = [
    "ADVICE",
    "Left",
    "expand_paths",
    "folders_of",
    "images_below",
    "lines_of",
    "matches_of",
    "nothing_in",
    "text_of",
    "without_repeats",
]

ADVICE = "Give files, folders, globs, or - for a list on stdin."
# of stdin, at once
CHUNK = 1 << 16
# paths that an error names, and files of a folder that are looked at for what to say of it
NUM_NAMED, NUM_LOOKED_AT = 5, 10_000


class Left(Protocol):
    """What notes the files that are passed over: a list, or their number by kind."""

    def append(self, name: str, /) -> None: ...


def expand_paths(
    paths: Iterable[str | Path], *, stdin: BinaryIO | None = None, passed_over: list[str] | None = None
) -> list[str]:
    """The files behind paths: a folder's images, a glob's matches, stdin's lines for "-"; in the order given.

    Lines of stdin may end in a zero byte instead (find -print0), for names that hold newlines. Below folders, files
    count that are images by extension or content; links to folders, hidden ones and those of the system are not
    followed. What is not taken is added to `passed_over`. A file that was
    named itself is taken whatever its extension, even if it is not there: it is then a failure.
    Raises DataError if there is nothing behind one of the paths, or a folder can't be read.
    """
    files: list[str] = []
    left: list[str] = [] if passed_over is None else passed_over
    for given in paths:
        path = text_of(given)
        names = lines_of(sys.stdin.buffer if stdin is None else stdin) if path == "-" else matches_of(path)
        found = [file for name in names for file in _files_of(name, left)]
        if not found:
            raise nothing_in(path)
        files += found
    if not files:
        raise DataError(f"no images are named: got an empty list. {ADVICE}")
    return files


def nothing_in(*paths: str) -> DataError:
    """The error to raise if there are no images behind paths."""
    shown = ", ".join(map(repr, paths[:NUM_NAMED])) + (
        f" and {len(paths) - NUM_NAMED:,} more" * (len(paths) > NUM_NAMED)
    )
    return DataError(f"there are no images in {shown}{_packed_in(paths[0]) if len(paths) == 1 else ''}. {ADVICE}")


def _packed_in(folder: str) -> str:
    """What files of many images a folder holds, and how to name them; "" if there are none."""
    found: Counter[str] = Counter()
    below: set[str] = set()
    walked = ((parent, name) for parent, _, names in os.walk(folder) for name in names)
    for parent, name in islice(walked, NUM_LOOKED_AT):
        if (extension := packed_extension(name)) is not None:
            found[extension] += 1
            if parent != folder:
                below.add(extension)
    if not found:
        return ""
    ((extension, count),) = found.most_common(1)
    if extension == ".zip":
        return f", which holds {count:,} .zip: unpack {'it' if count == 1 else 'them'}"
    pattern = os.path.join(folder, *(["**"] if extension in below else []), f"*{extension}")  # noqa: PTH118
    return f", which holds {count:,} {extension}: name {'it' if count == 1 else 'them'}, {pattern!r}"


def text_of(given: object) -> str:
    """A path as text; bytes that are no UTF-8 become surrogates, and bytes again when the file is opened.

    Raises DataError for anything but text, bytes and paths.
    """
    if not isinstance(given, str | bytes | os.PathLike):
        raise DataError(f"a path is not the name of a file: got {type(given).__name__}. Give text or a pathlib.Path.")
    return os.fsdecode(given)


def matches_of(path: str) -> list[str]:
    """The files and folders that a glob matches, sorted, as the shell would hand them over; else the path itself."""
    if not glob.has_magic(path) or os.path.lexists(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    return [match for match in matches if os.path.isfile(match) or os.path.isdir(match)]  # noqa: PTH112, PTH113


def folders_of(paths: Iterable[str | Path]) -> list[Path]:
    """The folders among paths."""
    return [Path(path) for path in paths if os.path.isdir(path)]  # noqa: PTH112


def without_repeats(files: Iterable[str]) -> list[str]:
    """Each file once, at its first position: a file may be named itself and lie in a folder or glob as well."""
    first: dict[str, str] = {}
    for file in files:
        first.setdefault(os.path.abspath(file), file)  # noqa: PTH100 (a million names)
    return list(first.values())


def lines_of(stdin: BinaryIO) -> Iterator[str]:
    """The names in a list, as they come: lines, or what ends in zero bytes, which the first ones tell.

    Raises DataError for a zero byte after a line.
    """
    rest, end = b"", None
    # read1 gives what is there; read would wait until a program that makes the list has ended
    read = getattr(stdin, "read1", stdin.read)
    while chunk := read(CHUNK):
        rest += chunk
        if end is None:
            end = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else None
        if end is None:
            continue
        if end == b"\n" and b"\0" in rest:
            raise DataError("the list on stdin has lines, and then a zero byte: got both. End names one way or other.")
        *names, rest = rest.split(end)
        yield from _decoded(names, end)
    yield from _decoded([rest], end)


def _decoded(names: Iterable[bytes], end: bytes | None) -> Iterator[str]:
    for name in names:
        plain = name if end == b"\0" else name.removesuffix(b"\r")
        if plain:
            yield os.fsdecode(plain)


def _files_of(path: str, left: Left) -> Iterator[str]:
    if os.path.isdir(path):  # noqa: PTH112
        yield from images_below(path, left)
    else:
        yield path


def images_below(folder: str, left: Left) -> Iterator[str]:
    """The images in a folder and below, those of a folder before those of its subfolders, both sorted.

    Raises DataError for a folder that can't be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable_folder(error.filename, error)

    for parent, folders, names in os.walk(folder, onerror=refuse):
        for name in folders:
            if is_system(name):
                left.append(os.path.join(parent, name, ""))  # noqa: PTH118
        folders[:] = sorted(name for name in folders if not is_system(name))
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118
            if is_system(name):
                continue
            # reading a pipe would wait for ever; a link that leads nowhere is reported as a failure
            if is_candidate(path) and (os.path.isfile(path) or not os.path.exists(path)):  # noqa: PTH110, PTH113
                yield path
            else:
                plain = os.path.isfile(path)  # noqa: PTH113
                left.append(path if plain else LeftOut(path, "that are no regular files"))
