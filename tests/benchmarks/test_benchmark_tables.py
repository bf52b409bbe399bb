"""The summary of `benchmarks/train.py`: when the first contender had what another one ended with."""

from __future__ import annotations

import pytest

from contenders import Result
from tables import crossing_seconds, markdown, summarize

CURVE = ((10.0, 0.4), (20.0, 0.6), (30.0, 0.55), (40.0, 0.8))


def run(
    top1: float,
    train_seconds: float = 100.0,
    curve: tuple[tuple[float, float], ...] = CURVE,
    top1_tta: float | None = None,
) -> Result:
    return Result(
        top1=top1,
        best_top1=top1,
        train_seconds=train_seconds,
        total_seconds=110.0,
        curve=curve,
        top1_tta=top1_tta,
    )


@pytest.mark.parametrize(
    ("top1", "seconds"),
    [(0.3, 10.0), (0.4, 10.0), (0.5, 20.0), (0.6, 20.0), (0.61, 40.0), (0.8, 40.0), (0.81, None)],
)
def test_the_first_look_that_is_as_accurate_counts(top1: float, seconds: float | None) -> None:
    assert crossing_seconds(run(0.8), top1) == seconds


def test_every_contender_but_the_first_is_told_when_it_was_reached() -> None:
    first, other = summarize({"vivace": [run(0.8), run(0.8)], "peer": [run(0.6, 200.0), run(0.7, 240.0)]})
    assert "first_reaches_it_after_s" not in first
    assert other["first_reaches_it_after_s"] == [20.0, 40.0]
    assert other["first_reaches_it_after_s_median"] == 30.0
    # 200 s for 20 s, 240 s for 40 s
    assert other["first_reaches_it_ratio"] == pytest.approx(60**0.5)
    low, high = other["first_reaches_it_ratio_low"], other["first_reaches_it_ratio_high"]
    assert low < 6 < 10 < high, "two rounds that differ say little"


def test_gains_are_paired_by_round_with_student_s_interval_and_the_mean_has_a_bound() -> None:
    first, other = summarize({"vivace": [run(0.80), run(0.82), run(0.84)], "peer": [run(0.79), run(0.80), run(0.83)]})
    assert "top1_gain" not in first
    # -1, -2, -1 points: mean -4/3, standard error 1/3, Student's quantile for two degrees of freedom 4.303
    gain = [100 * other[f"top1_gain{end}"] for end in ("", "_low", "_high")]
    assert gain == pytest.approx([-4 / 3, -4 / 3 - 4.303 / 3, -4 / 3 + 4.303 / 3], abs=1e-3)
    # a standard error of 2 / sqrt(3) points, and one-sided 2.920 of it
    assert 100 * first["top1_bound"] == pytest.approx(82 - 2.920 * 2 / 3**0.5, abs=1e-3)


def test_a_single_round_has_no_interval() -> None:
    first, other = summarize({"vivace": [run(0.8)], "peer": [run(0.6, 200.0)]})
    assert first["top1_bound"] is None
    assert (other["train_ratio"], other["train_ratio_low"]) == (0.5, None)
    assert other["top1_gain"] == pytest.approx(-0.2)
    assert other["top1_gain_low"] is None


def test_a_contender_that_the_first_never_reaches_has_no_ratio() -> None:
    _, other = summarize({"vivace": [run(0.8)] * 3, "peer": [run(0.9), run(0.9), run(0.5)]})
    assert other["first_reaches_it_after_s"] == [None, None, 20.0]
    assert other["first_reaches_it_after_s_median"] is None
    assert other["first_reaches_it_ratio"] is None


def test_test_time_augmentation_counts_only_where_every_run_tells_it() -> None:
    every, some = summarize(
        {
            "every": [run(0.8, top1_tta=0.82), run(0.8, top1_tta=0.84)],
            "some": [run(0.8, top1_tta=0.9), run(0.8)],
        }
    )
    assert every["top1_tta_mean"] == pytest.approx(0.83)
    assert some["top1_tta_mean"] is None


def test_the_table_has_a_row_for_each_and_says_never() -> None:
    results = {"vivace": [run(0.8, top1_tta=0.815)], "slower": [run(0.6)], "better": [run(0.9)]}
    record = {
        "data": "flowers",
        "date": "2026-11-24",
        "environment": {"cpu": "CPU", "num_cpus": 2, "versions": {"torch": "2.15.0"}, "python": "3.11.7"},
        "rounds": 1,
        "cold_cache": False,
        "contenders": dict.fromkeys(results, "…"),
        "command": "python benchmarks/train.py",
        "summary": summarize(results),
    }
    lines = markdown(record).splitlines()
    head = next(line for line in lines if line.startswith("| contender"))
    rows = {line.split()[1]: line for line in lines if line.startswith(("| vivace", "| slower", "| better"))}
    assert "first reaches it after s" in head
    assert {line.count("|") for line in rows.values()} == {head.count("|")}
    assert rows["vivace"].endswith("| – | – |")
    assert [rows[name].split("|")[5].strip() for name in ("vivace", "slower", "better")] == ["–", "-20.00", "+10.00"]
    assert [rows[name].split("|")[6].strip() for name in ("vivace", "slower", "better")] == ["81.50", "–", "–"]
    assert "| 20.0 | 5.00 |" in rows["slower"]
    assert rows["better"].endswith("| never | – |")
