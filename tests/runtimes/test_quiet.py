"""Silence while a library converts, in one thread and in several."""

from __future__ import annotations

import logging
import threading
import warnings

import pytest

from vivace.data.decoding.decode import PillowGuard
from vivace.runtimes.quiet import quiet


def test_of_two_threads_the_last_to_end_puts_back_what_the_first_found() -> None:
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    both, first_left = threading.Barrier(2, timeout=60), threading.Event()

    def second() -> None:
        with quiet():
            both.wait()
            assert first_left.wait(60)

    thread = threading.Thread(target=second)
    with quiet():
        thread.start()
        both.wait()
    # the other thread still converts
    assert logging.root.manager.disable == logging.WARNING
    first_left.set()
    thread.join(60)
    assert logging.root.manager.disable == disabled
    assert warnings.filters == filters


def test_what_fails_inside_ends_the_silence() -> None:
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    with pytest.raises(UserWarning), quiet():
        raise UserWarning
    assert (warnings.filters, logging.root.manager.disable) == (filters, disabled)


@pytest.mark.parametrize("converts_first", [True, False])
def test_a_thread_that_decodes_and_one_that_converts_leave_what_they_found(converts_first: bool) -> None:
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    blocks = [quiet(), PillowGuard()]
    first, second = blocks if converts_first else blocks[::-1]
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert len(warnings.filters) == len(filters) + 1
    second.__exit__(None, None, None)
    assert (warnings.filters, logging.root.manager.disable) == (filters, disabled)
