"""Decides where results may be written: nothing that vivace did not write is ever replaced.

Everything that writes checks here before its work begins, and again just before it replaces something. A folder is
replaced only if its sealed manifest (a name in `MANIFESTS`) lists every file in it with its SHA-256; an exported file
only if the sealed .json beside it lists it; a figure or a page only if it holds the comment of `vivace.marks`. An empty
folder may always be replaced.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vivace.errors import OutputPathError, VivaceError
from vivace.files import atomic_file, canonical_json, read_regular, remove_leftovers, sha256_of, write_json
from vivace.marks import MARKED, is_marked, marked, marked_text
from vivace.notices import warn

__all__ = [
    "check_export",
    "check_file",
    "check_folder",
    "csv_text",
    "export_names",
    "own_file",
    "own_folder",
    "seal",
    "warn_of_replaced",
    "write_picture",
    "write_sealed",
    "write_sidecar",
    "write_text",
    "writing",
]

# the first characters of cells that spreadsheets run (https://owasp.org/www-community/attacks/CSV_Injection)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# manifest → (its "format", name for messages)
MANIFESTS = {
    "bundle.json": ("vivace-bundle", "bundle"),
    "model.json": ("vivace-deployment", "deployment"),
    "web.json": ("vivace-web", "page for browsers"),
}
SIDECAR, RECEIPT, SIDECAR_SEAL = "vivace-export", "vivace-receipt", "json_sha256"
# real manifests and figures are far smaller
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_PICTURE_BYTES = 64 * 2**20
# a comment in them would be a row
UNMARKED = (".csv", ".jsonl", ".parquet")


def seal(manifest: Mapping[str, Any], key: str = "sha256") -> dict[str, Any]:
    """The manifest with the SHA-256 of its contents added under `key`."""
    bare = {name: value for name, value in manifest.items() if name != key}
    return {**bare, key: hashlib.sha256(canonical_json(bare)).hexdigest()}


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
    path: Path, *, inputs: Iterable[Path] = (), outside: Iterable[Path] = (), option: str = "`out`"
) -> str | None:
    """What writing the folder `path` would replace, such as "a bundle"; None if nothing is there.

    inputs: what the work reads; `path` may not be one of them, in one, or contain one. outside: folders that must not
    contain `path`. option: how messages name the parameter.
    Raises OutputPathError if it is a file or a link, holds anything that vivace did not write, or can't be written.
    """
    with _os_errors(path, option):
        _check_place(path, inputs, outside, option)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            kind = "a link" if path.is_symlink() else "a file"
            raise OutputPathError(f"{option} is {kind}, but a folder is to be written: {path}. Give another name.")
        found = own_folder(path, option=option)
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


def check_export(path: Path, *companions: Path, inputs: Iterable[Path] = ()) -> str | None:
    """`check_file` for all files that an export of one file writes."""
    found = [check_file(name, inputs=inputs) for name in export_names(path, *companions)]
    return found[0]


def own_folder(path: Path, *, shown: Path | None = None, option: str = "`out`") -> str | None:
    """What vivace wrote into the folder: such as "a bundle"; None if it is empty or does not exist.

    shown: the name for messages. Raises OutputPathError if it holds anything else.
    """
    shown = shown or path
    if not path.exists() or not any(path.iterdir()):
        return None
    for name, (form, called) in MANIFESTS.items():
        manifest = _sealed(path / name, form)
        if manifest is not None:
            foreign = _foreign(path, {**_listed(manifest, "files"), **_listed(manifest, "editable")}, name)
            if foreign is None:
                return f"a {called}"
            raise OutputPathError(
                f"{option} holds more than the {called} that vivace wrote: {shown} has {foreign!r}. Nothing was "
                "changed. Give another folder, or move that file away."
            )
    first = min(entry.name for entry in path.iterdir())
    raise OutputPathError(
        f"{option} holds something other than a bundle or a deployment: {shown} has {first!r}. Nothing was changed. "
        "Give another folder."
    )


def own_file(path: Path) -> bool:
    """Whether vivace wrote this file, and it is unchanged: a marked figure or page, a sealed .json, or what one lists.

    The .json holds the SHA-256 of the export and of itself; a figure or page holds that of its own contents.
    """
    if any(_sealed(path, form, SIDECAR_SEAL) is not None for form in (SIDECAR, RECEIPT)):
        return True
    # the .json of an OpenVINO model is named after its .xml
    for graph in (path, path.with_suffix(".xml")):
        manifest = _sealed(graph.with_name(graph.name + ".json"), SIDECAR, SIDECAR_SEAL)
        if manifest is not None and _is_listed(path, _listed(manifest, "files").get(path.name)):
            return True
    try:
        return path.suffix.lower() in MARKED and is_marked(read_regular(path, MAX_PICTURE_BYTES))
    except OSError:
        return False


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


def _sealed(path: Path, form: str, key: str = "sha256") -> dict[str, Any] | None:
    """The manifest at `path`; None if it is not of this format, or its seal is wrong."""
    try:
        manifest = json.loads(read_regular(path, MAX_MANIFEST_BYTES))
        if not isinstance(manifest, dict) or manifest.get("format") != form:
            return None
        return manifest if seal(manifest, key)[key] == manifest.get(key) else None
    except (OSError, ValueError, RecursionError):
        return None


def _listed(manifest: Mapping[str, Any], key: str) -> dict[str, Any]:
    files = manifest.get(key)
    return files if isinstance(files, dict) else {}


def _foreign(folder: Path, listed: Mapping[str, Any], manifest: str) -> str | None:
    """The first name in a folder that is not a listed, unchanged file; None if there is none."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if any(other.startswith(f"{name}/") for other in listed) or _is_compiled(folder, path, listed):
                continue
        elif name == manifest or _is_listed(path, listed.get(name)) or _is_compiled(folder, path.parent, listed):
            continue
        return name
    return None


def _is_compiled(folder: Path, cache: Path, listed: Mapping[str, Any]) -> bool:
    """Whether it is Python's __pycache__ of listed programs, as after running a deployment."""
    if cache.name != "__pycache__" or cache.is_symlink():
        return False
    place = cache.parent.relative_to(folder)
    return all(
        path.suffix == ".pyc" and (place / f"{path.name.partition('.')[0]}.py").as_posix() in listed
        for path in cache.iterdir()
    )


def _is_listed(path: Path, facts: Any) -> bool:
    if not isinstance(facts, dict) or path.is_symlink() or not path.is_file():
        return False
    return path.stat().st_size == facts.get("bytes") and sha256_of(path) == facts.get("sha256")


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
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
