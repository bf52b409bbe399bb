"""The measured trial: only what is faster is switched on, and the receipt says so."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from same_weights import assert_same_weights

from vivace import measure
from vivace.files import write_json
from vivace.measure import Comparison
from vivace.training import execution as execution_module
from vivace.training import run as session_module
from vivace.training.execution import ExecutionConfig, trial_batch_size
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.tuning import tune as tune_module
from vivace.training.tuning.tune import Receipt, Trial, plain_execution, receipt_path, stored_receipt, tune

RunTiny = Callable[..., TrainResult]
CPU = torch.device("cpu")
RECIPE = Recipe(batch_size=64, threads=1)
# of all candidates bf16 alone
ONLY_BF16 = dataclasses.replace(
    RECIPE, channels_last=False, compile=False, tile_gradients=False, winograd=False, fuse_norms=False
)


def always_says(result: Comparison, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every comparison gives `result`; the number of pairs that each was asked for is put into the list returned."""
    asked: list[int] = []

    def compare(*arguments: Any, num_pairs: int, **options: Any) -> Comparison:
        asked.append(num_pairs)
        return result

    monkeypatch.setattr(tune_module, "compare", compare)
    return asked


def sleeper(milliseconds: Callable[[ExecutionConfig], float]) -> Callable[[ExecutionConfig], Callable[[], object]]:
    """make_step for steps that take so long for a configuration."""
    return lambda execution: lambda: CLOCK.sleep(milliseconds(execution) / 1e3)


class Clock:
    """A clock that goes on when a step says so, and a microsecond each time that it is read."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def bf16_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine of the tests computes in bf16, and its steps take the time that they say."""
    for module in (tune_module, measure):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=CLOCK.perf_counter))
    monkeypatch.setattr(tune_module, "supported_precisions", lambda device: ("fp32", "bf16"))
    monkeypatch.setattr(tune_module, "has_winograd", lambda: False)


def names_kept(receipt: Receipt) -> dict[str, bool]:
    return {trial.name: trial.kept for trial in receipt.trials}


def test_what_is_faster_is_kept_and_measured_against_the_best_so_far() -> None:
    def cost(execution: ExecutionConfig) -> float:
        return 30.0 / (2 if execution.precision == "bf16" else 1) / (1.5 if execution.channels_last else 1)

    receipt = tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000)
    assert receipt.source == "measured"
    assert (receipt.execution.precision, receipt.execution.channels_last) == ("bf16", True)
    ratios = {trial.name: trial.ratio for trial in receipt.trials}
    # what came with the first is not tried again
    assert not {"bf16", "channels_last"} & ratios.keys()
    assert ratios["bf16, channels_last"] == pytest.approx(3.0, rel=0.2)
    assert all(trial.ratio_low <= trial.ratio <= trial.ratio_high for trial in receipt.trials)


def test_what_is_slower_is_left_off() -> None:
    def cost(execution: ExecutionConfig) -> float:
        return 6.0 * (1.5 if execution.precision == "bf16" else 1) * (1.3 if execution.channels_last else 1)

    receipt = tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000)
    assert receipt.execution == plain_execution(RECIPE)
    assert names_kept(receipt) == {"bf16, channels_last": False, "bf16": False, "channels_last": False}


def test_what_pays_only_alone_is_kept_alone() -> None:
    def cost(execution: ExecutionConfig) -> float:
        return 12.0 / (2 if execution.precision == "bf16" else 1) * (3 if execution.channels_last else 1)

    receipt = tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000)
    assert (receipt.execution.precision, receipt.execution.channels_last) == ("bf16", False)
    kept = {name for name, is_kept in names_kept(receipt).items() if is_kept}
    assert kept == {"bf16"}


def test_a_gain_that_noise_could_explain_is_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = Comparison((5.0, 7.0), (4.9, 6.8), ratio=1.03, ratio_low=0.9, ratio_high=1.2)
    monkeypatch.setattr(tune_module, "compare", lambda *args, **options: noisy)
    receipt = tune(RECIPE, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000)
    assert receipt.execution == plain_execution(RECIPE)


