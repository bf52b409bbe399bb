"""Decides where results may be written: nothing that vivace did not write is ever replaced.

Everything that writes checks here before its work begins, and again just before it replaces something; `owned` tells
what is vivace's. An export replaces only its like: never a bundle as training left it, another kind of export, or one
of other classes. An empty folder may always be replaced.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.errors import OutputPathError, VivaceError
from vivace.files import atomic_file, remove_leftovers, sha256_of, write_json
from vivace.marks import marked, marked_text
from vivace.notices import warn
from vivace.owned import RECEIPT, SIDECAR, SIDECAR_SEAL, bundle_around, classes_of, own_file, own_folder, seal

__all__ = [
    "check_export",
    "check_file",
    "check_folder",
    "csv_text",
    "export_names",
    "warn_of_replaced",
    "write_picture",
    "write_sealed",
    "write_sidecar",
    "write_text",
    "writing",
]

# the first characters of cells that spreadsheets run (https://owasp.org/www-community/attacks/CSV_Injection)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# as East Asian keyboards type them: some spreadsheets read these as the same
FULL_WIDTH = ("\uff1d", "\uff0b", "\uff0d", "\uff20")
# a comment in them would be a row
UNMARKED = (".csv", ".jsonl", ".parquet")


def export_names(path: Path, *companions: Path) -> list[Path]:
    """All files that an export of one file writes: the file, its companions, and the .json beside it."""
    return [path, *companions, path.with_name(path.name + ".json")]


def write_sidecar(path: Path, facts: Mapping[str, Any], *companions: Path) -> None:
    """Write the sealed .json beside an exported file: `facts`, and the files with their sizes and SHA-256.

    With it vivace recognizes its own files when they are exported again.
    """
    files = {file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size} for file in (path, *companions)}
    manifest = {"format": SIDECAR, "file": path.name, **files[path.name], "files": files, **facts}
    write_json(export_names(path)[-1], seal(manifest, SIDECAR_SEAL))


def write_sealed(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a single JSON file with a seal, by which vivace recognizes it unless it was changed."""
    write_json(path, seal({"format": RECEIPT, **facts}, SIDECAR_SEAL))


def warn_of_replaced(path: Path, replaced: str | None) -> None:
    """Warn of what was replaced, if anything; `replaced` is the result of `check_folder` or `check_file`."""
    if replaced is not None:
        warn(f"replaced {replaced} that vivace wrote earlier: {path}")


def check_folder(
    path: Path,
    *,
    inputs: Iterable[Path] = (),
    outside: Iterable[Path] = (),
    option: str = "`out`",
    kind: str | None = None,
    classes: Sequence[str] | None = None,
) -> str | None:
    """What writing the folder `path` would replace, such as "a bundle"; None if nothing is there.

    inputs: what the work reads; `path` may not be one of them, in one, or contain one. outside: folders that must not
    contain `path`. option: how messages name the parameter. kind, classes: what an export writes (`own_folder`).
    Raises OutputPathError if it is a file or a link, holds anything that vivace did not write, or can't be written.
    """
    with _os_errors(path, option):
        _check_place(path, inputs, outside, option)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            there = "a link" if path.is_symlink() else "a file"
            raise OutputPathError(f"{option} is {there}, but a folder is to be written: {path}. Give another name.")
        found = own_folder(path, option=option, kind=kind, classes=classes)
        _check_writable(path)
    return found


def check_file(
    path: Path,
    *,
    inputs: Iterable[Path] = (),
    outside: Iterable[Path] = (),
    option: str = "`out`",
    overwrite: bool = False,
    advice: str = "remove it first",
) -> str | None:
    """What writing the file `path` would replace: "a file", or None if nothing is there.

    inputs, outside, option: as for `check_folder`. overwrite: any file may be replaced, except inputs. advice: what to
    do about a file that may not be replaced.
    Raises OutputPathError if it is not a regular file, was not written by vivace, or can't be written.
    """
    with _os_errors(path, option):
        _check_place(path, inputs, outside, option)
        _check_writable(path)
        if not os.path.lexists(path):
            return None
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise OutputPathError(f"{option} is {kind}, but a file is to be written: {path}. Give another name.")
        if not overwrite and not own_file(path):
            who = "was not written by vivace as far as can be told"
            if path.suffix.lower() in UNMARKED:
                who = "a table has no mark of who wrote it"
            raise OutputPathError(f"{option} exists already, and {who}: {path}. Give another name, or {advice}.")
    return "a file"


