"""Functions for other processes, which fail or wait: soon imported, for they need no torch."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from vivace.errors import ImageError

__all__ = ["dies", "is_running", "raises_image_error", "until_gone", "wait_for", "waits_with_a_child"]


def wait_for(path: Path) -> list[int]:
    """The numbers in a file, once it is there; within two minutes."""
    end = time.monotonic() + 120
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return [int(word) for word in path.read_text().split()]


def until_gone(pids: list[int]) -> bool:
    """Whether all end within a minute."""
    end = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def waits_with_a_child(told: Path) -> None:
    """Write the numbers of this process and of one that it starts into a file, and wait for ten minutes."""
    child = subprocess.Popen(["sleep", "600"])
    temporary = told.with_suffix(".tmp")
    temporary.write_text(f"{os.getpid()} {child.pid}")
    temporary.rename(told)
    time.sleep(600)


def raises_image_error() -> None:
    raise ImageError("an image is damaged: got a.jpg. Remove it.", problem="truncated")


def dies() -> None:
    os._exit(3)


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
