"""Signals while a server starts, in this process: they end it in order, or are remembered."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from vivace.serving import server
from vivace.serving.app import Application
from vivace.serving.settings import Settings
from vivace.serving.starting import hangups_remembered

HANGUP = getattr(signal, "SIGHUP", None)


def opened_amid(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From now on a signal comes while a server opens its bundles."""

    def opened(*arguments: Any, **options: Any) -> Application:
        signal.raise_signal(number)
        return Application(*arguments, **options)

    monkeypatch.setattr(server, "Application", opened)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_to_stop_while_it_starts_ends_in_order_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    opened_amid(monkeypatch, number)
    before = signal.getsignal(number)
    server.serve({"plain": folder}, Settings(port=0, max_batch=1), ready=lambda url, app: pytest.fail("it is ready"))
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (line["event"], line["signal"], line["while_starting"]) == ("stopped", number.name, True)
    assert signal.getsignal(number) is before


@pytest.mark.skipif(HANGUP is None, reason="there is no SIGHUP")
def test_sighup_while_a_server_starts_opens_the_bundles_anew_once_it_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert HANGUP is not None
    opened_amid(monkeypatch, HANGUP)
    tasks = []

    def ready(url: str, application: Application) -> None:
        async def stop() -> None:
            while application.bundles.get("plain").generation == 1:
                await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)

        tasks.append(asyncio.get_running_loop().create_task(stop()))

    # as the command line has it, before any bundle is opened
    with hangups_remembered() as hangups:
        server.serve({"plain": folder}, Settings(port=0, max_batch=1, drain_seconds=0), ready=ready)
    assert hangups.came
    events = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert events.count("bundle_opened") == 2
    assert {"reloading", "stopping", "stopped"} <= set(events)


@pytest.mark.skipif(HANGUP is None, reason="there is no SIGHUP")
def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    assert HANGUP is not None
    before = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        with hangups_remembered() as hangups:
            signal.raise_signal(HANGUP)
            assert signal.getsignal(HANGUP) is signal.SIG_IGN
        assert not hangups.came
    finally:
        signal.signal(HANGUP, before)
