"""Smaller networks in a search: timed, raced, trained by distillation, and judged like the other candidates."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import fake_times, run

from vivace.acceleration import candidates as candidates_module
from vivace.acceleration import halving as halving_module
from vivace.acceleration import proposals as proposals_module
from vivace.acceleration import students as students_module
from vivace.acceleration.halving import promoted, race_candidates
from vivace.acceleration.networks import Network, open_network
from vivace.acceleration.proposals import FOR_INT8, propose
from vivace.acceleration.splits import open_splits
from vivace.acceleration.students import epoch_multiplier
from vivace.bundle import Architecture, Bundle, load_bundle, save_bundle
from vivace.compression import prune as prune_module
from vivace.errors import ConfigError, Interrupted, TrainingError
from vivace.evaluation.evaluate import evaluate
from vivace.models.parts import scale_head

MakeFolder = Callable[..., Path]
PRUNED, ZOO = "pruned to 60%", "fast_cnn 32 px, width 8-8"
COSTS = {"eager fp32": 4.0, "onnx fp32": 2.0}


@pytest.fixture
def trained(trained_once: Callable[..., Any]) -> tuple[Bundle, Path]:
    """A bundle, and its data: 40 images a class to train on, as many to test on."""
    bundle, data = trained_once((16, 32))
    return bundle, data


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One float variant, one student of each kind, a few epochs."""
    variants = tuple(v for v in candidates_module.VARIANTS if v.precision == "fp32" and v.runtime in ("eager", "onnx"))
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)
    monkeypatch.setattr(proposals_module, "PRUNED_SHARES", (0.6,))
    drawn = [("fast_cnn", 32, {"widths": [8, 8], "depth": [1, 1], "stride": 2})]
    monkeypatch.setattr(proposals_module, "_drawn", lambda own: drawn)
    monkeypatch.setattr(proposals_module, "FINE_TUNE_EPOCHS", 4)
    monkeypatch.setattr(proposals_module, "SCRATCH_EPOCHS", 4)
    monkeypatch.setattr(students_module, "MAX_EPOCH_MULTIPLIER", 1.0)


