"""Processes: ending whole groups of them, and their peak memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

from vivace.systems.files import OPEN_FILES_MOVE
from vivace.systems.modules import optional_module

__all__ = [
    "ENDS_GROUPS",
    "HANGUP",
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
"""For subprocess.Popen's creationflags, together with process_group=0: one of the two has no effect on each system."""
HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""The signal by which a service is told to read its files anew; None where there is none, as on Windows."""
# SIGKILL, which Windows lacks
KILL = 9
ENDS_GROUPS = hasattr(os, "killpg")
"""Whether a process can be ended with its children, and libraries can wait for its pipes: not on Windows."""

WAIT_SECONDS = 1.0
"""The longest single wait for another process, seconds.

A signal that arrives just before Python begins to wait is handled only after the wait: without a limit Ctrl-C would be
delayed until the other process responds.
"""


def peak_memory_bytes() -> int | None:
    """The peak resident memory of this process, bytes; None if the system does not tell."""
    if resource is None:
        return None
    # in KiB, except on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that was started with its own process group, and all its children."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, KILL)
        return
    with contextlib.suppress(OSError):
        command = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    process.kill()


def end_own_group() -> None:
    """Kill this process, and all its children if it leads a process group."""
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        # 0 means its own group
        os.kill(0, KILL)
    os._exit(1)


def setting(name: str) -> int:
    """A value of os.sysconf. Raises ValueError if the system has none of that name."""
    if hasattr(os, "sysconf"):
        return os.sysconf(name)
    raise ValueError(name)


def flush_c_output() -> None:
    """Flush the standard output of C libraries."""
    import ctypes

    ctypes.CDLL(None if OPEN_FILES_MOVE else "ucrtbase").fflush(None)
