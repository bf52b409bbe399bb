"""Handlers of signals for the time of a block."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from vivace.signals import handled, handler_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX, and forks")
NUMBER = signal.SIGUSR1


def test_within_the_block_the_handler_is_called_and_afterwards_the_one_before() -> None:
    before, heard = signal.getsignal(NUMBER), []
    with handled({NUMBER: lambda number, frame: heard.append(number)}):
        os.kill(os.getpid(), NUMBER)
    assert heard == [NUMBER]
    assert signal.getsignal(NUMBER) == before
    with pytest.raises(ZeroDivisionError), handled({NUMBER: lambda number, frame: None}):
        raise ZeroDivisionError
    assert signal.getsignal(NUMBER) == before


def test_a_worker_that_is_forked_within_the_block_ends_by_the_signal() -> None:
    heard: list[int] = []
    with handled({NUMBER: lambda number, frame: heard.append(number)}):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), NUMBER)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == NUMBER
    assert heard == []


def test_what_the_parent_ignores_stays_ignored_unless_asked_for() -> None:
    heard: list[int] = []
    before = signal.signal(NUMBER, signal.SIG_IGN)
    try:
        for even_ignored in (False, True):
            with handled({NUMBER: lambda number, frame: heard.append(number)}, even_ignored=even_ignored):
                os.kill(os.getpid(), NUMBER)
            assert len(heard) == even_ignored
            assert signal.getsignal(NUMBER) == signal.SIG_IGN
    finally:
        signal.signal(NUMBER, before)


def test_of_blocks_in_each_other_the_inner_handler_can_be_asked_for() -> None:
    def outer(number: int, frame: object) -> None: ...

    def inner(number: int, frame: object) -> None: ...

    with handled({NUMBER: outer}):
        with handled({NUMBER: inner}):
            assert handler_of(NUMBER) is inner
        assert handler_of(NUMBER) is outer
    assert handler_of(NUMBER) == signal.getsignal(NUMBER)


def test_in_other_threads_nothing_is_changed() -> None:
    before, during = signal.getsignal(NUMBER), []

    def work() -> None:
        with handled({NUMBER: lambda number, frame: None}):
            during.append(signal.getsignal(NUMBER))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert during == [before]
