"""`vivace` for tests that run many commands as a reader would: it starts at once.

Most of a short command's time is Python reading torch and other libraries. Here one process has read them, and each
command is a fork of it, with the arguments, folder, environment and streams of whoever called. What is vivace's own is
read anew by each: the process that is forked knows nothing of it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["warm_program"]

LIBRARIES = (
    *("torch", "torch._dynamo", "torch.utils.tensorboard", "torchvision", "timm", "safetensors.torch", "simplejpeg"),
    *("sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "tyro", "rich.console", "yaml"),
)
CALLER = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({place!r})
    said = {{"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}
    text = json.dumps(said).encode()
    socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(text)
    status = server.recv(1)
sys.exit(status[0] if status else "the process that runs the commands of tests has ended")
"""


@contextlib.contextmanager
def warm_program() -> Iterator[Path]:
    """A folder for the front of PATH, with the program `vivace`.

    Where processes can't be forked and waited for in this way, that of the environment.
    """
    if not hasattr(os, "pidfd_open"):
        yield Path(sys.executable).parent
        return
    # short: the name of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, socket.socket(socket.AF_UNIX) as listener:
        place = f"{folder}/socket"
        listener.bind(place)
        listener.listen()
        program = Path(folder, "vivace")
        program.write_text(CALLER.format(python=sys.executable, place=place))
        program.chmod(0o755)
        command = [sys.executable, "-P", __file__, str(listener.fileno())]
        # calls wait in the socket until it is ready. It ends when its stdin does, however this process ends
        quiet: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        # read when the hub's client is imported, which commands find imported
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(command, pass_fds=[listener.fileno()], env=offline, **quiet):
            listener.close()
            yield Path(folder)


def serve(listener: socket.socket) -> NoReturn:
    """Run what is asked for, until stdin ends; commands may run beside each other."""
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    # pages that the collector writes to are copied for each process
    gc.collect()
    gc.freeze()
    while 0 not in select.select([0, listener], [], [])[0]:
        connection, _ = listener.accept()
        with connection:
            if not os.fork():
                listener.close()
                _attend(connection)
        _take_leave()
    _take_leave()
    # not through what libraries do at the end
    os._exit(0)


def _take_leave() -> None:
    """Of processes that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _attend(connection: socket.socket) -> NoReturn:
    """Start one command, and tell its exit status; end it where nobody waits for it any more."""
    head, streams, *_ = socket.recv_fds(connection, 8, 3)
    length, text = int.from_bytes(head, "big"), b""
    while len(text) < length:
        text += connection.recv(length - len(text))
    child = os.fork()
    if not child:
        connection.close()
        _become(json.loads(text), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        # as shells tell a signal
        connection.sendall(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _become(called: dict[str, Any], streams: list[int]) -> NoReturn:
    """The command itself."""
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        # what Python found out of the streams that were there before does not hold for these
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        os.chdir(called["folder"])
        os.environ.clear()
        os.environ.update(called["environment"])
        sys.argv = called["arguments"]
        from vivace.cli import program

        program()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
