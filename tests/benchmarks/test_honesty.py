"""`benchmarks/honesty.py`: the decisions of a search, and losses on untouched images told for what they are."""

from __future__ import annotations

import numpy as np
import pytest

from honesty import Answers, decision, summary


def answers(**losses: float) -> Answers:
    """A plain model that is right on 90 % of 8,000 images, and forms that lose so much of it."""
    rng = np.random.default_rng(0)
    plain = rng.random(8000) < 0.9
    return Answers(plain, {name: plain & (rng.random(8000) > loss) for name, loss in losses.items()})


def test_the_faster_form_wins_where_both_are_proven_and_only_the_good_one_where_not() -> None:
    given = answers(none=0.0, little=0.004, much=0.08)
    rng = np.random.default_rng(0)
    loose = decision(given, 0.02, rng)
    assert loose["accepted"] == "little"
    assert loose["true_drop"] == pytest.approx(0.0036, abs=0.002)
    assert (loose["exceeds"], loose["surely_exceeds"]) == (False, False)
    strict = decision(given, 0.002, rng)
    assert (strict["accepted"], strict["true_drop"]) == ("none", 0.0)
    assert decision(answers(much=0.08), 0.02, rng) == {"accepted": None}


def test_what_lies_over_the_budget_is_accepted_in_no_more_than_one_search_of_twenty() -> None:
    given = answers(over=0.0125)
    true = float(given.plain_N.mean() - given.forms["over"].mean())
    found = [decision(given, true - 1e-4, np.random.default_rng(seed)) for seed in range(300)]
    told = summary(found)
    # some are: a bound of 95 % that never failed would be too wide
    assert 0 < told["accepted"] <= 0.08 * 300
    assert told["lossy_accepted"] == 0
    assert told["exceed"] <= told["accepted"]
    assert told["largest_true_drop"] > 0


def test_a_loss_that_was_far_over_the_budget_is_sure() -> None:
    given = answers(a=0.05)
    lucky = Answers(given.plain_N, dict(given.forms))

    class Lucky:
        """Puts the images that are lost among the untouched ones."""

        def permutation(self, count: int) -> np.ndarray:
            return np.argsort(lucky.forms["a"] | ~lucky.plain_N, kind="stable")[:count]

    told = decision(lucky, 0.01, Lucky())  # type: ignore[arg-type]
    assert told["accepted"] == "a"
    assert told["exceeds"] is True
    assert told["surely_exceeds"] is True
