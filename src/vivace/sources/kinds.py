"""What a path is, by its name: a URL, a tar, a parquet file. What reads them is imported when there is one."""

from __future__ import annotations

import os
import re

__all__ = ["READERS", "is_parquet", "is_tar", "is_url"]

TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# images at URLs that are fetched at once: each waits for its server
READERS = 16


def is_url(name: str) -> bool:
    """Whether it is a URL, and no file here has that name."""
    return URL.match(name) is not None and not os.path.lexists(name)


def is_tar(name: str) -> bool:
    """Whether the extension is that of a tar, plain or compressed."""
    return name.lower().endswith(TARS)


def is_parquet(name: str) -> bool:
    """Whether the extension is that of a parquet file."""
    return name.lower().endswith(".parquet")