def check_export(
    path: Path, *companions: Path, inputs: Iterable[Path] = (), classes: Sequence[str] | None = None
) -> str | None:
    """`check_file` for all files that an export of one file writes; of another network's, OutputPathError."""
    names = export_names(path, *companions)
    found = [check_file(name, inputs=inputs) for name in names]
    there = classes_of(names[-1])
    if classes is not None and there is not None and list(classes) != there:
        raise OutputPathError(
            f"`out` is an export of another network, whose classes are others: {path}. Nothing was changed. Give "
            "another name, or remove it if it is no longer needed."
        )
    return found[0]


def write_picture(path: Path, png: bytes) -> None:
    """Write a figure, marked as vivace's. Raises OutputPathError if it would replace another file, and VivaceError."""
    check_file(path, option="the figure")
    with writing(path), atomic_file(path) as file:
        file.write(marked(png))


def write_text(path: Path, text: str, *, option: str = "the page") -> None:
    """The same for an HTML page or a Markdown text."""
    check_file(path, option=option)
    with writing(path), atomic_file(path) as file:
        # names of files may hold bytes that are no UTF-8: they stand as their escapes already
        file.write(marked_text(text.encode("utf-8", "backslashreplace")))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, such as a full disk, into a VivaceError with `path` and the cause."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        advice = (
            "Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Give another path."
        )
        raise VivaceError(f"it can't be written: {path} ({cause}). {advice}") from error


def _check_place(path: Path, inputs: Iterable[Path], outside: Iterable[Path], option: str) -> None:
    _check_way(path, option)
    place = path.resolve()
    for given in map(Path, inputs):
        source = given.resolve()
        if place == source or place in source.parents or (source in place.parents and source.is_dir()):
            where = "is" if place == source else "contains" if place in source.parents else "is inside"
            raise OutputPathError(f"{option} {where} an input: {path} and {given}. Give a path outside of it.")
    for given in map(Path, outside):
        source = given.resolve()
        if place == source or source in place.parents:
            raise OutputPathError(
                f"{option} is inside the data: {path} in {given}, where it would be taken for a part of these. Give "
                "a path outside of it."
            )
    if (bundle := bundle_around(place)) is not None:
        raise OutputPathError(
            f"{option} is inside a bundle, which lists all of its files: {path} in {bundle}. Give a path outside of it."
        )


def _check_way(path: Path, option: str) -> None:
    """Raise OutputPathError where ".." follows a folder that does not exist.

    Such a path leads nowhere while it is checked, and to another file once its folders are made.
    """
    for place, part in enumerate(path.parts):
        if part == ".." and not Path(*path.parts[:place]).is_dir():
            missing = Path(*path.parts[:place])
            raise OutputPathError(
                f"{option} goes through a folder that does not exist: {missing} in {path}. Leave that and the '..' out."
            )


def _check_writable(path: Path) -> None:
    """Raise OSError if `path` can't be written; removes what killed processes left of this output."""
    # raises OSError for a name that is too long
    with contextlib.suppress(FileNotFoundError):
        path.lstat()
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    with tempfile.TemporaryFile(dir=parent):
        pass
    if parent == path.absolute().parent:
        remove_leftovers(parent, path.name)


@contextlib.contextmanager
def _os_errors(path: Path, option: str) -> Iterator[None]:
    """Turn an OSError of the block into an OutputPathError."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise OutputPathError(f"{option} can't be written: {path} ({cause}). Give another path.") from None


def csv_text(rows: Iterable[Iterable[Any]]) -> bytes:
    """A CSV of rows of cells. Text that a spreadsheet would run as a formula gets a ' in front; numbers don't.

    Class and file names may be untrusted. Bytes of file names that are not UTF-8 stay as they are.
    """
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        cells = [_no_formula(cell) for cell in row]
        # csv.writer does not quote a carriage return, but spreadsheets read it as the end of a row
        (quoted if any("\r" in str(cell) for cell in cells) else plain).writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _no_formula(cell: Any) -> Any:
    # spaces before it are passed over by some of them
    if not isinstance(cell, str) or not (cell.startswith(FORMULA) or cell.lstrip().startswith((*FORMULA, *FULL_WIDTH))):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
