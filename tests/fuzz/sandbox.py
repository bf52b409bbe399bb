"""What holds an input while it is tried: no socket, no program, no file outside, bounded time and memory."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutations import CANARY

from vivace.errors import VivaceError

__all__ = ["MAX_BYTES", "MAX_CPU_SECONDS", "Outcome", "Sandbox"]

# of this process, so that other work on the machine does not count
MAX_CPU_SECONDS = 5.0
MAX_BYTES = 10**9
MAX_MESSAGE = 500
# a request for more ends in a MemoryError rather than in the death of the machine
SPARE_ADDRESSES = 8 * 2**30

SOCKETS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Outcome:
    """How one input ended: `kind` is "accepted", the name of the error that refused it, or "FAULT"."""

    kind: str
    message: str = ""
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


class Sandbox:
    """Watches a process; made once for it, since an audit hook can't be taken away again."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(folder)
        self._broken: list[str] = []
        self._watching = False
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (addresses + SPARE_ADDRESSES,) * 2)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in SOCKETS:
            self._break(f"a socket: {event} {arguments[1:]!r}")
        elif event in PROGRAMS:
            self._break(f"a program: {arguments[0]!r}")
        elif event == "open":
            self._opened(*arguments)
        elif event in CHANGES:
            for name in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
                if isinstance(name, str | bytes) and event != "os.symlink" and not self._inside(os.fsdecode(name)):
                    self._break(f"{event} outside: {name!r}")

    def _opened(self, name: object, mode: object, flags: object) -> None:
        if not isinstance(name, str | bytes):
            return
        path = os.fsdecode(name)
        if CANARY in os.path.basename(path) or path.endswith("/etc/passwd"):  # noqa: PTH119
            self._break(f"a path that the input names: {path!r}")
        elif isinstance(flags, int) and flags & WRITING and not self._inside(path) and path != os.devnull:
            self._break(f"a file written outside: {path!r}")

    def _inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._root or real.startswith(self._root + os.sep)

    def _break(self, what: str) -> None:
        self._broken.append(what)
        # what tried it goes no further, and may hide the error: it is kept all the same
        raise PermissionError(f"not in this sandbox: {what}")

    def try_input(self, feed: Callable[[], object]) -> Outcome:
        """Call `feed` and say how it ended; whatever is no VivaceError of one short line is a fault."""
        self._broken.clear()
        before = _reset_peak()
        started = _cpu_seconds()
        self._watching = True
        try:
            feed()
            kind, message = "accepted", ""
        except VivaceError as error:
            kind, message = type(error).__name__, str(error)
            if fault := _fault_of_message(message):
                kind, message = "FAULT", f"{fault}: {message[:300]!r}"
        except Exception as error:
            kind, message = "FAULT", _traceback(error)
        finally:
            self._watching = False
        seconds, peak = _cpu_seconds() - started, _peak_bytes() - before
        if self._broken:
            kind, message = "FAULT", self._broken[0]
        elif seconds > MAX_CPU_SECONDS:
            kind, message = "FAULT", f"took {seconds:.1f} s of processor time ({kind}: {message[:200]})"
        elif peak > MAX_BYTES:
            kind, message = "FAULT", f"took {peak:,} bytes ({kind}: {message[:200]})"
        return Outcome(kind, message, seconds, peak)


def _fault_of_message(message: str) -> str | None:
    if len(message) > MAX_MESSAGE:
        return f"a message of {len(message)} characters"
    if not message.strip():
        return "an empty message"
    return None if message.isprintable() else "a message with control characters"


def _traceback(error: BaseException) -> str:
    """The exception and the innermost lines that it came through."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-4:]
    way = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {str(error)[:200]!r} at {way}"


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _reset_peak() -> int:
    """Forget the largest memory so far; the memory now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