@pytest.fixture
def small_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 24 and 16 px count as smaller ones of 32 px; large networks are made for none of them."""
    monkeypatch.setattr(proposals_module, "PUBLISHED", ())
    monkeypatch.setattr(proposals_module, "MIN_SIDE", 16)
    monkeypatch.setattr(proposals_module, "SIDE_STEP", 8)


def names(timed: list[list[str]]) -> list[str]:
    return sorted({name for together in timed for name in together})


def test_half_of_those_that_no_other_beats_stay_in_the_race() -> None:
    speeds = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.5}
    # b is slower than a and no more accurate
    assert promoted(speeds, {"a": 0.7, "b": 0.7, "c": 0.8, "d": 0.9}) == ["d", "c"]
    assert promoted(speeds, {"a": 0.9, "b": 0.7, "c": 0.8, "d": 0.6}) == ["a"]
    assert promoted(speeds, {"a": 0.9}) == ["a"]
    # c and d started from nothing: after a first look they can't be held to what a and b know
    assert promoted(speeds, {"a": 0.9, "b": 0.95, "c": 0.5, "d": 0.6}, {"c", "d"}) == ["b", "d"]
    assert promoted(speeds, {"a": 0.7, "d": 0.3}, {"d"}) == ["a"]


def test_where_a_speed_was_asked_for_the_slowest_that_have_it_are_looked_at() -> None:
    speeds = {"a": 9.0, "b": 3.0, "c": 2.0, "d": 1.5, "e": 5.0, "f": 2.5, "g": 4.0}
    assert race_candidates(speeds, least_speed=1.9, requested=True) == ["c", "f", "b", "g"]
    # from the slowest to the fastest
    assert race_candidates(speeds, least_speed=1.9, requested=False) == ["c", "b", "g", "a"]
    assert race_candidates(speeds, least_speed=4.5, requested=False) == ["e", "a"]
    assert race_candidates({}, least_speed=1.0, requested=True) == []
    # one that starts from published weights is always among them: the slowest of those, in place of its neighbour
    assert race_candidates(speeds, least_speed=1.9, requested=False, published={"f", "e"}) == ["c", "f", "g", "a"]
    assert race_candidates(speeds, least_speed=1.9, requested=False, published={"a", "e"}) == ["c", "b", "g", "a"]
    assert race_candidates(speeds, least_speed=1.9, requested=True, published={"d", "e"}) == ["c", "f", "b", "e"]


def test_of_few_images_a_student_sees_more_epochs(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data = trained
    splits = open_splits(bundle, data)
    # 40 of each of three classes, a tenth of them held out
    assert splits.num_train == 108
    monkeypatch.setattr(students_module, "MAX_EPOCH_MULTIPLIER", 2.5)
    student = propose(bundle, splits, tmp_path / "work")[0]
    assert student.epochs == 4
    assert epoch_multiplier(student, splits.num_train) == 2.5
    assert epoch_multiplier(student, 125_000) == 2.0
    assert epoch_multiplier(student, 1_000_000) == 1.0


def test_students_have_fewer_operations_and_a_recipe_of_their_own(trained: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, data = trained
    students = {s.name: s for s in propose(bundle, open_splits(bundle, data), tmp_path / "work")}
    assert set(students) == {PRUNED, ZOO}
    narrowed = students[PRUNED].bundle.info.architecture.arguments["narrowed"]
    assert students[PRUNED].changes["model.arguments"]["narrowed"] == narrowed
    assert sum(p.numel() for p in students[PRUNED].bundle.build_model().parameters()) < sum(
        p.numel() for p in bundle.build_model().parameters()
    )
    # a second time they are taken as they are
    again = {s.name: s for s in propose(bundle, open_splits(bundle, data), tmp_path / "work")}
    assert again[PRUNED].bundle == students[PRUNED].bundle


def test_students_start_from_answers_that_were_not_calibrated_yet(
    trained: tuple[Bundle, Path], tmp_path: Path, small_sides: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # layers that are timed twice may lose other channels the second time
    monkeypatch.setattr(
        prune_module, "layer_milliseconds", lambda model, images: dict.fromkeys(dict(model.named_modules()), 1.0)
    )
    plain, data = trained
    model = plain.build_model()
    scale_head(model, 4.0)
    info = dataclasses.replace(plain.info, temperature=0.25)
    bundle = save_bundle(tmp_path / "network", model, info)

    def starts(bundle: Bundle, folder: str) -> dict[str, torch.Tensor]:
        students = propose(bundle, open_splits(bundle, data), tmp_path / folder, fake_quant=True)
        assert all(student.bundle.info.temperature is None for student in students)
        return {s.name: s.bundle.build_model().state_dict()["head.weight"] for s in students if s.name != ZOO}

    expected, found = starts(plain, "plain"), starts(bundle, "calibrated")
    assert set(expected) >= {FOR_INT8, PRUNED, "24 px"}
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight)


def test_the_model_itself_and_the_pruned_one_see_smaller_images(
    trained: tuple[Bundle, Path], tmp_path: Path, small_sides: None
) -> None:
    bundle, data = trained
    students = {s.name: s for s in propose(bundle, open_splits(bundle, data), tmp_path / "work")}
    assert {"24 px", "16 px", f"{PRUNED}, 24 px", f"{PRUNED}, 16 px"} <= set(students)
    small = students[f"{PRUNED}, 16 px"]
    assert small.bundle.preprocess.size == small.bundle.info.architecture.size == 16
    # as large as before where it is stored, and with the weights that it had
    assert small.bundle.preprocess.store_size / 16 == bundle.preprocess.store_size / 32
    for name, own in (("16 px", bundle), (f"{PRUNED}, 16 px", students[PRUNED].bundle)):
        before, after = own.build_model().state_dict(), students[name].bundle.build_model().state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert students["16 px"].flops == pytest.approx(0.25, rel=0.1)
    assert small.flops < students[PRUNED].flops


def test_narrower_ones_see_the_next_smaller_size_alone(
    trained: tuple[Bundle, Path], tmp_path: Path, small_sides: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals_module, "PRUNED_SHARES", (0.6, 0.3))
    bundle, data = trained
    students = {s.name: s for s in propose(bundle, open_splits(bundle, data), tmp_path / "work")}
    assert {f"{PRUNED}, 24 px", f"{PRUNED}, 16 px", "pruned to 30%, 24 px"} <= set(students)
    assert "pruned to 30%, 16 px" not in students
    assert students["pruned to 30%, 24 px"].flops < students["pruned to 30%"].flops


def test_photos_get_networks_for_smaller_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    drawn = proposals_module._drawn(Architecture(name="timm/resnet18", num_classes=5, size=224))
    assert [size for _, size, _ in drawn] == [224, 160, 128, 96]
    small = proposals_module._drawn(Architecture(name="fast_cnn", num_classes=5, size=32))
    assert {(name, size) for name, size, _ in small} == {("fast_cnn", 32)}


def test_a_smaller_network_that_is_faster_is_trained_and_wins(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {f"{PRUNED} untrained, onnx fp32": 1.0, f"{PRUNED}, onnx fp32": 1.0}
    asked = fake_times(monkeypatch, COSTS | costs | {f"{ZOO} untrained, onnx fp32": 1.95})
    result = run(trained, tmp_path, max_drop=45.0, train="on")
    assert result.accelerated
    # the other one would hardly be faster than the model's own network: it was not trained
    assert f"{ZOO}, onnx fp32" not in names(asked)
    won = load_bundle(result.bundle)
    assert won.info.architecture.arguments["narrowed"]
    assert won.info.recipe["distill"]["teacher"] == str(trained[0].folder)
    assert won.info.recipe["name"] == "fast"
    # the test split was looked at by the certificate alone
    assert set(won.info.metrics) == {"test"}
    assert evaluate(won, trained[1]).top1 == pytest.approx(result.top1_after)
    receipt = json.loads((won.folder / "receipt.json").read_text())
    rows = {row["name"]: row for row in receipt["rows"]}
    assert receipt["winner"] == f"{PRUNED}, onnx fp32"
    assert rows[receipt["winner"]]["network"] == PRUNED
    # untrained networks were there to be timed: they are no variants of the result
    assert not any("untrained" in name for name in rows)
    # of what was built on the way, what took time to learn is kept for the next search
    (work,) = tmp_path.glob(".fast*")
    assert [path.name for path in work.iterdir()] == ["networks"]
    assert [path.name for path in (work / "networks").iterdir()] == ["runs"]
    assert [path.name for path in (work / "networks" / "runs" / "no limit").iterdir()] == [f"{PRUNED} whole"]


def test_where_int8_loses_too_much_the_model_trains_for_it(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = (*candidates_module.VARIANTS, candidates_module.Variant("openvino", "int8", ("openvino", "nncf")))
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)
    monkeypatch.setattr(proposals_module, "_pruned", lambda *_: [])
    monkeypatch.setattr(proposals_module, "_drawn", lambda _: [])
    costs = {"openvino int8": 1.0, f"{FOR_INT8} untrained, openvino int8": 1.0, f"{FOR_INT8}, openvino int8": 1.0}
    fake_times(monkeypatch, COSTS | costs)
    own_probs = Network.probs

    def spoilt(self: Network, candidate: Any, images: Any) -> Any:
        """Whatever post-training quantization of the model's own network answers is wrong."""
        probs = own_probs(self, candidate, images)
        return 1 - probs if candidate is not None and candidate.name.startswith("openvino int8") else probs

    monkeypatch.setattr(Network, "probs", spoilt)
    seen: list[Any] = []
    plain = halving_module.train_student

    def watched(student: Any, *arguments: Any, **options: Any) -> Bundle:
        seen.append((student.name, options["answers"]))
        return plain(student, *arguments, **options)

    monkeypatch.setattr(halving_module, "train_student", watched)
    result = run(trained, tmp_path, max_drop=45.0, train="on")
    assert result.receipt["winner"] == f"{FOR_INT8}, openvino int8"
    recipe = load_bundle(result.bundle).info.recipe
    assert recipe["fake_quant"] is True
    # the fastest variant that agrees with the model was its teacher, not the one that was spoilt
    assert [name for name, _ in seen] == [FOR_INT8]
    images = open_splits(*trained).select
    answers = seen[0][1](images.pixels())
    assert answers == pytest.approx(own_probs(open_own(trained, tmp_path), None, images), abs=1e-3)


