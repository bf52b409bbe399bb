"""A search within a time: what does not fit is not started, what is late is abandoned, and both are said."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import COSTS, fake_times, keep_fake_variants, run
from slow import fake_clock
from waiting import until_gone, wait_for

from answers import last_answer
from vivace.acceleration import accelerate as accelerate_module
from vivace.acceleration.accelerate import accelerate
from vivace.acceleration.receipt import markdown
from vivace.bundle import Bundle
from vivace.cli import main
from vivace.errors import ConfigError, OutputPathError


@pytest.fixture(autouse=True)
def quick_variants(graphs_made_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_fake_variants(monkeypatch)


def statuses(receipt: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in receipt["rows"]}


def test_in_enough_time_the_verdict_is_that_of_a_search_without_a_limit(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)
    clock = fake_clock(monkeypatch, {})
    result = run(trained, tmp_path, max_drop=20.0, within=600)
    assert (result.status, result.warnings, result.receipt["left_out"]) == ("accelerated", [], [])
    assert (result.runtime, result.precision) == ("openvino", "int8")
    assert clock.abandoned == []


def test_a_slow_variant_is_abandoned_at_its_share_of_the_time_and_the_others_decide(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)
    clock = fake_clock(monkeypatch, {"build openvino int8": 1000.0})
    result = run(trained, tmp_path, max_drop=20.0, within=60)
    assert result.accelerated
    assert (result.runtime, result.precision) == ("openvino", "fp32")
    assert clock.abandoned == ["build openvino int8"]
    # 35 % of the 57 seconds that are there before the result is written; what comes after it in the order is not begun
    found = statuses(result.receipt)
    assert found["openvino int8"] == "abandoned: out of time after building for 20 s"
    assert (found["onnx fp32"], found["onnx int8"]) == ("not tried: out of time",) * 2
    assert "openvino int8: abandoned: out of time after building for 20 s" in result.receipt["left_out"]
    assert "- out of time: onnx int8: not built" in markdown(result.receipt)
    assert clock.now - 1000 <= 60


def test_a_kind_of_work_that_took_long_is_not_started_again_where_it_would_not_end(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_times(monkeypatch, COSTS)
    # answering for the selection images leaves no time for the final timing
    clock = fake_clock(monkeypatch, {"probs": 30.0})
    result = run(trained, tmp_path, max_drop=20.0, within=40)
    assert (result.accelerated, result.status, result.reason) == (
        False,
        "undecided",
        "nothing decided in the time given",
    )
    assert len(asked) == 1
    # not only that nothing was decided: what was left, what for, and how much time to give instead
    (warning,) = result.warnings
    told = re.fullmatch(
        r"(\d+) s of 40 s were left when the search ended: the next step was estimated at (\d+) s, (\d+) s of its "
        r"share were left\. Try `within='2m'`",
        warning,
    )
    assert told is not None, warning
    assert 0 <= int(told[3]) <= int(told[1]) <= 10
    assert int(told[2]) >= int(told[3])
    assert f"**Warning: {warning}.**" in markdown(result.receipt)
    assert result.bundle == trained[0].folder
    assert "the final timing: not started" in result.receipt["left_out"]
    assert markdown(result.receipt).splitlines()[0].endswith(": nothing decided in the time given")
    assert clock.now - 1000 <= 40


@pytest.mark.parametrize("what", ["open_network", "nothing is timed"])
def test_where_the_time_is_over_before_the_baseline_is_timed_nothing_is_decided(
    trained: tuple[Bundle, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    from vivace.acceleration import measurements as measurements_module

    clock = fake_clock(monkeypatch, {what: 1000.0})
    monkeypatch.setattr(measurements_module, "time_sides", lambda *_, **__: [])
    # of the process, which has been there for longer than that
    monkeypatch.setattr("vivace.hardware.process_seconds", lambda: 0.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    command = ["accelerate", str(trained[0].folder), str(trained[1]), "--out", str(tmp_path / "fast")]
    assert main([*command, "--within", "30s", "--json"]) == 3
    said = capsys.readouterr()
    answer = last_answer(said.out)
    assert (answer["status"], answer["reason"]) == ("undecided", "nothing decided in the time given")
    assert (answer["latency_ms_before"], answer["top1_before"], answer["accelerated"]) == (None, None, False)
    assert (answer["speedup"], answer["drop"], answer["bundle"]) == (None, None, str(trained[0].folder))
    assert said.err.splitlines()[-1] == "nothing decided in the time given: the bundle is unchanged"
    assert re.search(r"warning: \d+ s of 30 s were left when the search ended: .*\. Try --within 60s\n", said.err)
    written = json.loads((tmp_path / "fast-receipt.json").read_text())
    assert written["left_out"]
    assert not (tmp_path / "fast").exists()
    assert "NaN" not in (tmp_path / "fast-receipt.json").read_text()


def test_more_time_than_was_given_is_a_warning(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_times(monkeypatch, COSTS)
    clock = fake_clock(monkeypatch, {})
    plain = accelerate_module._write

    def late(*arguments: Any) -> Bundle:
        clock.now += 65
        return plain(*arguments)

    monkeypatch.setattr(accelerate_module, "_write", late)
    monkeypatch.setattr("vivace.hardware.process_seconds", lambda: 0.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    command = ["accelerate", str(trained[0].folder), str(trained[1]), "--out", str(tmp_path / "fast")]
    assert main([*command, "--within", "60s", "--max-drop", "20", "--json"]) == 0
    said = capsys.readouterr()
    (warning,) = last_answer(said.out)["warnings"]
    assert warning.startswith("it took ")
    assert warning.endswith(" s, and the time budget was 60 s")
    assert f"warning: {warning}" in said.err


def test_smaller_networks_are_not_trained_where_no_time_is_left(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS)
    clock = fake_clock(monkeypatch, {"proposed": 1000.0})
    result = run(trained, tmp_path, max_drop=20.0, within=60, train="on")
    assert "smaller networks: not built" in result.receipt["left_out"]
    assert not any("train_student" in what for what in clock.ran)
    assert clock.now - 1000 <= 60


@pytest.mark.parametrize(("number", "last"), [(signal.SIGINT, "stopped"), (signal.SIGTERM, "Interrupted: stopped by")])
def test_stopped_in_the_middle_no_process_is_left_and_nothing_is_written(
    trained: tuple[Bundle, Path], tmp_path: Path, number: int, last: str
) -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from slow import open_with_slow_builder; "
        "from vivace.acceleration import search; search.open_network = open_with_slow_builder; "
        "from vivace.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "made" / "fast"
    command = ["accelerate", str(trained[0].folder), str(trained[1]), "--out", str(out), "--within", "1h"]
    environment = {**os.environ, "VIVACE_TEST_PIDS": str(tmp_path / "pids")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *command], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            pids = wait_for(tmp_path / "pids")
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert said.splitlines()[-1].startswith(last)
    assert "Traceback" not in said
    assert until_gone(pids)
    assert not out.exists()
    assert not (out.parent / "fast-receipt.json").exists()


@pytest.mark.parametrize("given", [3, None, ["runs/digits"]])
def test_what_is_no_bundle_is_refused_in_one_line_that_says_what_is_taken(given: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"takes a bundle or a torch\.nn\.Module: got an object of type {type(given).__name__}\."
    ) as raised:
        accelerate(given, "digits", out=tmp_path / "fast")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_file_or_another_report_at_the_place_of_the_result_is_refused_and_stays(
    trained: tuple[Bundle, Path], tmp_path: Path
) -> None:
    thesis = tmp_path / "thesis.md"
    thesis.write_text("all of it")
    with pytest.raises(OutputPathError, match="`out` is a file, but a folder is to be written"):
        accelerate(*trained, out=thesis)
    own = tmp_path / "fast-receipt.json"
    own.write_text('["of the shop"]')
    with pytest.raises(OutputPathError, match="the report's file exists already"):
        accelerate(*trained, out=tmp_path / "fast")
    assert (thesis.read_text(), own.read_text()) == ("all of it", '["of the shop"]')


@pytest.mark.parametrize("speedup", [0.0, -1.0, math.nan, math.inf])
def test_a_speed_up_that_is_no_number_is_refused(trained: tuple[Bundle, Path], tmp_path: Path, speedup: float) -> None:
    with pytest.raises(ConfigError, match="target_speedup is out of range"):
        run(trained, tmp_path, target_speedup=speedup)
