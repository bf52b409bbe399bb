"""Detects sparse files: a few bytes on disk or in an archive, and gigabytes for whoever reads them."""

from __future__ import annotations

import errno
import os

from vivace import systems

__all__ = ["check_solid"]

# of a file larger than SPARSE_BYTES at least 1/MAX_SPARSITY must be data; some file systems turn zeros into holes
SPARSE_BYTES, MAX_SPARSITY = 2**26, 64


def check_solid(descriptor: int) -> None:
    """Raise OSError for a large open file that consists almost entirely of holes. Rewinds the file."""
    size, solid = os.fstat(descriptor).st_size, 0
    if size <= SPARSE_BYTES:
        return
    try:
        for part in systems.data_sizes(descriptor):
            solid += part
            if solid * MAX_SPARSITY >= size:
                return
    except OSError:
        # this system or file system can't report holes
        return
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    raise OSError(errno.EFBIG, f"{size:,} bytes that are almost only holes")
