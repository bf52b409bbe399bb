"""A short measured trial for what a recipe leaves on "auto"; only what is faster on this machine is switched on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vivace.config import from_dict, to_dict
from vivace.errors import ConfigError
from vivace.files import canonical_json, read_regular, write_json
from vivace.hardware import num_cpus, supported_precisions
from vivace.kernels.winograd import has_winograd
from vivace.measure import Comparison, TimeUp, compare, time_call
from vivace.notices import warn
from vivace.plain import parse_json
from vivace.training.execution import (
    ExecutionConfig,
    Machine,
    candidates_of,
    changes_nothing,
    plain_values,
    trial_batch_size,
)
from vivace.training.recipes.recipe import Recipe
from vivace.training.tuning.receipts import Receipt, Trial

__all__ = ["Receipt", "Trial", "plain_execution", "receipt_path", "stored_receipt", "tune"]

# maximum duration of the trial, as a fraction of the run
MAX_SHARE = 0.1
# the first candidate may take this many times MAX_SHARE: low precision saves a third of the time or more
FIRST_SHARES = 2
# of the interval of a ratio, upper bound over lower bound: 1.1 to 1.8 on an idle machine, 3 to 40 beside another job
MAX_SPREAD = 2.0
# the same for an interval that contains 1: a wider one is undecided
MAX_UNDECIDED_SPREAD = 1.1
# four pairs of equal candidates all have the same sign once in eight times: ignore gains below this
MIN_GAIN = 1.02
# required gain of the fastest steps where the medians are too noisy
MIN_GAIN_NOISY = 1.1
# upper bound of what the first step of a process takes beyond later ones
FIRST_STEP_SECONDS = 2.0
NUM_WARMUP = 1
# a trial that may take as long is said to begin
LONG_SECONDS = 20.0
# a receipt is a few kilobytes
MAX_RECEIPT_BYTES = 1 << 20
# more pairs than the minimum, as long as they take at most PAIRS_SHARE of the run and PAIRS_SECONDS: on a noisy
# machine four pairs have measured 0.6 for a true ratio of 1.2
MAX_PAIRS, PAIRS_SHARE, PAIRS_SECONDS = 10, 0.01, 2.0


def plain_execution(recipe: Recipe) -> ExecutionConfig:
    """The configuration in which everything on "auto" is off: fp32, contiguous, eager, all processors."""
    return ExecutionConfig(**{**plain_values(recipe), "threads": _threads(recipe)})


def _threads(recipe: Recipe) -> int:
    """The threads of the recipe, at most one per processor: more cost memory and are slower."""
    most = num_cpus()
    if recipe.threads == "auto":
        return most
    if recipe.threads > most:
        warn(f"threads is {recipe.threads:,} in the recipe and this process has {most} processors: {most} are used")
    return min(recipe.threads, most)


def receipt_path(cache_dir: Path, facts: dict[str, Any]) -> Path:
    """The file of the receipt for the machine, network and batch that `facts` describes."""
    return cache_dir / "tune" / (hashlib.sha256(canonical_json(facts)).hexdigest()[:20] + ".json")


def stored_receipt(path: Path) -> Receipt | None:
    """The receipt of an earlier run on this machine; None if there is none, or it is damaged."""
    try:
        values = parse_json(read_regular(path, MAX_RECEIPT_BYTES), str(path))
        # its name in receipts of earlier versions
        if isinstance(values, dict) and "setup" in values:
            values = {"execution": values.pop("setup"), **values}
        receipt = from_dict(Receipt, values)
    except (OSError, ValueError, ConfigError):
        return None
    execution = receipt.execution
    # from another machine, or damaged
    if not 1 <= execution.threads <= num_cpus() or (execution.micro_batch_size or 1) < 1:
        return None
    return dataclasses.replace(receipt, source="cached", seconds=0.0)


def tune(
    recipe: Recipe,
    make_step: Callable[[ExecutionConfig], Callable[[], object]],
    *,
    device: torch.device,
    expected_steps: int,
    planned_seconds: float | None = None,
    path: Path | None = None,
    on_message: Callable[[str], None] = lambda message: None,
) -> Receipt:
    """Time the candidates and return the fastest configuration, with its report; the report is stored at `path`.

    make_step(execution) returns a function that makes one training step of `trial_batch_size` images on a copy of the
    network. planned_seconds: the length of the run if a time budget limits it instead of `expected_steps`. A candidate
    is kept if it is faster by MIN_GAIN and the whole interval of its ratio is above 1. Nothing is tried or stored if
    the first candidate would take more than FIRST_SHARES × MAX_SHARE of the run; the least promising candidates are
    left out if all would take more than MAX_SHARE. An undecided candidate is timed again, three times as long, if
    there is time. The trial ends at FIRST_SHARES × MAX_SHARE of the run; what was decided by then counts. on_message is
    told of a trial that may take LONG_SECONDS or more.
    """
    started = time.perf_counter()
    execution = plain_execution(recipe)
    if not _candidates(recipe, execution, device, float("inf")):
        return Receipt(execution=execution, source="skipped")
    best = make_step(execution)
    # the first step of a process takes about a second, and the second one is still slower than later ones
    scale = recipe.batch_size / trial_batch_size(recipe)
    step_ms = time_call(best, device)
    run_seconds = expected_steps * scale * step_ms / 1e3 if planned_seconds is None else planned_seconds
    # a first step that is slower than start-up explains leaves no time for more
    for _ in range(0 if step_ms / 1e3 > max(FIRST_STEP_SECONDS, FIRST_SHARES * MAX_SHARE * run_seconds) else 2):
        step_ms = min(step_ms, time_call(best, device))
        run_seconds = expected_steps * scale * step_ms / 1e3 if planned_seconds is None else planned_seconds
        if _first_seconds(step_ms, run_seconds) > FIRST_SHARES * MAX_SHARE * run_seconds:
            # nothing will be tried, so another step is of no use
            break
    # the start-up cost of the first steps is not counted: without a trial the run itself would pay it
    first_steps_seconds, tried_from = 2 * step_ms / 1e3, time.perf_counter()
    planned = run_seconds
    if (most := FIRST_SHARES * MAX_SHARE * planned) >= LONG_SECONDS:
        on_message(
            f"timing which ways of computing a step are faster takes {most:,.0f} s at most (`tune='off'` leaves it out)"
        )
    trials: list[Trial] = []
    cut_off, asked_at = False, tried_from

    def stop() -> bool:
        nonlocal cut_off, asked_at
        now = time.perf_counter()
        # the next pair probably takes as long as the last one, which may be longer than the first steps
        pair_seconds, asked_at = max(2 * step_ms / 1e3, now - asked_at), now
        spent = now - tried_from + first_steps_seconds
        cut_off = cut_off or spent + pair_seconds > FIRST_SHARES * MAX_SHARE * planned
        return cut_off

    for name, changes in _candidates(recipe, execution, device, run_seconds):
        num_pairs = _num_pairs(step_ms, run_seconds)
        # candidates are in order of expected gain: the last ones are left out if there is no time for all
        budget = MAX_SHARE * planned * (1 if trials else FIRST_SHARES) - first_steps_seconds
        if cut_off or time.perf_counter() - tried_from + _first_seconds(step_ms, run_seconds) > budget:
            break
        candidate = dataclasses.replace(execution, **changes)
        if candidate == execution:
            # already part of an earlier candidate
            continue
        if changes_nothing(candidate, changes):
            continue
        began = time.perf_counter()
        try:
            step = make_step(candidate)
            time_call(step, device)
            asked_at = time.perf_counter()
            cost = asked_at - began
            result = compare(best, step, device, num_pairs=num_pairs, num_warmup=NUM_WARMUP, stop=stop)
            noisy = _is_noisy(result)
            if not cut_off and (noisy or _is_undecided(result)):
                again = 3 * sum(result.baseline_ms + result.candidate_ms) / 1e3
                if time.perf_counter() - tried_from + again <= budget:
                    with contextlib.suppress(TimeUp):
                        result = compare(best, step, device, num_pairs=3 * num_pairs, num_warmup=0, stop=stop)
                noisy = noisy or _is_undecided(result)
        except TimeUp:
            break
        except Exception as error:
            # a missing kernel or a compiler error rules out the candidate and must not end the run
            note = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            trials.append(
                Trial(name=name, ratio=0.0, ratio_low=0.0, ratio_high=0.0, num_pairs=0, kept=False, note=note)
            )
            continue
        saved = run_seconds * (1 - 1 / max(result.ratio, 1e-9))
        fastest = _by_fastest(result)
        faster = (result.faster and result.ratio > MIN_GAIN) or (noisy and fastest > MIN_GAIN_NOISY)
        kept = faster and (not candidate.compile or (result.faster and saved > 2 * cost))
        notes = [f"first step took {cost:.1f} s"] if candidate.compile else []
        notes += [f"noisy: {fastest:.2f} × by the fastest steps"] if noisy else []
        trials.append(
            Trial(
                name=name,
                ratio=result.ratio,
                ratio_low=result.ratio_low,
                ratio_high=result.ratio_high,
                num_pairs=len(result.baseline_ms),
                kept=kept,
                note="; ".join(notes),
            )
        )
        if kept:
            execution, best = candidate, step
            run_seconds /= result.ratio
            step_ms /= result.ratio
    seconds = time.perf_counter() - started
    if not trials:
        return Receipt(execution=execution, seconds=seconds, source="skipped", cut_off=cut_off)
    receipt = Receipt(execution=execution, trials=tuple(trials), seconds=seconds, cut_off=cut_off)
    # store complete and quiet trials only: a run with more time may decide more
    if path is not None and not cut_off and not any("noisy" in trial.note for trial in trials):
        # without a stored receipt the next run measures again
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, to_dict(receipt))
    return receipt


def _first_seconds(step_ms: float, run_seconds: float) -> float:
    """Minimum duration of a candidate: its first step, a warm-up and the pairs."""
    return (1 + 2 * NUM_WARMUP + 2 * _num_pairs(step_ms, run_seconds)) * step_ms / 1e3


def _num_pairs(step_ms: float, run_seconds: float) -> int:
    seconds = min(PAIRS_SHARE * run_seconds, PAIRS_SECONDS)
    return max(4 if step_ms < 200 else 3, min(MAX_PAIRS, int(seconds / (2 * step_ms / 1e3))))


def _is_noisy(result: Comparison) -> bool:
    """Whether an interval is so wide that other work must have distorted the measurement.

    False if the whole interval and the fastest steps agree clearly that the candidate is faster.
    """
    clear = result.faster and _by_fastest(result) > MIN_GAIN_NOISY
    return result.ratio_high > MAX_SPREAD * result.ratio_low and not clear


def _by_fastest(result: Comparison) -> float:
    """The ratio of the fastest steps: other work only adds time, so these are the least noisy."""
    return min(result.baseline_ms) / min(result.candidate_ms)


def _is_undecided(result: Comparison) -> bool:
    """Whether an interval contains 1 and is wide."""
    low, high = result.ratio_low, result.ratio_high
    return low < 1 < high and high > MAX_UNDECIDED_SPREAD * low


def _candidates(
    recipe: Recipe, plain: ExecutionConfig, device: torch.device, run_seconds: float
) -> list[tuple[str, dict[str, Any]]]:
    machine = Machine(
        device=device.type,
        low_precisions=[precision for precision in supported_precisions(device) if precision != "fp32"],
        has_winograd=has_winograd(),
        threads=plain.threads,
        run_seconds=run_seconds,
    )
    return candidates_of(recipe, machine)
