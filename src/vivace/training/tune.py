"""A short measured trial that resolves what a recipe leaves on "auto"; nothing is switched on that did not pay here."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
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
from vivace.training.receipts import Receipt, Trial
from vivace.training.recipe import Recipe
from vivace.training.step import Setup

__all__ = ["Receipt", "Trial", "plain_setup", "receipt_path", "stored_receipt", "trial_batch_size", "tune"]

# what a trial may cost, as a share of the run that it speeds up
MAX_SHARE = 0.1
# the first candidate saves a third and more where the hardware has the arithmetic for it: so many times that is its due
FIRST_SHARES = 2
# upper over lower bound of a ratio's interval; on an idle machine 1.1 to 1.8, beside another job 3 to 40
MAX_SPREAD = 2.0
# … of an interval that holds 1: what is wider tells neither that a candidate is faster nor that it is not
MAX_UNDECIDED_SPREAD = 1.1
# four pairs of equals all point the same way once in eight times, by a few thousandths: no reason to switch anything on
MIN_GAIN = 1.02
# by how much the fastest steps must be faster to be believed where the medians can't be
MIN_GAIN_DISTURBED = 1.1
# what the first step of a process takes beyond others, and somewhat more
FIRST_STEP_SECONDS = 2.0
NUM_WARMUP = 1
# a receipt is a few kilobytes
MAX_RECEIPT_BYTES = 1 << 20
# pairs beyond the first few, as long as those of a candidate take no more than a share of the run and so many seconds:
# where the speed of a machine changes from second to second, four have said 0.6 of what is 1.2
MAX_PAIRS, PAIRS_SHARE, PAIRS_SECONDS = 10, 0.01, 2.0
# a compiler takes from half a minute to minutes: below this length of a run it is not even tried
COMPILE_MIN_SECONDS = {"cpu": 1800.0, "cuda": 600.0}
# ghost batches of this size and more do not hurt batch norm (arXiv:1705.08741)
MIN_MICRO_BATCH = 128


def plain_setup(recipe: Recipe) -> Setup:
    """The setup in which everything on "auto" is off: fp32, contiguous, eager, all processors."""
    return Setup(
        precision="fp32" if recipe.precision == "auto" else recipe.precision,
        channels_last=recipe.channels_last is True,
        compile=recipe.compile is True,
        tile_gradients=recipe.tile_gradients is True,
        winograd=recipe.winograd is True,
        fuse_norms=recipe.fuse_norms is True,
        threads=_threads(recipe),
        micro_batch_size=recipe.micro_batch_size,
    )


def _threads(recipe: Recipe) -> int:
    """Threads as the recipe asks for, up to one per processor: each more costs memory, and makes all slower."""
    most = num_cpus()
    if recipe.threads == "auto":
        return most
    if recipe.threads > most:
        warn(f"threads is {recipe.threads:,} in the recipe and this process has {most} processors: {most} are used")
    return min(recipe.threads, most)


def trial_batch_size(recipe: Recipe) -> int:
    """Images per timed step: an eighth of the batch tells the same ratio at an eighth of the cost."""
    return min(recipe.batch_size, max(64, recipe.batch_size // 8))


def receipt_path(cache_dir: Path, facts: dict[str, Any]) -> Path:
    """Where the receipt for a machine, network and batch is kept; `facts` names them."""
    return cache_dir / "tune" / (hashlib.sha256(canonical_json(facts)).hexdigest()[:20] + ".json")


def stored_receipt(path: Path) -> Receipt | None:
    """The receipt of an earlier run on this machine, or None; a damaged one counts as none."""
    try:
        receipt = from_dict(Receipt, parse_json(read_regular(path, MAX_RECEIPT_BYTES), str(path)))
    except (OSError, ValueError, ConfigError):
        return None
    setup = receipt.setup
    # of another machine, or damaged
    if not 1 <= setup.threads <= num_cpus() or (setup.micro_batch_size or 1) < 1:
        return None
    return dataclasses.replace(receipt, source="cached", seconds=0.0)


def tune(
    recipe: Recipe,
    make_step: Callable[[Setup], Callable[[], object]],
    *,
    device: torch.device,
    expected_steps: int,
    planned_seconds: float | None = None,
    path: Path | None = None,
) -> Receipt:
    """Time the candidates and return the fastest setup, with its receipt; the receipt is stored at `path`.

    make_step(setup) gives a function that makes one training step of `trial_batch_size` images on a copy of the
    network. planned_seconds: the length of the run where a time decides it rather than `expected_steps`. A candidate
    is kept only if it is faster by MIN_GAIN and the whole interval of its ratio lies above 1. Nothing is tried, and
    nothing stored, where the first candidate would take more than FIRST_SHARES times MAX_SHARE of the run; the least
    promising ones are left out where all would take more than MAX_SHARE. What says neither faster nor slower is timed
    once more, three times as long, where that share allows. Steps may turn out slower than the first ones: the trial
    is cut off at FIRST_SHARES times MAX_SHARE of the run, and what was decided by then is what counts.
    """
    started = time.perf_counter()
    setup = plain_setup(recipe)
    if not _candidates(recipe, setup, device, float("inf")):
        return Receipt(setup=setup, source="skipped")
    best = make_step(setup)
    # the first step of a process takes a second or so, the second one is not yet as fast as those that follow
    scale = recipe.batch_size / trial_batch_size(recipe)
    step_ms = time_call(best, device)
    run_seconds = expected_steps * scale * step_ms / 1e3 if planned_seconds is None else planned_seconds
    # a first step that is slow beyond what a process needs to start leaves no time for others
    for _ in range(0 if step_ms / 1e3 > max(FIRST_STEP_SECONDS, FIRST_SHARES * MAX_SHARE * run_seconds) else 2):
        step_ms = min(step_ms, time_call(best, device))
        run_seconds = expected_steps * scale * step_ms / 1e3 if planned_seconds is None else planned_seconds
        if _first_seconds(step_ms, run_seconds) > FIRST_SHARES * MAX_SHARE * run_seconds:
            # nothing will be tried: another step would tell nothing
            break
    # what the first steps of a process cost beyond others, a second or so, the run would have had to pay itself
    first_steps_seconds, tried_from = 2 * step_ms / 1e3, time.perf_counter()
    planned = run_seconds
    trials: list[Trial] = []
    cut_off, asked_at = False, tried_from

    def stop() -> bool:
        nonlocal cut_off, asked_at
        now = time.perf_counter()
        # the next pair takes as long as the last one, which may be much longer than the first steps told
        pair_seconds, asked_at = max(2 * step_ms / 1e3, now - asked_at), now
        spent = now - tried_from + first_steps_seconds
        cut_off = cut_off or spent + pair_seconds > FIRST_SHARES * MAX_SHARE * planned
        return cut_off

    for name, changes in _candidates(recipe, setup, device, run_seconds):
        num_pairs = _num_pairs(step_ms, run_seconds)
        # the first ones save most: the last are left out where all would cost more than their share
        budget = MAX_SHARE * planned * (1 if trials else FIRST_SHARES) - first_steps_seconds
        if cut_off or time.perf_counter() - tried_from + _first_seconds(step_ms, run_seconds) > budget:
            break
        candidate = dataclasses.replace(setup, **changes)
        if candidate == setup:
            # it came with an earlier one
            continue
        if _changes_nothing(candidate, changes):
            continue
        began = time.perf_counter()
        try:
            step = make_step(candidate)
            time_call(step, device)
            asked_at = time.perf_counter()
            cost = asked_at - began
            result = compare(best, step, device, num_pairs=num_pairs, num_warmup=NUM_WARMUP, stop=stop)
            disturbed = _is_disturbed(result)
            if not cut_off and (disturbed or _is_undecided(result)):
                again = 3 * sum(result.baseline_ms + result.candidate_ms) / 1e3
                if time.perf_counter() - tried_from + again <= budget:
                    with contextlib.suppress(TimeUp):
                        result = compare(best, step, device, num_pairs=3 * num_pairs, num_warmup=0, stop=stop)
                disturbed = disturbed or _is_undecided(result)
        except TimeUp:
            break
        except Exception as error:
            # a kernel that is missing or a compiler that fails costs this candidate, never the run
            note = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            trials.append(
                Trial(name=name, ratio=0.0, ratio_low=0.0, ratio_high=0.0, num_pairs=0, kept=False, note=note)
            )
            continue
        saved = run_seconds * (1 - 1 / max(result.ratio, 1e-9))
        fastest = _by_fastest(result)
        faster = (result.faster and result.ratio > MIN_GAIN) or (disturbed and fastest > MIN_GAIN_DISTURBED)
        kept = faster and (not candidate.compile or (result.faster and saved > 2 * cost))
        notes = [f"first step took {cost:.1f} s"] if candidate.compile else []
        notes += [f"disturbed: {fastest:.2f} × by the fastest steps"] if disturbed else []
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
            setup, best = candidate, step
            run_seconds /= result.ratio
            step_ms /= result.ratio
    seconds = time.perf_counter() - started
    if not trials:
        return Receipt(setup=setup, seconds=seconds, source="skipped", cut_off=cut_off)
    receipt = Receipt(setup=setup, trials=tuple(trials), seconds=seconds, cut_off=cut_off)
    # a run with more time may decide more
    if path is not None and not cut_off and not any("disturbed" in trial.note for trial in trials):
        # a receipt that can't be kept is measured again
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, to_dict(receipt))
    return receipt


def _changes_nothing(candidate: Setup, changes: Mapping[str, Any]) -> bool:
    if "tile_gradients" in changes and candidate.winograd:
        # it has taken the convolutions
        return True
    low_alone = {"tile_gradients", "winograd", "fuse_norms"} & set(changes)
    return bool(low_alone) and (
        candidate.precision == "fp32" or ("winograd" in changes and candidate.precision != "bf16")
    )


def _first_seconds(step_ms: float, run_seconds: float) -> float:
    """What a candidate takes at least: its first step, a warm-up and the pairs."""
    return (1 + 2 * NUM_WARMUP + 2 * _num_pairs(step_ms, run_seconds)) * step_ms / 1e3


def _num_pairs(step_ms: float, run_seconds: float) -> int:
    seconds = min(PAIRS_SHARE * run_seconds, PAIRS_SECONDS)
    return max(4 if step_ms < 200 else 3, min(MAX_PAIRS, int(seconds / (2 * step_ms / 1e3))))


def _is_disturbed(result: Comparison) -> bool:
    """Whether an interval is so wide that something else was running: believed today, it would be wrong tomorrow.

    Not where all of it says the same, and the fastest steps say it clearly: then it matters to nothing.
    """
    clear = result.faster and _by_fastest(result) > MIN_GAIN_DISTURBED
    return result.ratio_high > MAX_SPREAD * result.ratio_low and not clear


def _by_fastest(result: Comparison) -> float:
    """The ratio of the fastest steps: what else runs only ever adds time, so these are the least disturbed."""
    return min(result.baseline_ms) / min(result.candidate_ms)


def _is_undecided(result: Comparison) -> bool:
    """Whether an interval holds 1 and much else besides."""
    low, high = result.ratio_low, result.ratio_high
    return low < 1 < high and high > MAX_UNDECIDED_SPREAD * low


def _candidates(
    recipe: Recipe, plain: Setup, device: torch.device, run_seconds: float
) -> list[tuple[str, dict[str, Any]]]:
    candidates: list[tuple[str, dict[str, Any]]] = []
    low: list[str] = []
    if recipe.precision == "auto":
        low = [precision for precision in supported_precisions(device) if precision != "fp32"]
        if low:
            if recipe.channels_last == "auto":
                # both at once: low precision gains little where every convolution reorders its images first
                candidates.append((f"{low[0]}, channels_last", {"precision": low[0], "channels_last": True}))
            # bf16 before fp16: as fast, and it needs no loss scaling
            candidates.append((low[0], {"precision": low[0]}))
    if device.type == "cpu" and (low or recipe.precision in ("bf16", "fp16")):
        if recipe.winograd == "auto" and has_winograd():
            candidates.append(("Winograd convolutions", {"winograd": True}))
        if recipe.tile_gradients == "auto":
            candidates.append(("tiled gradients", {"tile_gradients": True}))
        if recipe.fuse_norms == "auto":
            # behind the convolutions: the faster these, the larger the share of norms
            candidates.append(("fused norms", {"fuse_norms": True}))
    if recipe.channels_last == "auto":
        candidates.append(("channels_last", {"channels_last": True}))
    if recipe.threads == "auto" and device.type == "cpu" and plain.threads >= 4:
        candidates.append((f"{plain.threads // 2} threads", {"threads": plain.threads // 2}))
    if recipe.micro_batch_size is None and trial_batch_size(recipe) >= 2 * MIN_MICRO_BATCH and device.type == "cpu":
        half = trial_batch_size(recipe) // 2
        candidates.append((f"micro-batches of {half}", {"micro_batch_size": half}))
    if (
        recipe.compile == "auto"
        and not recipe.fake_quant
        and run_seconds > COMPILE_MIN_SECONDS.get(device.type, float("inf"))
    ):
        candidates.append(("compile", {"compile": True}))
    return candidates
