"""What is read is never replaced: each file that images, or a list of them, come from is compared with the output."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from vivace.errors import OutputPathError
from vivace.sources.kinds import local_files

__all__ = ["Originals"]


class Originals:
    """Refuses to read the file that an output is to replace, by whatever name, link or URL it is reached."""

    def __init__(self, replaced: Path) -> None:
        """replaced: a file that is there."""
        self._replaced, self._facts = replaced, replaced.stat()

    def check_list(self) -> None:
        """Raises OutputPathError if stdin, which holds the list, is that file."""
        with contextlib.suppress(OSError, ValueError):
            # a stdin that is no file of the system has no number
            if os.path.samestat(self._facts, os.fstat(sys.stdin.fileno())):
                raise self._error("the list on stdin")

    def check(self, name: str) -> None:
        """Raises OutputPathError if a path, or what lies on this machine of a URL, is that file."""
        for path in local_files(name):
            with contextlib.suppress(OSError, ValueError):
                if os.path.samestat(self._facts, os.stat(path)):  # noqa: PTH116
                    raise self._error(name)

    def _error(self, read: str) -> OutputPathError:
        return OutputPathError(f"`out` is what is read: {self._replaced} and {read}. Give another name.")
