"""Decisions of a search: what is dropped, in which order the rest is judged, and what wins."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vivace.acceleration import decide
from vivace.acceleration.candidates import Candidate
from vivace.acceleration.explain import at_chance, explain, nearest
from vivace.acceleration.results import Outcome, Result, Status, Verdict, remaining
from vivace.statistics.paired import PairedLoss, images_to_prove, loss_bound

SURE = (1.0, 0.99, 1.01)


def loss(lost: int, gained: int = 0, num_images: int = 1000) -> PairedLoss:
    return PairedLoss(
        num_images=num_images,
        top1_before=0.9,
        top1_after=0.9 - (lost - gained) / num_images,
        lost=lost,
        gained=gained,
        bound=loss_bound(lost, gained, num_images),
        confidence=0.95,
    )


def row(name: str, ratio: float, *, lost: int = 0, num_bytes: int = 100) -> Result:
    runtime, precision, *network = name.split(" ", 2)
    candidate = Candidate(runtime=runtime, precision=precision, network=network[0] if network else "")
    return Result(
        candidate=candidate,
        ratio=(ratio, 0.98 * ratio, 1.02 * ratio),
        num_bytes=num_bytes,
        selected=loss(lost),
    )


def reasons(rows: Sequence[Result]) -> dict[str, str]:
    return {row.name: row.outcome.reason for row in rows}


NOT_PROVEN = Outcome(Status.NOT_PROVEN, "not proven")
BASELINE = row("eager fp32", 1.0)


def test_a_variant_is_dropped_where_one_of_less_risk_is_faster() -> None:
    rows = [BASELINE, row("onnx fp32", 2.0), row("onnx int8", 1.5), row("openvino int8", 4.0), row("eager bf16", 0.8)]
    decided = decide.drop_dominated(rows, BASELINE, objective="latency")
    assert [r.name for r in remaining(decided)] == ["onnx fp32", "openvino int8"]
    assert [reasons(decided)[r.name] for r in rows] == [
        "the baseline",
        "built",
        "slower than onnx fp32",
        "built",
        "slower than eager fp32",
    ]


def test_a_variant_that_is_nearly_as_fast_goes_on_to_the_longer_timing() -> None:
    rows = [BASELINE, row("onnx fp32", 2.0), row("onnx int8", 1.96)]
    assert len(remaining(decide.drop_dominated(rows, BASELINE, objective="latency"))) == 2


def test_a_smaller_network_is_the_greatest_risk() -> None:
    small, own = row("openvino fp32 pruned", 5.0), row("openvino int8+bf16", 4.0)
    assert small.candidate.risk > own.candidate.risk > row("openvino int8", 4.0).candidate.risk
    assert [r.name for r in decide.drop_dominated([small, own], BASELINE, objective="latency")] == [
        "openvino int8+bf16",
        "pruned, openvino fp32",
    ]


def test_for_size_a_smaller_file_goes_on_though_it_is_slower() -> None:
    rows = [BASELINE, row("onnx fp32", 2.0), row("onnx int8", 1.5, num_bytes=25)]
    assert [r.name for r in remaining(decide.drop_dominated(rows, BASELINE, objective="size"))] == [
        "onnx fp32",
        "onnx int8",
    ]


def test_the_fastest_four_are_judged_and_the_surest_first() -> None:
    rows = [row("onnx fp32", 2.0), row("openvino fp32", 2.1, lost=9), row("openvino bf16", 3.0, lost=2)]
    rows += [row("openvino int8", 4.0, lost=5), row("openvino int8+bf16", 5.0, lost=7)]
    decided = decide.finalists_of(rows)
    finalists = remaining(decided)
    assert [r.selected.lost for r in finalists if r.selected] == [2, 5, 7, 9]
    assert reasons(decided)[rows[0].name] == "slower than openvino int8+bf16"
    assert decide.finalists_of([]) == []


def test_the_sequence_stops_at_the_first_variant_that_is_not_proven() -> None:
    rows = [row("onnx fp32", 2.0), row("openvino fp32", 2.1), row("openvino int8", 4.0)]
    lost = {"onnx fp32": 0, "openvino fp32": 40, "openvino int8": 0}
    looked: list[str] = []

    def judge(judged: Result, confidence: float) -> PairedLoss:
        assert confidence == 0.95
        looked.append(judged.name)
        return loss(lost[judged.name])

    decided = decide.certify_in_order(rows, judge, max_drop=0.01)
    assert [r.name for r in decided if r.status is Status.CERTIFIED] == ["onnx fp32"]
    assert looked == ["onnx fp32", "openvino fp32"]
    assert reasons(decided)[rows[2].name] == "not judged: openvino fp32 before it was not proven"


def test_each_network_has_its_share_of_the_chance_to_be_wrong_and_hands_on_what_it_proved() -> None:
    rows = [row("openvino fp32", 2.1), row("openvino int8", 4.0)]
    rows += [row("openvino int8 a", 5.0), row("openvino bf16 b", 5.5), row("openvino int8 b", 6.0)]
    lost = {"openvino fp32": 0, "openvino int8": 0, "a, openvino int8": 40, "b, openvino bf16": 0}
    confidences: dict[str, float] = {}

    def judge(judged: Result, confidence: float) -> PairedLoss:
        confidences[judged.name] = confidence
        return loss(lost.get(judged.name, 0))

    decided = decide.certify_in_order(rows, judge, max_drop=0.01)
    certified = [r for r in decided if r.status is Status.CERTIFIED]
    # what is not proven of one network does not keep another one from being judged
    assert [r.name for r in certified] == ["openvino fp32", "openvino int8", "b, openvino bf16", "b, openvino int8"]
    third = 0.05 / 3
    assert confidences == pytest.approx(
        {
            "openvino fp32": 1 - third,
            "openvino int8": 1 - third,
            "a, openvino int8": 1 - 2 * third,
            "b, openvino bf16": 1 - third,
            "b, openvino int8": 1 - third,
        }
    )


def test_the_own_network_is_judged_whatever_the_others_promise_and_of_each_the_fastest() -> None:
    own = [row("openvino int8", 4.0, lost=9)]
    others = [
        row(f"openvino {variant} {name}", 6.0 + speed)
        for name in "ab"
        for speed, variant in enumerate(("bf16", "int8"))
    ]
    slow, sure = row("openvino fp32 a", 5.0, lost=1), row("openvino fp32 b", 5.0)
    others = [
        dataclasses.replace(other, selected=loss(4 if other.candidate.precision == "int8" else 3)) for other in others
    ]
    decided = decide.finalists_of([slow, sure, *others, *own])
    finalists = remaining(decided)
    # of each of the others the surest and the fastest
    assert [r.name for r in finalists] == [
        "openvino int8",
        "b, openvino fp32",
        "b, openvino int8",
        "a, openvino fp32",
        "a, openvino int8",
    ]
    assert reasons(decided)[others[0].name] == "slower than a, openvino int8"


def test_few_images_say_less_of_a_network_that_answers_otherwise() -> None:
    own, other = (
        dataclasses.replace(judged, selected=loss(10, 6, num_images=184))
        for judged in (row("openvino int8", 4.0), row("openvino int8 a", 4.0))
    )
    # 2.2 points, give or take as many
    assert decide.loses_too_much(own, 0.02)
    assert not decide.loses_too_much(other, 0.02)
    other = dataclasses.replace(other, selected=loss(14, 4, num_images=184))
    assert decide.loses_too_much(other, 0.02)


def test_as_many_images_are_judged_as_should_be_needed_and_all_where_they_are_few() -> None:
    finalists = [row("onnx fp32", 2.0, lost=3), row("openvino int8", 4.0, lost=1)]
    # the square root of three, rounded up, and the three
    needed = images_to_prove(loss(5), 0.02)
    assert needed is not None
    assert decide.images_to_certify(finalists, 0.02, 100_000) == max(1000, 2 * needed)
    assert decide.images_to_certify(finalists, 0.02, 500) == 500
    # more than nothing was lost already: all images may prove it yet
    assert decide.images_to_certify([row("openvino int8", 4.0, lost=30)], 0.02, 5000) == 5000
    assert decide.images_to_certify([], 0.02, 5000) == 5000
    # what was gained by luck may be lost next
    lucky = dataclasses.replace(row("openvino int8", 4.0), selected=loss(20, 24, num_images=2500))
    assert decide.images_to_certify([lucky], 0.005, 10_000) > 6_000


def test_what_wins_is_faster_by_more_than_the_baseline_differs_from_itself() -> None:
    rows = [row("onnx fp32", 1.10), row("openvino fp32", 1.05)]
    assert decide.pick_winner(rows, SURE, objective="latency") is rows[0]
    assert decide.pick_winner(rows, (1.0, 0.90, 1.10), objective="latency") is rows[0]
    # two processes of the baseline that differ for sure
    assert decide.pick_winner(rows, (1.12, 1.08, 1.16), objective="latency") is None
    assert decide.pick_winner([], SURE, objective="latency") is None
    small = row("onnx int8", 1.06, num_bytes=25)
    assert decide.pick_winner([*rows, small], SURE, objective="size") is small


def test_what_was_not_proven_and_the_best_that_was_not_accepted_are_told() -> None:
    failed, slow = row("openvino int8", 4.0, lost=4), row("onnx fp32", 2.0)
    failed = dataclasses.replace(failed, outcome=NOT_PROVEN, certified=loss(4))
    notes = explain([BASELINE, slow, failed], None, (1.05, 1.02, 1.08), 0.005)
    assert "openvino int8: accuracy drop 0.40 points on 1,000 images, upper bound " in notes[0]
    assert "images like these would prove it" in notes[0]
    # of those that are faster the one that may have lost least
    assert notes[1].startswith(
        "the best variant that was not accepted: onnx fp32, 2.00 times as fast, accuracy drop 0.00 points on 1,000"
    )
    assert nearest([BASELINE, failed, row("onnx int8", 0.9)]) is failed
    assert nearest([BASELINE]) is None
    assert "[1.020, 1.080] times as fast as itself: a variant has to be faster by more than that" in notes[2]
    assert explain([BASELINE, slow], slow, SURE, 0.005) == []
    (noisy,) = explain([BASELINE, slow], slow, (0.63, 0.52, 2.49), 0.005)
    assert "0.63 [0.52, 2.49] times as fast as itself" in noisy
    gained = dataclasses.replace(failed, certified=loss(2, 6))
    assert "openvino int8: accuracy gain 0.40 points on 1,000 images" in explain([gained], gained, SURE, 0.0)[0]


@pytest.mark.parametrize(("lost", "expected"), [(40, "no number of images"), (4, "about")])
def test_a_loss_over_the_budget_is_proven_by_no_number_of_images(lost: int, expected: str) -> None:
    failed = row("openvino int8", 4.0, lost=lost)
    failed = dataclasses.replace(failed, outcome=NOT_PROVEN, certified=loss(lost))
    assert expected in explain([failed], failed, SURE, 0.005)[0]


@pytest.mark.parametrize(
    ("aa_test", "noisy"),
    [
        (SURE, False),
        # of one process and another, for sure, but not of anything beside them
        ((1.12, 1.08, 1.16), False),
        ((1.0, 0.8, 1.25), False),
        ((1.0, 0.79, 1.2), True),
        ((1.0, 0.9, 1.26), True),
        ((0.63, 0.52, 2.49), True),
        ((0.14, 0.00, 11.0), True),
        # narrow, and nowhere near 1
        ((1.5, 1.49, 1.51), True),
        ((1.0, None, None), True),
        ((math.nan, math.nan, math.nan), True),
    ],
)
def test_without_a_narrow_control_no_variant_wins_however_fast_it_is(
    aa_test: tuple[float, float | None, float | None], noisy: bool
) -> None:
    fast = row("openvino int8", 4.0)
    assert decide.is_noisy(aa_test) is noisy
    winner = decide.pick_winner([fast], aa_test, objective="latency")
    assert winner is (None if noisy else fast)
    verdict = decide.verdict_of(winner, aa_test, num_processes=5, out_of_time=False)
    assert verdict is (Verdict.NOISY if noisy else Verdict.ACCELERATED)
    assert any("too noisy to decide" in note for note in explain([fast], winner, aa_test, 0.5)) is (
        noisy and aa_test[1] is not None
    )


@pytest.mark.parametrize(
    ("aa_test", "num_processes", "out_of_time", "expected"),
    [
        (None, 0, True, Verdict.UNDECIDED),
        (SURE, 5, True, Verdict.UNDECIDED),
        (SURE, 5, False, Verdict.NOTHING_FASTER),
        # of two processes no interval is narrow: it is the time that was missing
        ((1.0, 0.5, 2.0), 2, True, Verdict.UNDECIDED),
        ((1.0, 0.5, 2.0), 5, True, Verdict.NOISY),
    ],
)
def test_why_nothing_won_is_told_apart(aa_test: Any, num_processes: int, out_of_time: bool, expected: Verdict) -> None:
    assert decide.verdict_of(None, aa_test, num_processes=num_processes, out_of_time=out_of_time) == expected


@pytest.mark.parametrize(
    "ratio", [None, (math.nan, math.nan, math.nan), (math.inf, math.inf, math.inf), (4.0, None, None)]
)
def test_a_variant_without_a_finite_interval_does_not_win(ratio: Any) -> None:
    broken, sound = row("openvino int8", 4.0), row("onnx fp32", 2.0)
    broken = dataclasses.replace(broken, ratio=ratio)
    assert decide.pick_winner([broken, sound], SURE, objective="latency") is sound
    assert decide.pick_winner([broken], SURE, objective="size") is None
    assert [r.name for r in remaining(decide.drop_dominated([BASELINE, sound], BASELINE, objective="latency"))] == [
        "onnx fp32"
    ]


def test_what_there_was_no_time_to_judge_is_not_proven_and_hands_nothing_on() -> None:
    rows = [row("onnx fp32", 2.0), row("openvino int8", 4.0), row("openvino int8 small", 6.0)]
    confidences: list[float] = []

    def judge(judged: Result, confidence: float) -> PairedLoss | None:
        confidences.append(confidence)
        return None if judged.name == "onnx fp32" else loss(0)

    decided = decide.certify_in_order(rows, judge, max_drop=0.01)
    assert [r.name for r in decided if r.status is Status.CERTIFIED] == ["small, openvino int8"]
    assert [r.outcome.reason for r in decided] == ["not judged: out of time"] * 2 + ["certified"]
    assert confidences == pytest.approx([0.975, 0.975])


@pytest.mark.parametrize(("top1", "told"), [(0.1, True), (0.34, True), (0.38, True), (0.45, False)])
def test_a_model_at_chance_is_told(top1: float, told: bool) -> None:
    labels = np.repeat([0, 1, 2], 100)
    # a third, and two standard errors of 300 images: 0.388
    seen = dataclasses.replace(
        row("onnx fp32", 2.0), selected=dataclasses.replace(loss(0, num_images=300), top1_before=top1)
    )
    said = at_chance([seen], labels)
    assert (said is not None) is told
    assert said is None or "at chance level" in said
    assert at_chance([], labels) is None


VARIANTS = [f"{runtime} {precision}" for runtime in ("onnx", "openvino") for precision in ("fp32", "bf16", "int8")]


@pytest.mark.parametrize("seed", range(20))
def test_what_decides_changes_nothing_that_it_is_given_and_loses_no_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"{variant}{network}" for variant in VARIANTS for network in ("", " a", " b") if rng.random() < 0.7]
    rows = [
        row(name, float(rng.uniform(0.5, 6)), lost=int(rng.integers(0, 40)), num_bytes=int(rng.integers(1, 9)))
        for name in names
    ]
    before = copy.deepcopy([BASELINE, *rows])
    objective = str(rng.choice(["latency", "size"]))

    def judge(judged: Result, confidence: float) -> PairedLoss | None:
        return None if rng.random() < 0.1 else judged.selected

    dropped = decide.drop_dominated([BASELINE, *rows], BASELINE, objective=objective)
    compared = [decide.rule_out_inaccurate(one, 0.02) for one in remaining(dropped)]
    finalists = decide.finalists_of(remaining(compared))
    kept = copy.deepcopy((dropped, compared, finalists))
    certified = decide.certify_in_order(remaining(finalists), judge, max_drop=0.02)
    decide.pick_winner(certified, SURE, objective=objective)
    decide.images_to_certify(finalists, 0.02, 5000)
    explain(certified, None, SURE, 0.02)
    assert [BASELINE, *rows] == before
    assert (dropped, compared, finalists) == kept
    # each stage returns the candidates that it was given, and says of each what became of it
    for given, returned in (
        ([BASELINE, *rows], dropped),
        (remaining(compared), finalists),
        (remaining(finalists), certified),
    ):
        assert sorted(one.name for one in given) == sorted(one.name for one in returned)
    assert not remaining(certified)


def test_a_row_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASELINE.num_bytes = 3  # type: ignore[misc]
