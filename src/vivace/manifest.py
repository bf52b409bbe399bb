"""Reads bundle.json as untrusted input, and checks the files that it lists.

Its hash has no key, so it detects damage but not forgery. Hence everything is checked: the type of every field, that
each file is a regular file in the folder, and that nothing takes far more memory than its bytes.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.errors import BundleError, ConfigError, nearest_path
from vivace.files import canonical_json, sha256_of
from vivace.plain import parse_json
from vivace.runtimes.table import RUNTIMES

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "WEIGHTS",
    "bundle_folder",
    "check_file",
    "check_files",
    "holds_bundle",
    "manifest_hash",
    "read_manifest",
]

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
MANIFEST = "bundle.json"
# with 10,000 classes a manifest has a few hundred kB; its values take up to twenty times its bytes
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 1_000
# a name directly in the folder: no separator, no hidden file, no control characters
FILE_NAME = re.compile(r"[^\W_][\w.+ @=,()-]{0,199}")
# files that a runtime may open beside the one it is given, so that they must be listed
READ_BY_RUNTIMES = frozenset(suffix for row in RUNTIMES.values() for suffix in row.reads)


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest without its own hash, in hexadecimal."""
    return hashlib.sha256(canonical_json({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def read_manifest(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of a bundle's manifest, its files by name); the types of the values are not checked yet.

    Raises BundleError if there is no manifest, or if it was changed, is newer than this version, or lists no weights.
    """
    path = folder / MANIFEST
    manifest = _parsed(path)
    if not isinstance(manifest, dict) or manifest.pop("format", None) != "vivace-bundle":
        raise BundleError(f"not a bundle: {path} is not its manifest. Give the folder that 'vivace train' wrote.")
    version = manifest.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path} has no schema version: got {version!r}. Make the bundle again.")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"the bundle is newer: it has schema {version}, and this vivace reads up to {SCHEMA_VERSION}. "
            "Upgrade: pip install -U vivace."
        )
    expected = manifest.pop("sha256", None)
    if expected != manifest_hash({"format": "vivace-bundle", **manifest}):
        raise BundleError(f"{path} was changed after it was written: its SHA-256 is wrong. Restore it from a copy.")
    files = manifest.pop("files", None)
    if not isinstance(files, dict) or WEIGHTS not in files or len(files) > MAX_FILES:
        raise BundleError(f"{path} lists no {WEIGHTS}, or over {MAX_FILES} files. Make the bundle again.")
    return manifest, files


def _parsed(path: Path) -> Any:
    try:
        if not path.is_file() and (path.is_symlink() or path.exists()):
            raise BundleError(f"{path} is not a file. Restore it from a copy.")
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(_why_none(path.parent)) from None
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} can't be read ({error}). Make the bundle again, or restore it from a copy."
        ) from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has over {MAX_MANIFEST_BYTES:,} bytes, too many for a manifest. Restore it.")
    try:
        return parse_json(data, str(path))
    except ConfigError as error:
        raise BundleError(f"{path} can't be read ({error}) Make the bundle again, or restore it from a copy.") from None


def bundle_folder(given: str | Path) -> Path:
    """The folder of a bundle, from that or from its run's. Raises BundleError for anything else."""
    if not isinstance(given, str | Path):
        raise BundleError(
            f"not a bundle: got {type(given).__name__}. Give the folder that 'vivace train' wrote; of a network of "
            "your own save the state dict and name the architecture: vivace accelerate timm/NAME DATA "
            "--weights FILE."
        )
    folder = Path(given)
    try:
        if folder.is_file():
            raise BundleError(
                f"not a bundle: {folder} is a file, and a bundle is a folder with {MANIFEST}. "
                "Pickled checkpoints are never loaded; give the folder that 'vivace train' wrote."
            )
        # a run folder is what people have at hand
        within = not (folder / MANIFEST).is_file() and (folder / "bundle" / MANIFEST).is_file()
        if within and (folder / "bundle").is_symlink():
            raise BundleError(
                f"the run's bundle is a link out of its folder: {folder / 'bundle'} is not opened. Give the bundle's "
                "own folder."
            )
    except OSError as error:
        raise BundleError(
            f"the bundle can't be read: {folder} ({error.strerror}). Check its name and rights."
        ) from None
    return folder / "bundle" if within else folder


def holds_bundle(folder: Path) -> bool:
    """Whether it is the folder of a bundle or of a run with one, going by their names."""
    try:
        return any((folder / name).is_file() for name in (MANIFEST, f"bundle/{MANIFEST}"))
    except (OSError, ValueError):
        return False


def _why_none(folder: Path) -> str:
    """What to say of a folder without a manifest."""
    if not folder.exists():
        hint = nearest_path(folder, holds_bundle)
        return f"the bundle does not exist: got {str(folder)!r}.{hint} Give the folder that 'vivace train' wrote."
    selftest = folder / "selftest.py"
    if selftest.is_file() and (folder / "model.json").is_file():
        return (
            f"not a bundle: {folder} is a deployment, which is checked without vivace: python "
            f"{shlex.quote(str(selftest))}. Give the bundle that it was exported from."
        )
    return f"not a bundle: {folder} has no {MANIFEST}. Give the folder that 'vivace train' wrote."


def check_files(folder: Path, files: Mapping[str, Any], *, hashes: bool = True) -> None:
    """Raise BundleError unless each file is a regular file directly in the folder, with its recorded size and SHA-256.

    hashes: False compares the sizes alone, which takes no time. Files that runtimes open by themselves, such as weights
    beside a graph, must be listed.
    """
    for name, facts in files.items():
        if FILE_NAME.fullmatch(name) is None:
            raise BundleError(f"the bundle lists a file outside its folder: {name!r}. Do not use it: {folder}.")
        check_file(folder / name, facts, hashes=hashes)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in READ_BY_RUNTIMES and path.name not in files:
            raise BundleError(
                f"{path} is not part of the bundle: its manifest does not list it, but a runtime may read it. "
                "Move it away."
            )


def check_file(path: Path, facts: Any, *, hashes: bool = True) -> None:
    """Raise BundleError unless it is a regular file, no link, with the size and SHA-256 that `facts` record."""
    facts = facts if isinstance(facts, Mapping) else {}
    expected, digest = facts.get("bytes"), facts.get("sha256")
    if type(expected) is not int or not isinstance(digest, str):
        raise BundleError(f"{MANIFEST} has no size and SHA-256 of {path}. Make the bundle again.")
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise BundleError(
                f"the bundle lists a file outside its folder: {path} is a link. Replace it by the file itself."
            )
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a regular file. Restore it from a copy.")
        if status.st_size != expected:
            raise BundleError(
                f"{path} is damaged: {status.st_size:,} bytes, expected {expected:,}. Restore it from a copy."
            )
        if hashes and sha256_of(path) != digest:
            raise BundleError(f"{path} is damaged: its SHA-256 differs from the recorded one. Restore it from a copy.")
    except FileNotFoundError:
        raise BundleError(f"the bundle lacks a file: {path}. Restore it from a copy.") from None
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror}). Restore it from a copy.") from None
