"""Files of holes: a few bytes on a disk or in an archive, and gigabytes for whoever reads them."""

from __future__ import annotations

import errno
import os

__all__ = ["check_solid"]

# of a larger file at least one part in so many is no hole: what is all zero may be one, on some file systems
HOLLOW_BYTES, MIN_SOLID = 2**26, 64


def check_solid(descriptor: int) -> None:
    """Raise OSError for a large open file that is next to nothing but holes. It is at its start afterwards."""
    size, solid, position = os.fstat(descriptor).st_size, 0, 0
    if size <= HOLLOW_BYTES or not hasattr(os, "SEEK_DATA"):
        return
    try:
        while position < size and solid * MIN_SOLID < size:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
            solid += position - start
    except OSError as error:
        # behind the last data; any other says that the file system knows of no holes
        if error.errno != errno.ENXIO:
            return
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    if solid * MIN_SOLID < size:
        raise OSError(errno.EFBIG, f"{size:,} bytes that are next to nothing but holes")
