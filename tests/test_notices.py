"""Warnings are shown once, kept in order, and safe to print."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from vivace.notices import collected_warnings, recorded_warnings, warn


def test_a_warning_is_shown_on_stderr_and_kept_once(capsys: pytest.CaptureFixture[str]) -> None:
    with collected_warnings() as messages:
        warn("two files were left out")
        warn("the budget was missed")
        warn("two files were left out")
        assert recorded_warnings() == ("two files were left out", "the budget was missed")
    assert messages == ["two files were left out", "the budget was missed"]
    assert capsys.readouterr() == ("", "warning: two files were left out\nwarning: the budget was missed\n")


def test_outside_of_a_block_a_warning_is_only_shown(capsys: pytest.CaptureFixture[str]) -> None:
    warn("nobody collects")
    assert recorded_warnings() == ()
    assert capsys.readouterr().err == "warning: nobody collects\n"


def test_the_warnings_of_a_run_inside_another_are_its_own() -> None:
    with collected_warnings() as outer:
        warn("outer")
        with collected_warnings() as inner:
            warn("inner")
        warn("outer again")
    assert (outer, inner) == (["outer", "outer again"], ["inner"])


def test_two_threads_do_not_mix_their_warnings() -> None:
    seen: dict[str, list[str]] = {}
    both_inside = threading.Barrier(2)

    def run(name: str) -> None:
        with collected_warnings() as messages:
            both_inside.wait()
            warn(f"of {name}")
            both_inside.wait()
        seen[name] = messages

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"a": ["of a"], "b": ["of b"]}


def test_a_warning_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with collected_warnings() as messages:
        warn("a\nb\x1b[31m" + "c" * 1000)
    assert messages[0].startswith("a b\\x1b[31mccc")
    assert len(messages[0]) == 500
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_stderr_ends_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    closed = io.StringIO()
    closed.close()
    with collected_warnings() as messages:
        for stream in (closed, None):
            monkeypatch.setattr(sys, "stderr", stream)
            warn(f"to {stream is None}")
    assert messages == ["to False", "to True"]
    assert capsys.readouterr().out == ""