def test_a_gain_too_small_for_four_pairs_to_tell_is_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    by_chance = Comparison((10.02, 10.01), (10.0, 10.0), ratio=1.0015, ratio_low=1.001, ratio_high=1.002)
    monkeypatch.setattr(tune_module, "compare", lambda *args, **options: by_chance)
    receipt = tune(RECIPE, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000)
    assert receipt.execution == plain_execution(RECIPE)


def test_a_candidate_that_fails_is_told_and_costs_only_itself() -> None:
    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        def step() -> None:
            CLOCK.sleep(0.006)
            if execution.precision == "bf16":
                raise RuntimeError("could not create a primitive\nat line 3")

        return step

    receipt = tune(RECIPE, make_step, device=CPU, expected_steps=10_000)
    assert receipt.execution.precision == "fp32"
    failed = next(trial for trial in receipt.trials if trial.name == "bf16")
    assert (failed.kept, failed.note) == (False, "RuntimeError: could not create a primitive")


def test_a_candidate_that_fails_only_later_is_told_as_well() -> None:
    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        calls = iter(range(100))

        def step() -> None:
            CLOCK.sleep(0.003)
            if execution.channels_last and next(calls) == 3:
                raise MemoryError("out of memory")

        return step

    receipt = tune(RECIPE, make_step, device=CPU, expected_steps=10_000)
    failed = next(trial for trial in receipt.trials if trial.name == "channels_last")
    assert (failed.kept, failed.note) == (False, "MemoryError: out of memory")
    assert not receipt.execution.channels_last


def test_an_interrupt_is_no_failure_of_a_candidate() -> None:
    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        def step() -> None:
            if execution.channels_last:
                raise KeyboardInterrupt

        return step

    with pytest.raises(KeyboardInterrupt):
        tune(RECIPE, make_step, device=CPU, expected_steps=1_000_000)


@pytest.mark.parametrize(("milliseconds", "said"), [(50.0, True), (1.0, False)])
def test_a_long_trial_is_said_to_begin(milliseconds: float, said: bool) -> None:
    plain = plain_execution(RECIPE)

    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        def step() -> None:
            if execution != plain:
                raise KeyboardInterrupt
            CLOCK.sleep(milliseconds / 1e3)

        return step

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        # of 500 s, and of 10
        tune(RECIPE, make_step, device=CPU, expected_steps=10_000, on_message=lines.append)
    assert len(lines) == said
    assert all(line.startswith("timing which ways of computing a step are faster takes ") for line in lines)


def test_what_the_recipe_fixes_is_not_tried() -> None:
    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        raise AssertionError("a step was made")

    fixed = dataclasses.replace(RECIPE, precision="fp32", channels_last=True, compile=False)
    receipt = tune(fixed, make_step, device=CPU, expected_steps=10_000)
    assert receipt.trials == ()
    assert receipt.execution == ExecutionConfig(precision="fp32", channels_last=True, threads=1)
    halved = dataclasses.replace(RECIPE, channels_last=True)
    receipt = tune(halved, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000)
    assert names_kept(receipt).keys() == {"bf16"}
    assert receipt.execution.channels_last


def test_every_kind_of_candidate_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_module, "COMPILE_MIN_SECONDS", {"cpu": 0.0})
    monkeypatch.setattr(tune_module, "num_cpus", lambda: 4)
    recipe = Recipe(batch_size=2048)
    assert trial_batch_size(recipe) == 256
    tried: list[ExecutionConfig] = []

    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        tried.append(execution)
        return lambda: CLOCK.sleep(0.001)

    receipt = tune(recipe, make_step, device=CPU, expected_steps=10_000)
    names = ["bf16, channels_last", "bf16", "channels_last", "2 threads", "micro-batches of 128", "compile"]
    assert list(names_kept(receipt)) == names
    assert tried[0] == ExecutionConfig(threads=4)
    assert [execution.threads for execution in tried].count(2) >= 1


def test_a_run_too_short_to_earn_a_trial_back_is_not_tried() -> None:
    receipt = tune(RECIPE, sleeper(lambda execution: 1.0), device=CPU, expected_steps=20)
    assert (receipt.source, receipt.trials) == ("skipped", ())
    assert receipt.execution == plain_execution(RECIPE)


