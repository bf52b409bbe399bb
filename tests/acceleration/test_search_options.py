"""The options of a search: one object that refuses what makes no sense, and is written into reports."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

import vivace
from vivace.acceleration.options import SearchKeywords, SearchOptions
from vivace.acceleration.outcome import acceleration_of
from vivace.cli import main
from vivace.cli.accelerate import Search
from vivace.cli.options import option_names
from vivace.errors import ConfigError

NAMES = {field.name for field in dataclasses.fields(SearchOptions)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_drop", 0, "max_drop is out of range: got 0 points"),
        ("max_drop", 100, "max_drop is out of range"),
        ("max_drop", math.nan, "max_drop is out of range: got nan"),
        ("max_drop", "1", "max_drop has the wrong type: got '1'"),
        ("max_drop", True, "max_drop has the wrong type: got True"),
        ("objective", "speed", "objective is unknown: got 'speed'"),
        ("objective", ["size"], "objective is unknown: got"),
        ("train", "yes", "train is unknown: got 'yes'"),
        ("on_bad_image", "ignore", "on_bad_image is unknown: got 'ignore'"),
        ("batch_size", 0, "batch_size is out of range: got 0"),
        ("batch_size", 1.5, "batch_size has the wrong type: got 1.5. Give a whole number"),
        ("batch_size", True, "batch_size has the wrong type: got True"),
        ("batch_size", "8", "batch_size has the wrong type: got '8'"),
        ("threads", 10**30, "threads is out of range: got 1000"),
        ("cache_dir", "\0", "cache_dir is no path: got "),
        ("threads", 0, "threads is out of range: got 0"),
        ("threads", -1, "threads is out of range: got -1"),
        ("target_speedup", 0.0, "target_speedup is out of range"),
        ("target_speedup", math.inf, "target_speedup is out of range"),
        ("target_speedup", "2x", "target_speedup has the wrong type"),
        ("within", "soon", "`within` is no duration: got 'soon'"),
        ("within", -3, "`within` is no duration: got -3"),
        ("within", math.nan, "`within` is no duration"),
        ("within", True, "`within` is no duration"),
        ("cache_dir", 3, "cache_dir has the wrong type: got 3. Give a path"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_one_line(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SearchOptions(**{name: value})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("within", "seconds"), [(None, None), (90, 90.0), (0.5, 0.5), ("20m", 1200.0), ("1.5h", 5400.0)]
)
def test_a_time_is_a_number_of_seconds_or_text(within: Any, seconds: float | None) -> None:
    assert SearchOptions(within=within).within_seconds == seconds


def test_a_call_has_one_image_and_for_throughput_32() -> None:
    assert [SearchOptions(objective=one).images_per_call for one in ("latency", "throughput", "size")] == [1, 32, 1]
    assert SearchOptions(objective="throughput", batch_size=8).images_per_call == 8


@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(),
        SearchOptions(
            max_drop=2,
            objective="throughput",
            threads=2,
            within="20m",
            target_speedup=3.5,
            train="on",
            on_bad_image="skip",
            cache_dir="images",
        ),
    ],
)
def test_what_a_receipt_says_of_them_makes_them_again(options: SearchOptions) -> None:
    written = json.loads(json.dumps(options.to_dict()))
    again = SearchOptions.from_dict(written)
    assert again.to_dict() == written
    assert (again.within_seconds, again.images_per_call) == (options.within_seconds, options.images_per_call)
    assert "images" not in str(written)


def test_an_option_that_is_not_known_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'max_dorp'\. Did you mean 'max_drop'\?"):
        SearchOptions.from_dict({"max_dorp": 1.0})
    with pytest.raises(ConfigError, match=r"within and within_seconds are the same: got '20m' and 60"):
        SearchOptions.from_dict({"within": "20m", "within_seconds": 60})


def test_python_takes_them_as_an_object_or_as_keywords_and_not_as_both(tmp_path: Path) -> None:
    out = tmp_path / "fast"
    with pytest.raises(ConfigError, match="options and keywords are both given: got max_drop"):
        vivace.accelerate(tmp_path, "digits", out=out, options=vivace.SearchOptions(), max_drop=1.0)
    with pytest.raises(ConfigError, match="options has the wrong type: got dict"):
        vivace.accelerate(tmp_path, "digits", out=out, options={"max_drop": 1.0})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown option 'budget'"):
        vivace.accelerate(tmp_path, "digits", out=out, budget=1.0)  # type: ignore[call-arg]


def test_without_a_proof_the_drop_is_unknown_and_not_zero() -> None:
    baseline = SimpleNamespace(
        ratio=None, certified=None, p50_ms=1.0, candidate=SimpleNamespace(runtime="eager", precision="fp32")
    )
    result: Any = SimpleNamespace(
        winner=None,
        baseline=baseline,
        verdict=SimpleNamespace(value="unchanged", reason=""),
        warnings=[],
        num_certify=0,
    )
    final: Any = SimpleNamespace(folder=Path("bundle"), info=SimpleNamespace(multi_label=False))
    found = acceleration_of(result, final, SearchOptions(), {"top1_before": None})
    assert math.isnan(found.top1_before)
    assert math.isnan(found.drop)
    assert math.isnan(found.drop_bound)
    # the baseline itself, measured
    known = acceleration_of(result, final, SearchOptions(), {"top1_before": 0.9})
    assert (known.top1_after, known.drop, known.drop_bound) == (0.9, 0.0, 0.0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-drop", "0", "--max-drop is out of range: got 0 points. Give more than 0, under 100."),
        ("--max-drop", "nan", "--max-drop is out of range: got nan points."),
        ("--target-speedup", "-1", "--target-speedup is out of range: got -1."),
        ("--batch-size", "0", "--batch-size is out of range: got 0."),
        ("--threads", "0", "--threads is out of range: got 0."),
        (
            "--within",
            "soon",
            "--within is no duration: got 'soon'. Write 90s, 10m, 1.5h, or a number of seconds: 90.",
        ),
    ],
)
def test_the_command_line_names_its_options(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["accelerate", "runs/none", "digits", f"{option}={value}"]) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_and_the_keywords_have_every_field() -> None:
    assert {name.removeprefix("--").replace("-", "_") for name in option_names(Search)} == NAMES
    assert set(get_type_hints(SearchKeywords)) == NAMES | {"within_seconds"}


@pytest.mark.parametrize("values", [None, []])
def test_what_is_no_mapping_of_options_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="the options are no mapping: got "):
        SearchOptions.from_dict(values)


def test_numbers_beyond_all_bounds_are_refused_on_one_line() -> None:
    for digits in (400, 5000):
        for name, value in (
            ("max_drop", 10**digits),
            ("target_speedup", 10**digits),
            ("target_speedup", -(10**digits)),
            ("within", 10**digits),
            ("threads", 10**digits),
        ):
            with pytest.raises(ConfigError, match=rf"^`?{name}`? is .*: got a number of about {digits + 1:,} digits"):
                SearchOptions(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`within` is no duration"):
        SearchOptions(within="9" * 5000)
