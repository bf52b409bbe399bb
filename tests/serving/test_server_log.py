"""The log of a server: nobody who stops to read it holds the server up."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from vivace.serving.web.logs import MAX_LINES_PER_SECOND, MAX_WAITING, Log, libraries_logged

PROGRAM = """
from vivace.serving.web.logs import Log
log = Log("problems")
for number in range(2000):
    log.event("noted", text="x" * 500)
print(log.flush(0.1), flush=True)
"""


def test_a_log_that_nobody_reads_holds_nothing_up_and_what_is_missing_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, write = os.pipe()
    with os.fdopen(number) as read, os.fdopen(write, "w") as stream:
        log = Log("problems", stream)
        for count in range(3 * MAX_WAITING):
            log.event("noted", number=count, text="x" * 500)
        assert not log.flush(0.1)
        lines: list[dict[str, object]] = []
        reader = threading.Thread(target=lambda: lines.extend(json.loads(line) for line in read))
        reader.start()
        assert log.flush(60)
        # said in another second
        later = time.time() + 2
        monkeypatch.setattr("vivace.serving.web.logs.time.time", lambda: later)
        log.event("noted", number=-1)
        assert log.flush(60)
        stream.close()
        reader.join(60)
    numbers = [line["number"] for line in lines if line["event"] == "noted"]
    (dropped,) = [line["count"] for line in lines if line["event"] == "lines_dropped"]
    assert numbers[: MAX_WAITING // 2] == list(range(MAX_WAITING // 2))
    assert numbers[-1] == -1
    assert isinstance(dropped, int)
    assert len(numbers) - 1 + dropped == 3 * MAX_WAITING


@pytest.mark.skipif(sys.platform == "win32", reason="a full pipe of POSIX")
def test_a_process_ends_though_nobody_reads_its_log() -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.read() == "False\n"
        assert running.wait(60) == 0


def test_what_libraries_say_becomes_lines_of_the_log_and_is_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vivace.serving.web.logs.time.time", lambda: 1e9)
    stream = io.StringIO()
    log = Log("problems", stream)
    with libraries_logged(log):
        # of what a client sent, its refusal tells
        logging.getLogger("python_multipart.multipart").warning("Expected boundary character 45, got 120 at index 2")
        for number in range(2 * MAX_LINES_PER_SECOND):
            logging.getLogger("some.library").warning("line\n%d", number)
        assert log.flush(60)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == [f"line\n{number}" for number in range(MAX_LINES_PER_SECOND)]
    assert {(line["event"], line["logger"]) for line in lines} == {("library", "some.library")}
    logging.getLogger("some.library").warning("later")
    assert log.flush(60)
    assert len(stream.getvalue().splitlines()) == MAX_LINES_PER_SECOND
    assert "boundary" not in capsys.readouterr().err


def test_libraries_that_were_quietened_before_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "level", logging.CRITICAL)
    logging.disable(logging.NOTSET)  # forgets which levels were answered for before
    stream = io.StringIO()
    log = Log("problems", stream)
    with libraries_logged(log):
        logging.getLogger("some.library").warning("heard")
        assert log.flush(60)
    assert json.loads(stream.getvalue())["message"] == "heard"
    assert logging.root.level == logging.CRITICAL
    logging.root.setLevel(logging.WARNING)