def open_own(trained: tuple[Bundle, Path], tmp_path: Path) -> Network:
    return open_network("", *trained, tmp_path / "own", cache_dir=None, on_bad_image="refuse")


def test_a_speed_up_that_is_asked_for_decides_whether_anything_is_trained(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_times(monkeypatch, COSTS)
    assert run(trained, tmp_path, max_drop=45.0, target_speedup=1.5).target_reached
    assert run(trained, tmp_path, max_drop=45.0, target_speedup=9.0, train="off").target_reached is False
    assert not any("untrained" in name for name in names(asked))
    assert run(trained, tmp_path, max_drop=45.0, target_speedup=9.0).target_reached is False
    assert any("untrained" in name for name in names(asked))


def test_training_that_fails_or_was_done_before(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = {f"{name} untrained, onnx fp32": cost for name, cost in ((PRUNED, 1.0), (ZOO, 0.5))}
    fake_times(monkeypatch, COSTS | fast | {f"{PRUNED}, onnx fp32": 1.0, f"{ZOO}, onnx fp32": 0.5})
    runs: list[str] = []
    plain = halving_module.train_student

    def stops(student: Any, teacher: Any, data: Any, path: Path, **options: Any) -> Bundle:
        runs.append(path.name)
        if student.name == ZOO:
            raise TrainingError("the loss is NaN")
        bundle = plain(student, teacher, data, path, **options)
        if path.name == f"{PRUNED} whole":
            raise KeyboardInterrupt
        return bundle

    with monkeypatch.context() as patch:
        patch.setattr(halving_module, "train_student", stops)
        with pytest.raises(KeyboardInterrupt):
            run(trained, tmp_path, max_drop=45.0, train="on")
    assert runs == [f"{PRUNED} race", f"{ZOO} race", f"{PRUNED} whole"]

    def again(*_: Any, **options: Any) -> Any:
        raise TrainingError("it was trained a second time")

    monkeypatch.setattr(students_module, "train", again)
    result = run(trained, tmp_path, max_drop=45.0, train="on")
    assert result.receipt["winner"] == f"{PRUNED}, onnx fp32"


def test_a_signal_while_a_student_trains_names_the_command_that_goes_on(
    trained: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, COSTS | {f"{PRUNED} untrained, onnx fp32": 1.0})

    def stopped(*_: Any, **__: Any) -> Any:
        raise Interrupted("stopped by SIGTERM after step 3; go on with --resume", signal_number=signal.SIGTERM)

    monkeypatch.setattr(students_module, "train", stopped)
    with pytest.raises(Interrupted, match=f"SIGTERM while {PRUNED} was trained; the same command continues") as raised:
        run(trained, tmp_path, max_drop=45.0, train="on")
    assert raised.value.exit_status == 143


def test_an_unknown_choice_is_refused(trained: tuple[Bundle, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train is unknown: got 'yes'"):
        run(trained, tmp_path, train="yes")