@pytest.mark.parametrize("milliseconds", [2.0, 5.0])
def test_a_trial_takes_no_more_than_its_share_of_the_run(milliseconds: float) -> None:
    taken = 0

    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        def step() -> None:
            nonlocal taken
            taken += 1
            CLOCK.sleep(milliseconds / 1e3)

        return step

    lengths = [50, 100, 200, 400, 500, 1000]
    sources = []
    for num_steps in lengths:
        taken = 0
        receipt = tune(RECIPE, make_step, device=CPU, expected_steps=num_steps)
        sources.append(receipt.source)
        # three steps are what it takes to find that out; the first candidate alone may take twice its share
        shares = tune_module.FIRST_SHARES if len(receipt.trials) == 1 else 1
        assert taken <= max(3, shares * tune_module.MAX_SHARE * num_steps + 1)
    assert sources[0] == "skipped"
    assert sources[-1] == "measured"


def test_what_the_first_step_of_a_process_costs_leaves_no_candidate_out() -> None:
    first = True

    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        def step() -> None:
            nonlocal first
            CLOCK.sleep(0.5 if first else 0.002 if execution.precision == "bf16" else 0.004)
            first = False

        return step

    receipt = tune(RECIPE, make_step, device=CPU, expected_steps=1, planned_seconds=1.0)
    assert receipt.execution.precision == "bf16"


def test_where_a_time_is_planned_the_trial_takes_its_share_of_that() -> None:
    step = sleeper(lambda execution: 5.0)
    short = tune(RECIPE, step, device=CPU, expected_steps=1_000_000, planned_seconds=0.3)
    assert (short.source, short.trials) == ("skipped", ())
    # a candidate takes 11 steps: one fits into a tenth of a second, the most promising
    some = tune(RECIPE, step, device=CPU, expected_steps=1_000_000, planned_seconds=1.0)
    assert [trial.name for trial in some.trials] == ["bf16, channels_last"]
    long = tune(RECIPE, step, device=CPU, expected_steps=1, planned_seconds=60.0)
    assert long.source == "measured"


@pytest.mark.parametrize("planned_seconds", [120.0, None])
@pytest.mark.parametrize("slow_from", [1, 4, 5, 7, 9])
def test_a_trial_whose_steps_turn_out_slow_is_cut_off(
    tmp_path: Path, planned_seconds: float | None, slow_from: int
) -> None:
    began, taken = CLOCK.now, 0

    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        def step() -> None:
            nonlocal taken
            taken += 1
            CLOCK.sleep((8.0 if taken >= slow_from else 0.5) / (2 if execution.precision == "bf16" else 1))

        return step

    recipe = dataclasses.replace(RECIPE, batch_size=64)
    steps = 240 if slow_from > 1 else 15
    receipt = tune(
        recipe, make_step, device=CPU, expected_steps=steps, planned_seconds=planned_seconds, path=tmp_path / "r.json"
    )
    # a fifth of the run, the first step of the process apart; to the end it would have taken 48 s
    assert CLOCK.now - began <= 0.2 * 120 + 8.0
    assert not (tmp_path / "r.json").exists()
    if slow_from == 1:
        # known before anything is tried
        assert (taken, receipt.source, receipt.cut_off) == (2, "skipped", False)
    else:
        assert receipt.cut_off
        assert "cut off: it may take a fifth of the run" in receipt.summary()


def test_a_first_step_that_takes_the_trial_s_whole_share_is_the_last() -> None:
    taken = []

    def step() -> None:
        taken.append(CLOCK.now)
        CLOCK.sleep(7.0)

    receipt = tune(RECIPE, lambda execution: step, device=CPU, expected_steps=1, planned_seconds=25.0)
    assert (len(taken), receipt.source, receipt.execution) == (1, "skipped", plain_execution(RECIPE))


