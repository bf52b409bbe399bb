"""Functions run in a process of their own, which is ended with all that it started when their time is up.

An exporter, a compiler or a training can't be stopped from within. Requests and answers go through pipes between this
process and its own child, as the standard library's `multiprocessing` sends objects; nothing comes from a file.
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

# a training that is asked to stop saves a checkpoint first
STOP_SECONDS = 5.0
PROGRAM = (
    "import json, sys; sys.path.extend(p for p in json.loads(sys.argv[1]) if p not in sys.path); "
    "from vivace.acceleration.worker import serve; serve()"
)


class WorkerDied(VivaceError):
    """The process that ran a function ended without an answer."""


class Worker:
    """A process that is started when it is first needed, and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, until: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What function(*args, **kwargs) returns; it, its arguments and its answer must be picklable.

        until: of time.monotonic. Raises what the function raises, OutOfTime once it is later than `until`, and
        WorkerDied if its process dies; whatever is raised beside the function's own, nothing of it runs any more.
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
        """End the process and all that it started; it may take `seconds` to save what it has."""
        process, self._process = self._process, None
        if process is None:
            return
        if seconds and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        # what it started is of its group, and may outlive it
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
    """The process, where requests to it are sent, and where its answers come from."""
    requests_read, requests_write = os.pipe()
    answers_read, answers_write = os.pipe()
    requests, answers = Connection(requests_write, readable=False), Connection(answers_read, writable=False)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, json.dumps([str(folder) for folder in sys.path])],
            stdin=requests_read,
            stdout=answers_write,
            # Ctrl-C in a terminal reaches a whole group: the parent ends its children itself
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
    """The life of the process: run what is asked on stdin, answer on stdout, and end when stdin does."""
    asked, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    # what a library prints must not come between the answers, and what it reads is nothing
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked, requests), daemon=True).start()
    while True:
        answers.send(_done(requests.get()))


def _read(asked: Connection, requests: queue.SimpleQueue[bytes]) -> None:
    """Requests into a queue, until the parent is gone: then this process ends too, whatever it is at."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            requests.put(asked.recv_bytes())
    systems.end_own_group()


def _done(request: bytes) -> tuple[bool, Any]:
    """(True, what was returned), or (False, what was raised)."""
    try:
        function, args, kwargs = ForkingPickler.loads(request)
        answer = True, function(*args, **kwargs)
        # what can't be sent must fail here, where it can be told
        ForkingPickler.dumps(answer)
        return answer
    except Exception as error:
        return False, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error, or the nearest of its bases that can be sent, with its message."""
    with contextlib.suppress(Exception):
        # as it will be sent: the process that receives it makes it from its arguments
        ForkingPickler.loads(ForkingPickler.dumps(error))
        return error
    for base in type(error).__mro__[1:]:
        if issubclass(base, VivaceError):
            with contextlib.suppress(Exception):
                sent: Exception = base(str(error))
                ForkingPickler.loads(ForkingPickler.dumps(sent))
                return sent
    return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
