"""Processes: ending them with all that they started, and what they took."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

from vivace.systems.files import OPEN_FILES_MOVE
from vivace.systems.modules import optional_module

__all__ = [
    "ENDS_GROUPS",
    "NEW_GROUP",
    "WAIT_SECONDS",
    "end_group",
    "end_own_group",
    "flush_c_output",
    "peak_memory_bytes",
    "resource",
    "setting",
]

resource = optional_module("resource")

NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
"""For subprocess.Popen's creationflags, beside process_group=0: one of them does it, the other one does nothing."""
# SIGKILL, which Windows has not
KILL = 9
ENDS_GROUPS = hasattr(os, "killpg")
"""Whether a process can be ended with all that it started, and be talked to through pipes that libraries wait for."""

WAIT_SECONDS = 1.0
"""The longest that this process waits for another one at a time.

Python sees a signal that arrives just before it begins to wait only once it has waited: Ctrl-C would be lost until the
other process answers.
"""


def peak_memory_bytes() -> int | None:
    """The largest resident memory that this process has had; None if the system does not tell."""
    if resource is None:
        return None
    # in KiB, but for macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that was started with a group of its own, at once, and all that it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, KILL)
        return
    with contextlib.suppress(OSError):
        command = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    process.kill()


def end_own_group() -> None:
    """End this process, at once, and all that it has started if it has a group of its own."""
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        # 0: its own group
        os.kill(0, KILL)
    os._exit(1)


def setting(name: str) -> int:
    """A number of os.sysconf's. Raises ValueError where there is none of that name."""
    if hasattr(os, "sysconf"):
        return os.sysconf(name)
    raise ValueError(name)


def flush_c_output() -> None:
    """Write what C libraries have kept for their standard output."""
    import ctypes

    ctypes.CDLL(None if OPEN_FILES_MOVE else "ucrtbase").fflush(None)