def test_a_trial_that_is_cut_off_keeps_what_was_decided() -> None:
    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        seconds = {("fp32", False): 0.2, ("bf16", True): 0.1}.get((execution.precision, execution.channels_last), 30.0)
        slow = execution.tile_gradients or execution.fuse_norms
        return lambda: CLOCK.sleep(30.0 if slow else seconds)

    receipt = tune(RECIPE, make_step, device=CPU, expected_steps=1, planned_seconds=60.0)
    assert (receipt.execution.precision, receipt.execution.channels_last, receipt.cut_off) == ("bf16", True, True)
    assert names_kept(receipt) == {"bf16, channels_last": True}


@pytest.mark.parametrize(("field", "name"), [("tile_gradients", "tiled gradients"), ("fuse_norms", "fused norms")])
def test_kernels_for_bf16_are_tried_where_it_was_kept_and_only_there(field: str, name: str) -> None:
    def cost(execution: ExecutionConfig) -> float:
        return 10.0 / (2 if execution.precision == "bf16" else 1) / (1.5 if getattr(execution, field) else 1)

    receipt = tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000)
    assert getattr(receipt.execution, field)
    assert name in receipt.summary()
    slow = tune(RECIPE, sleeper(lambda execution: 10.0), device=CPU, expected_steps=10_000)
    assert name not in names_kept(slow)


def test_winograd_is_tried_where_the_machine_has_it_and_takes_the_place_of_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost = lambda execution: 10.0 / (2 if execution.precision == "bf16" else 1) / (1.5 if execution.winograd else 1)  # noqa: E731
    assert "Winograd convolutions" not in names_kept(tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000))
    monkeypatch.setattr(tune_module, "has_winograd", lambda: True)
    receipt = tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000)
    assert receipt.execution.winograd
    assert "Winograd convolutions" in receipt.summary()
    assert "tiled gradients" not in names_kept(receipt)
    slow = tune(RECIPE, sleeper(lambda execution: 10.0), device=CPU, expected_steps=10_000)
    assert "Winograd convolutions" not in names_kept(slow), "it is for bf16"
    in_fp16 = dataclasses.replace(RECIPE, precision="fp16")
    receipt = tune(in_fp16, sleeper(cost), device=CPU, expected_steps=10_000)
    assert "Winograd convolutions" not in names_kept(receipt), "and not for fp16"
    assert "tiled gradients" in names_kept(receipt)


def test_compiling_must_save_more_than_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_module, "COMPILE_MIN_SECONDS", {"cpu": 0.0})
    recipe = dataclasses.replace(RECIPE, precision="fp32", channels_last=False)

    def make_step(execution: ExecutionConfig) -> Callable[[], object]:
        first = True

        def step() -> None:
            nonlocal first
            if execution.compile and first:
                CLOCK.sleep(0.6)
            first = False
            CLOCK.sleep(compiled if execution.compile else 0.004)

        return step

    compiled = 0.002
    # 2,000 steps of 4 ms save 4 s by compiling: more than twice the 0.6 s
    long = tune(recipe, make_step, device=CPU, expected_steps=2_000)
    assert long.execution.compile
    # of steps of 3.5 ms as many save 1 s: not enough, although each is faster
    compiled = 0.0035
    short = tune(recipe, make_step, device=CPU, expected_steps=2_000)
    assert not short.execution.compile
    assert short.trials[0].ratio_low > 1
    assert short.trials[0].note.startswith("first step took 0.")


def test_a_run_too_short_for_a_compiler_does_not_try_it() -> None:
    fixed = dataclasses.replace(RECIPE, precision="fp32")
    receipt = tune(fixed, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000)
    assert names_kept(receipt).keys() == {"channels_last"}
    fixed = dataclasses.replace(fixed, channels_last=False)
    assert tune(fixed, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000).source == "skipped"


