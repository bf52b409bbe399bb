"""What a path is, by its name: a URL, a tar, a parquet file. What reads them is imported when there is one."""

from __future__ import annotations

import os
import re

__all__ = ["READERS", "is_parquet", "is_tar", "is_url", "local_files", "packed_extension", "plain_url"]

TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
SCHEME = re.compile(r"(?:^|(?<=::))[A-Za-z][A-Za-z0-9+.-]+(?=://)")
# schemes of files on this machine
LOCAL = ("file://", "local://")
# images at URLs that are fetched at once: each waits for its server
READERS = 16


def is_url(name: str) -> bool:
    """Whether it is a URL, and no file here has that name."""
    return URL.match(name) is not None and not os.path.lexists(name)


def plain_url(url: str) -> str:
    """The URL with its schemes in lower case, as all libraries expect them."""
    return SCHEME.sub(lambda scheme: scheme[0].lower(), url)


def local_files(name: str) -> list[str]:
    """The files of this machine that a path or URL names: of zip://a.png::file:///b.zip it is /b.zip."""
    if not is_url(name):
        return [name]
    found = []
    for part in plain_url(name).split("::"):
        scheme = next((scheme for scheme in LOCAL if part.startswith(scheme)), "")
        if scheme or URL.match(part) is None:
            found.append(part.removeprefix(scheme))
    return found


def is_tar(name: str) -> bool:
    """Whether the extension is that of a tar, plain or compressed."""
    return name.lower().endswith(TARS)


def is_parquet(name: str) -> bool:
    """Whether the extension is that of a parquet file."""
    return name.lower().endswith(".parquet")


def packed_extension(name: str) -> str | None:
    """The extension of a file of many images, a .zip among them, which is not read; None of others."""
    return next((ending for ending in (*TARS, ".parquet", ".zip") if name.lower().endswith(ending)), None)
