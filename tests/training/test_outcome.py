"""Runs that learnt nothing, were too short, went back, or missed time or target say so; good ones say nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from scipy.stats import binomtest

from vivace.training.outcome import Outcome, outcome_warnings

GOOD = Outcome(
    epochs=10.0,
    num_train=900,
    num_images_seen=9000,
    num_right=90,
    num_val=100,
    num_val_commonest=50,
    commonest="cat",
    within_seconds=60.0,
    total_seconds=60.5,
    target=0.9,
    target_reached=True,
)


def warned(**changes: Any) -> tuple[str, ...]:
    return outcome_warnings(dataclasses.replace(GOOD, **changes))


def test_a_run_that_went_as_it_should_warns_of_nothing() -> None:
    assert warned() == ()
    assert warned(within_seconds=None, target=None, target_reached=False, total_seconds=1e6) == ()


@pytest.mark.parametrize(("num_val", "commonest"), [(100, 50), (100, 10), (1000, 970), (12, 4), (20_000, 200)])
def test_validation_at_chance_is_told_by_a_binomial_test(num_val: int, commonest: int) -> None:
    for num_right in range(0, num_val, max(1, num_val // 200)):
        chance = binomtest(num_right, num_val, commonest / num_val, alternative="greater").pvalue
        told = warned(num_right=num_right, num_val=num_val, num_val_commonest=commonest, target=None)
        assert bool(told) == (chance > 0.05), (num_right, chance)


def test_the_warning_tells_what_the_commonest_class_alone_would_give() -> None:
    (told,) = warned(num_right=52)
    assert told.startswith("the network may have learnt nothing: 52 of 100 validation images are right (52.0 %), ")
    assert "always answering 'cat' gives 50.0 % (p = 0.38)" in told
    assert len(warned(num_right=52, commonest="c" * 1000)[0]) < 400


def test_a_run_without_epochs_is_not_advised_on_its_learning_rate() -> None:
    (told,) = warned(num_right=52, epochs=0)
    assert told.endswith("Look at the labels, or give more time or `epochs` to train more than the head.")
    (told,) = warned(num_right=52)
    assert told.endswith("Look at the learning rate, the length of the run and the labels.")


@pytest.mark.parametrize(("num_val", "commonest", "chance"), [(2, 1, "0.25"), (31, 30, "0.36"), (1, 1, "1")])
def test_all_right_is_told_too_where_chance_gives_as_much(num_val: int, commonest: int, chance: str) -> None:
    (told,) = warned(num_right=num_val, num_val=num_val, num_val_commonest=commonest)
    assert told.startswith(f"validation can't tell whether the network has learnt anything: all {num_val} images are ")
    assert f"(p = {chance}). Hold out more images" in told
    assert warned(num_right=12, num_val=12, num_val_commonest=6) == ()


def test_less_than_an_epoch_is_told() -> None:
    (told,) = warned(epochs=0.19, num_images_seen=171)
    assert told == ("the run ended after 0.19 epochs: it has seen 171 of 900 training images. Give it more time.")
    assert warned(epochs=1.0) == ()


def test_a_missed_budget_is_told_beyond_five_percent() -> None:
    (told,) = warned(within_seconds=1.0, total_seconds=124.72)
    assert told.startswith("the time budget was missed: 124.7 s of 1 s (12,472 %)")
    assert "of which 104.7 s were starting, reading the data and saving. Give more time" in warned(
        within_seconds=1.0, total_seconds=124.72, train_seconds=20.0
    )[0].replace("  ", " ")
    assert warned(total_seconds=62.9) == ()
    assert len(warned(total_seconds=63.1)) == 1


def test_a_missed_budget_of_a_run_that_got_no_processor_says_so() -> None:
    (told,) = warned(within_seconds=60.0, total_seconds=203.0, cpu_seconds=21.0)
    assert "A processor worked for it in only 21.0 s: other programs or the disk took the rest. Give" in told
    (told,) = warned(within_seconds=60.0, total_seconds=203.0, cpu_seconds=390.0)
    assert "processor" not in told


def test_a_missed_target_is_told() -> None:
    assert warned(target_reached=False, num_right=85) == (
        "the target was not reached: validation ended at 0.85, the target is 0.9",
    )
    # the saved bundle may be an image behind what the last validation saw, in another precision
    assert warned(target_reached=False, target_seen=True, num_right=89) == (
        "the target was not reached: the saved bundle is at 0.89, the target is 0.9, though a validation during "
        "training reached it",
    )


def test_going_back_is_told() -> None:
    (told,) = warned(num_rollbacks=2, lr_scale=0.25)
    assert told == "the run went back 2 × after NaN or Inf: its learning rate ended at 0.25 of what was asked for"