def test_the_summary_tells_the_execution_and_what_it_gained() -> None:
    kept = Trial(name="bf16", ratio=2.0, ratio_low=1.8, ratio_high=2.2, num_pairs=4, kept=True)
    lost = dataclasses.replace(kept, name="channels_last", ratio=0.5, kept=False)
    execution = ExecutionConfig(precision="bf16", threads=2, micro_batch_size=128)
    receipt = Receipt(execution=execution, trials=(kept, lost), seconds=1.25)
    assert receipt.summary() == (
        "bf16, contiguous, eager, 2 threads, micro-batches of 128 (2.00 × plain fp32 eager; measured, 1.2 s)"
    )
    off = Receipt(execution=ExecutionConfig(channels_last=True, compile=True), source="off")
    assert off.summary() == "fp32, channels_last, compiled, 1 threads (not measured)"


def test_a_receipt_is_kept_for_the_machine_and_its_questions(tmp_path: Path) -> None:
    path = receipt_path(tmp_path, {"device": "a", "model": "b"})
    assert path != receipt_path(tmp_path, {"device": "a", "model": "c"})
    receipt = tune(RECIPE, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000, path=path)
    stored = stored_receipt(path)
    assert stored is not None
    assert stored == dataclasses.replace(receipt, source="cached", seconds=0.0)
    for damaged in ("{}", "", "[]", '{"execution": {"precision": "fp12"}}', '{"execution": {}, "trials": 3}'):
        path.write_text(damaged)
        assert stored_receipt(path) is None
    for changes in ({"threads": 4096}, {"threads": 0}, {"threads": "x"}, {"micro_batch_size": -1}):
        write_json(path, {"execution": changes})
        assert stored_receipt(path) is None
    # the name in receipts of earlier versions
    for name in ("execution", "setup"):
        write_json(path, {name: {"precision": "bf16", "threads": 1}})
        stored = stored_receipt(path)
        assert stored is not None
        assert stored.execution.precision == "bf16"
    path.unlink()
    os.mkfifo(path)
    assert stored_receipt(path) is None
    assert stored_receipt(tmp_path / "none.json") is None


def test_more_threads_than_processors_are_not_started_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_module, "num_cpus", lambda: 2)
    assert plain_execution(Recipe(threads=2)).threads == 2
    assert capsys.readouterr().err == ""
    assert plain_execution(Recipe(threads=4096)).threads == 2
    assert (
        capsys.readouterr().err == "warning: threads is 4,096 in the recipe and this process has 2 processors: "
        "2 are used\n"
    )


def test_a_receipt_that_can_not_be_kept_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "tune").write_text("a file where the folder should be")
    path = receipt_path(tmp_path, {"device": "a"})
    assert (
        tune(RECIPE, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000, path=path).source == "measured"
    )


def test_a_trial_leaves_no_trace_in_the_weights(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "MAX_SHARE", 1e9)
    slower = Comparison((5.0, 5.0), (7.0, 7.0), ratio=5 / 7, ratio_low=0.7, ratio_high=0.8)

    def compare(baseline: Callable[[], object], candidate: Callable[[], object], *args: Any, **options: Any) -> Any:
        # both sides train, as they do when they are timed
        baseline()
        candidate()
        return slower

    monkeypatch.setattr(tune_module, "compare", compare)
    auto: dict[str, Any] = {"precision": "auto", "channels_last": "auto"}
    tried, plain = run_tiny("tried", auto, tune=True), run_tiny("plain", auto, tune=False)
    assert len(json.loads((tried.run / "tune.json").read_text())["trials"]) == 3
    assert_same_weights(tried, plain)


