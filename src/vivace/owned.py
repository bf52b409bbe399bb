"""Tells what vivace wrote from what it did not, by seals and marks that a change breaks.

A folder is vivace's if its sealed manifest (a name in `MANIFESTS`) lists every file in it with its SHA-256; an exported
file if the sealed .json beside it lists it; a figure or a page if it holds the comment of `vivace.marks`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.errors import OutputPathError
from vivace.files import canonical_json, read_regular, sha256_of
from vivace.marks import MARKED, is_marked
from vivace.runtimes.table import with_graph

__all__ = [
    "BUNDLE",
    "DEPLOYMENT",
    "PAGE",
    "RECEIPT",
    "SIDECAR",
    "SIDECAR_SEAL",
    "bundle_around",
    "classes_of",
    "own_file",
    "own_folder",
    "seal",
]

# manifest → (its "format", name for messages)
BUNDLE, DEPLOYMENT, PAGE = "bundle", "deployment", "page for browsers"
MANIFESTS = {
    "bundle.json": ("vivace-bundle", BUNDLE),
    "model.json": ("vivace-deployment", DEPLOYMENT),
    "web.json": ("vivace-web", PAGE),
}
# in a bundle that a search wrote
SEARCHED = "receipt.json"
SIDECAR, RECEIPT, SIDECAR_SEAL = "vivace-export", "vivace-receipt", "json_sha256"
# real manifests and figures are far smaller
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_PICTURE_BYTES = 64 * 2**20


def seal(manifest: Mapping[str, Any], key: str = "sha256") -> dict[str, Any]:
    """The manifest with the SHA-256 of its contents added under `key`."""
    bare = {name: value for name, value in manifest.items() if name != key}
    return {**bare, key: hashlib.sha256(canonical_json(bare)).hexdigest()}


def bundle_around(path: Path) -> Path | None:
    """The bundle that `path` is, or would be, a part of; None if there is none. `path` has no links in it."""
    form, _ = MANIFESTS["bundle.json"]
    return next((folder for folder in path.parents if _sealed(folder / "bundle.json", form) is not None), None)


def own_folder(
    path: Path,
    *,
    shown: Path | None = None,
    option: str = "`out`",
    kind: str | None = None,
    classes: Sequence[str] | None = None,
) -> str | None:
    """What vivace wrote into the folder: such as "a bundle"; None if it is empty or does not exist.

    shown: the name for messages. kind: BUNDLE, DEPLOYMENT or PAGE, where an export of that kind may replace only one of
    its kind, for the same `classes` if these are given, and never a bundle as training left it.
    Raises OutputPathError if it holds anything else.
    """
    shown = shown or path
    if not path.exists() or not any(path.iterdir()):
        return None
    for name, (form, called) in MANIFESTS.items():
        manifest = _sealed(path / name, form)
        if manifest is None:
            continue
        listed = {**_listed(manifest, "files"), **_listed(manifest, "editable")}
        foreign = _foreign(path, listed, name)
        if foreign in listed:
            raise OutputPathError(
                f"{option} holds a {called} that vivace wrote, but {shown / foreign} was changed since. Nothing was "
                "changed. Give another folder, or move that file away."
            )
        if foreign is not None:
            raise OutputPathError(
                f"{option} holds more than the {called} that vivace wrote: {shown} has {foreign!r}. Nothing was "
                "changed. Give another folder, or move that file away."
            )
        if kind is not None:
            _check_replaceable(manifest, called, kind, classes, f"{option} holds {{}}: {shown}. Nothing was changed. ")
        return f"a {called}"
    first = min(entry.name for entry in path.iterdir())
    raise OutputPathError(
        f"{option} holds something other than a bundle or a deployment: {shown} has {first!r}. Nothing was changed. "
        "Give another folder."
    )


def _check_replaceable(
    manifest: Mapping[str, Any], called: str, kind: str, classes: Sequence[str] | None, message: str
) -> None:
    """Raise OutputPathError where an export would take the place of something that it does not make anew."""
    advice = "Give another folder, or remove this one if it is no longer needed."
    is_export = manifest.get("runtime") in with_graph() or SEARCHED in _listed(manifest, "files")
    if called == BUNDLE and not is_export:
        # other bundles can be made again from it; it can't be made from them
        raise OutputPathError(message.format("a bundle as training left it") + advice)
    if kind != called:
        raise OutputPathError(message.format(f"a {called}, not a {kind}") + advice)
    if classes is not None and list(classes) != manifest.get("classes"):
        raise OutputPathError(message.format(f"a {called} of another network, whose classes are others") + advice)


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


def classes_of(sidecar: Path) -> Any:
    """The classes that the sealed .json beside an export names; None if there is none, or it names none."""
    manifest = _sealed(sidecar, SIDECAR, SIDECAR_SEAL)
    return None if manifest is None else manifest.get("classes")


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
