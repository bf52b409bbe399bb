"""Files of holes: a few bytes on a disk or in an archive, and gigabytes for whoever reads them."""

from __future__ import annotations

import errno
import os

from vivace import systems

__all__ = ["check_solid"]

# of a larger file at least one part in so many is no hole: what is all zero may be one, on some file systems
HOLLOW_BYTES, MIN_SOLID = 2**26, 64


def check_solid(descriptor: int) -> None:
    """Raise OSError for a large open file that is next to nothing but holes. It is at its start afterwards."""
    size, solid = os.fstat(descriptor).st_size, 0
    if size <= HOLLOW_BYTES:
        return
    try:
        for part in systems.data_sizes(descriptor):
            solid += part
            if solid * MIN_SOLID >= size:
                return
    except OSError:
        # neither this system nor this file system knows of holes
        return
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    raise OSError(errno.EFBIG, f"{size:,} bytes that are next to nothing but holes")