def test_a_run_measures_once_and_the_next_one_believes_the_receipt(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    # so that the tiny run is thought long enough
    monkeypatch.setattr(tune_module, "MAX_SHARE", 1e9)
    auto: dict[str, Any] = {"precision": "auto", "channels_last": "auto"}
    first = run_tiny("first", auto, tune=True)
    second = run_tiny("second", auto, tune=True)
    receipts = [json.loads((result.run / "tune.json").read_text()) for result in (first, second)]
    assert [receipt["source"] for receipt in receipts] == ["measured", "cached"]
    assert receipts[0]["execution"] == receipts[1]["execution"]
    recipe = (first.run / "recipe.yaml").read_text()
    # nothing is left to be decided: the recipe of the run reproduces it
    assert "auto" not in recipe.replace("on_bad_image: auto", "").replace("trains: auto", "").replace(
        "runtime: auto", ""
    )
    assert len(list((own_cache / "tune").glob("*.json"))) == 1
    # another machine: another receipt
    monkeypatch.setattr(session_module, "device_name", lambda device: "another processor")
    third = run_tiny("third", auto, tune=True)
    assert json.loads((third.run / "tune.json").read_text())["source"] == "measured"
    assert len(list((own_cache / "tune").glob("*.json"))) == 2


def test_switched_off_nothing_is_tried(run_tiny: RunTiny, own_cache: Path) -> None:
    result = run_tiny(changes={"precision": "auto", "compile": "auto"}, tune=False)
    receipt = json.loads((result.run / "tune.json").read_text())
    assert (receipt["source"], receipt["trials"]) == ("off", [])
    assert receipt["execution"]["precision"] == "fp32"
    assert not (own_cache / "tune").exists()


@pytest.mark.parametrize(("fastest", "kept"), [(4.0, True), (4.9, False)])
@pytest.mark.parametrize(("low", "high"), [(0.1, 2.5), (0.7, 1.07)])
def test_beside_another_job_the_fastest_steps_decide_and_the_receipt_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: float, high: float, fastest: float, kept: bool
) -> None:
    noisy = Comparison((5.0, 50.0), (40.0, fastest), ratio=0.9, ratio_low=low, ratio_high=high)
    monkeypatch.setattr(tune_module, "MAX_SPREAD", 2.0)
    monkeypatch.setattr(tune_module, "MAX_UNDECIDED_SPREAD", 1.25)
    asked = always_says(noisy, monkeypatch)
    path = tmp_path / "receipt.json"
    receipt = tune(ONLY_BF16, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000, path=path)
    # once more, and longer
    assert asked == [10, 30]
    assert (receipt.execution.precision == "bf16") is kept
    assert receipt.trials[0].note == f"noisy: {5 / fastest:.2f} × by the fastest steps"
    assert not path.exists()


def test_a_wide_interval_above_1_is_believed_where_the_fastest_steps_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Comparison((50.0, 90.0), (20.0, 30.0), ratio=2.5, ratio_low=1.2, ratio_high=4.0)
    asked = always_says(wide, monkeypatch)
    path = tmp_path / "receipt.json"
    receipt = tune(ONLY_BF16, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000, path=path)
    assert asked == [10]
    assert receipt.execution.precision == "bf16"
    assert receipt.trials[0].note == ""
    assert path.exists()


def test_an_interval_that_tells_nothing_is_measured_again_and_the_second_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [
        Comparison((5.0, 5.0), (4.0, 7.0), ratio=0.9, ratio_low=0.7, ratio_high=1.2),
        Comparison((5.0, 5.0), (4.0, 4.0), ratio=1.25, ratio_low=1.2, ratio_high=1.3),
    ]
    monkeypatch.setattr(tune_module, "MAX_UNDECIDED_SPREAD", 1.25)
    monkeypatch.setattr(tune_module, "compare", lambda *args, **options: results.pop(0))
    path = tmp_path / "receipt.json"
    receipt = tune(ONLY_BF16, sleeper(lambda execution: 1.0), device=CPU, expected_steps=10_000, path=path)
    assert not results
    assert receipt.execution.precision == "bf16"
    assert receipt.trials[0].note == ""
    assert path.exists()


def test_it_is_measured_again_only_within_the_share_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1.2 s, once more 3.6 s: a fifth of a run of 10 s, the share of the first candidate, does not hold them
    undecided = Comparison((200.0, 200.0), (400.0, 400.0), ratio=0.9, ratio_low=0.7, ratio_high=1.2)
    monkeypatch.setattr(tune_module, "MAX_UNDECIDED_SPREAD", 1.25)
    asked = always_says(undecided, monkeypatch)
    step = sleeper(lambda execution: 1.0)
    tune(ONLY_BF16, step, device=CPU, expected_steps=1, planned_seconds=10.0)
    assert asked == [10]
    tune(ONLY_BF16, step, device=CPU, expected_steps=1, planned_seconds=30.0)
    assert asked == [10, 10, 30]
