"""Runs functions in a separate process, which is ended with everything that it started when their time is up.

An exporter, a compiler or a training can't be interrupted from within. Requests and answers go through pipes between
this process and its child, pickled as the standard library's `multiprocessing` does; nothing is read from a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, ParamSpec, TypeVar

from vivace import systems
from vivace.errors import OutOfTime, VivaceError, first_line

__all__ = ["Worker", "WorkerDied", "serve"]

P = ParamSpec("P")
T = TypeVar("T")

# grace period: a training that is stopped saves a checkpoint first
STOP_SECONDS = 5.0
PROGRAM = (
    "import json, sys; sys.path.extend(p for p in json.loads(sys.argv[1]) if p not in sys.path); "
    "from vivace.acceleration.worker import serve; serve()"
)


class WorkerDied(VivaceError):
    """The process that ran a function ended without an answer."""


class Worker:
    """A process that is started when it is first needed, and restarted after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, until: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What function(*args, **kwargs) returns; the function, its arguments and its result must be picklable.

        until: deadline, of time.monotonic(). Raises what the function raises, OutOfTime at the deadline, and
        WorkerDied if the process dies. After any but the function's own error the process has been ended.
        """
        try:
            if self._process is None:
                self._process, self._requests, self._answers = _started()
            with contextlib.suppress(BrokenPipeError):
                self._requests.send((function, args, kwargs))
            done, answer = self._answer(until)
        except (OutOfTime, WorkerDied):
            self.close()
            raise
        except BaseException:
            self.close(STOP_SECONDS)
            raise
        if done:
            return answer
        raise answer

    def close(self, seconds: float = 0.0) -> None:
        """End the process and everything that it started, after `seconds` in which it may save its state."""
        process, self._process = self._process, None
        if process is None:
            return
        if seconds and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        # processes that it started are in its group, and may outlive it
        systems.end_group(process)
        process.wait()
        self._requests.close()
        self._answers.close()

    def _answer(self, until: float) -> tuple[bool, Any]:
        assert self._process is not None
        while not self._answers.poll(max(0.0, min(until - time.monotonic(), systems.WAIT_SECONDS))):
            if time.monotonic() >= until:
                raise OutOfTime("out of time")
        try:
            answer: tuple[bool, Any] = self._answers.recv()
        except (EOFError, OSError):
            raise WorkerDied(_last_words(self._process)) from None
        return answer


def _started() -> tuple[subprocess.Popen[bytes], Connection, Connection]:
    """The process, the connection for requests to it, and the connection for its answers."""
    requests_read, requests_write = os.pipe()
    answers_read, answers_write = os.pipe()
    requests, answers = Connection(requests_write, readable=False), Connection(answers_read, writable=False)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, json.dumps([str(folder) for folder in sys.path])],
            stdin=requests_read,
            stdout=answers_write,
            # Ctrl-C in a terminal reaches a whole group: in one of its own, the child is ended by its parent alone
            process_group=0,
            creationflags=systems.NEW_GROUP,
        )
    except BaseException:
        requests.close()
        answers.close()
        raise
    finally:
        os.close(requests_read)
        os.close(answers_write)
    return process, requests, answers


def _last_words(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    status = process.returncode
    if status is not None and status < 0:
        return f"its process died ({signal.Signals(-status).name})"
    return f"its process died (exit status {status})"


def serve() -> None:
    """Main loop of the process: run requests from stdin, answer on stdout, end when stdin ends."""
    asked, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    # libraries must not print between the answers, nor read requests
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked, requests), daemon=True).start()
    while True:
        answers.send(_done(requests.get()))


def _read(asked: Connection, requests: queue.SimpleQueue[bytes]) -> None:
    """Put requests into a queue until the parent is gone; then end this process, whatever it is doing."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            requests.put(asked.recv_bytes())
    systems.end_own_group()


def _done(request: bytes) -> tuple[bool, Any]:
    """(True, what was returned), or (False, what was raised)."""
    try:
        function, args, kwargs = ForkingPickler.loads(request)
        answer = True, function(*args, **kwargs)
        # an answer that can't be pickled must fail here, where the error can still be sent
        ForkingPickler.dumps(answer)
        return answer
    except Exception as error:
        return False, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error, or the nearest of its base classes that can be pickled, with its message."""
    with contextlib.suppress(Exception):
        # unpickling calls the class with the arguments of the exception, which may not fit
        ForkingPickler.loads(ForkingPickler.dumps(error))
        return error
    for base in type(error).__mro__[1:]:
        if issubclass(base, VivaceError):
            with contextlib.suppress(Exception):
                sent: Exception = base(str(error))
                ForkingPickler.loads(ForkingPickler.dumps(sent))
                return sent
    return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
