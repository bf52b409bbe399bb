"""Lists and removes the entries of a cache: only those marked as vivace's, never a user's files.

A matching name is not enough: a folder images/berlin-2024061512 may hold photos.

images      decoded images, one folder for each data set and Preprocess
archives    unpacked archives
downloads   named data sets
aoti        networks compiled by AOTInductor
graphs      networks that were not trained, as graphs of OpenVINO
onnxruntime-web
            what computes pages for browsers, one folder for each version
kernels, inductor, tune, pretrained
            our kernels, torch.compile's cache, reports of tuning trials, weights of installed packages; each folder is
            one entry
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vivace.cachedir import DOWNLOADED, INDEX
from vivace.data.caching.index import MAX_INDEX_BYTES
from vivace.data.layouts.catalog import CATALOG
from vivace.data.layouts.unpacked import LISTING
from vivace.errors import DataError, nearest
from vivace.files import open_regular, read_printable, read_regular
from vivace.notices import warn
from vivace.runtimes.table import RUNTIMES
from vivace.trust import INDUCTOR, INDUCTOR_MARK

__all__ = ["ALL", "CacheEntry", "list_caches", "remove_caches"]

ALL = "all"
# folders of what runtimes compiled
COMPILED = tuple(row.compiled_cache for row in RUNTIMES.values() if row.compiled_cache)
# kind → pattern of the names of its entries
NAMES = {
    "images": r".+-[0-9a-f]{10}",
    "archives": r".*-[0-9a-f]{12}",
    "downloads": "|".join(map(re.escape, CATALOG)),
    **dict.fromkeys(COMPILED, r".+-[0-9a-f]{20}"),
    "graphs": r"frozen-[0-9a-f]{20}",
    "onnxruntime-web": r"\d+\.\d+\.\d+",
}
# kind → pattern of the files that together are one entry
FILES = {
    "kernels": r"\w+-[0-9a-f]{20}\.so(\.sha256)?",
    INDUCTOR: r"[^.].*",
    "tune": r"[0-9a-f]{20}\.json",
    "pretrained": r"\w+-[0-9a-f]{20}\.safetensors",
}
# what `models.packaged` writes into the header of its files
WEIGHTS_MARK = {"made_by": "vivace"}
MAX_HEADER_BYTES = 2**20


def _is_of_images(path: Path) -> bool:
    """Whether it holds an index of decoded images, even a damaged one."""
    try:
        index = json.loads(read_printable(path / INDEX, MAX_INDEX_BYTES))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True
    return not isinstance(index, dict) or "names" in index


def _is_kernel(path: Path) -> bool:
    """Whether it is a kernel or the record of its hash, and the record names the kernel."""
    kernel = path.name.removesuffix(".sha256")
    try:
        return read_regular(path.with_name(f"{kernel}.sha256"), 4096).endswith(f"  {kernel}\n".encode())
    except OSError:
        return False


def _is_receipt(path: Path) -> bool:
    try:
        receipt = json.loads(read_regular(path, 2**20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(receipt, dict) and ("execution" in receipt or "setup" in receipt)


def _is_weights(path: Path) -> bool:
    """Whether the header of a safetensors file says that vivace wrote it."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
    except (OSError, ValueError, RecursionError):
        return False
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return isinstance(metadata, dict) and WEIGHTS_MARK.items() <= metadata.items()


def _has(name: str) -> Callable[[Path], bool]:
    return lambda path: (path / name).is_file() and not (path / name).is_symlink()


# kind → whether a path with a matching name is vivace's
IS_OWN: dict[str, Callable[[Path], bool]] = {
    "images": _is_of_images,
    "archives": _has(LISTING),
    "downloads": _has(DOWNLOADED),
    # the hashes of the files
    **dict.fromkeys((*COMPILED, "graphs", "onnxruntime-web"), _has("SHA256")),
    "kernels": _is_kernel,
    INDUCTOR: lambda path: _has(INDUCTOR_MARK)(path.parent),
    "tune": _is_receipt,
    "pretrained": _is_weights,
}


@dataclass(frozen=True)
class CacheEntry:
    """One removable entry of a cache."""

    kind: str
    name: str
    """The name of its folder; "" for kinds that are one entry."""
    paths: tuple[Path, ...]
    num_bytes: int
    num_images: int | None = None
    """For decoded images only; 0 for a damaged cache."""

    @property
    def title(self) -> str:
        """The name that `vivace cache --remove` accepts."""
        return f"{self.kind}/{self.name}" if self.name else self.kind


def list_caches(cache_dir: Path) -> list[CacheEntry]:
    """All entries that vivace made in a cache, by kind and name, without links.

    Other processes may remove entries meanwhile.
    """
    entries = []
    for kind, pattern in NAMES.items():
        for path in _found(cache_dir, kind, pattern):
            num_images = _num_images(path) if kind == "images" else None
            entries.append(CacheEntry(kind, path.name, (path,), _num_bytes(path), num_images))
    for kind, pattern in FILES.items():
        if paths := _found(cache_dir, kind, pattern):
            entries.append(CacheEntry(kind, "", tuple(paths), sum(map(_num_bytes, paths))))
    return entries


def remove_caches(cache_dir: Path, chosen: str) -> list[CacheEntry]:
    """Remove entries and return them. chosen: "all", a kind, a name, or kind/name.

    Raises DataError if there is no such entry, or one can't be removed.
    """
    entries = list_caches(cache_dir)
    removed = [entry for entry in entries if chosen in (ALL, entry.kind, entry.title) or chosen == entry.name != ""]
    if not removed and chosen not in (ALL, *NAMES, *FILES):
        known = [entry.title for entry in entries] + [entry.name for entry in entries if entry.name]
        raise DataError(
            f"there is no such cache entry: got {chosen!r}.{nearest(chosen, known)} 'vivace cache' lists them."
        )
    for entry in removed:
        for path in entry.paths:
            try:
                _remove(path)
            except FileNotFoundError:
                # another process has removed it, or a part of it, meanwhile
                shutil.rmtree(path, ignore_errors=True)
            except OSError as error:
                raise DataError(
                    f"the cache can't be removed: {path} ({error.strerror}). Check the permissions of the folder."
                ) from None
    _warn_of_rest(cache_dir, chosen)
    return removed


def _found(cache_dir: Path, kind: str, pattern: str) -> list[Path]:
    return [
        path
        for path in _inside(cache_dir / kind)
        if re.fullmatch(pattern, path.name, re.DOTALL) and not path.is_symlink() and IS_OWN[kind](path)
    ]


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _warn_of_rest(cache_dir: Path, chosen: str) -> None:
    """Warn of files in the cache's folders that were not removed because they are not marked as vivace's."""
    kinds = [kind for kind in (*NAMES, *FILES) if chosen in (ALL, kind)]
    left = [path for kind in kinds for path in _inside(cache_dir / kind) if not path.name.startswith(".")]
    if left:
        warn(
            f"not removed from {cache_dir}, because nothing marks it as made by vivace: "
            + f"{left[0].relative_to(cache_dir)}{f' and {len(left) - 1:,} others' if len(left) > 1 else ''}"
        )


def _num_bytes(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, file)).st_size  # noqa: PTH118
    with contextlib.suppress(OSError):
        facts = path.lstat()
        total += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return total


def _num_images(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return sum(map(len, json.loads(read_printable(folder / INDEX, MAX_INDEX_BYTES))["names"].values()))
    return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
