"""Runs on data of one's own: as on files, and resumed with the same object alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import Killed, die_after
from same_weights import assert_same_weights
from torchvision.datasets import ImageFolder

import vivace
from conftest import TINY
from own import Pairs, pairs_of, square_arrays
from vivace.cli import main
from vivace.config import override
from vivace.errors import CheckpointError, ConfigError, DataError, Interrupted
from vivace.training.folder.continuing import resume_call
from vivace.training.loop.engine import Engine
from vivace.training.result import TrainResult

MakeFolder = Callable[..., Path]
CLASSES = ["blue", "green", "red"]


def run_on(data: Any, run: Path, **options: Any) -> TrainResult:
    recipe = {} if options.get("resume") else {"recipe": TINY}
    return vivace.train(data, run=run, tune=False, quiet=True, **{**recipe, **options})


@pytest.fixture
def pairs(make_folder: MakeFolder) -> list[Any]:
    return pairs_of(make_folder())


def test_a_data_set_is_trained_to_the_weights_of_its_files(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(splits=("train", "val", "test"))
    files = run_on(root, tmp_path / "files")
    parts = {name: Pairs(pairs_of(root / name), CLASSES) for name in ("train", "val", "test")}
    own = run_on(parts, tmp_path / "own")
    assert_same_weights(files, own)
    assert own.test_top1 == files.test_top1
    folder = run_on({name: ImageFolder(root / name) for name in parts}, tmp_path / "folder")
    assert_same_weights(files, folder)


def test_arrays_are_trained_evaluated_audited_and_verified(pairs: list[Any], tmp_path: Path) -> None:
    images, labels = square_arrays(pairs, side=24)
    names = np.array(CLASSES)[labels]
    data = {"train": (images, names), "test": (images[::2] // 2, names[::2])}
    result = run_on(data, tmp_path / "run")
    assert result.num_images_seen == 3 * 18
    evaluation = vivace.evaluate(result.bundle, data)
    assert (evaluation.split, evaluation.data, evaluation.num_images_trained_on) == ("test", "numpy-arrays", 0)
    assert evaluation.metrics.top1 == result.test_top1
    found = vivace.audit(data)
    assert (found.data, found.num_images, found.refusal) == ("numpy-arrays", 36, None)
    assert vivace.verify(result.bundle, data=data).images == "numpy-arrays, test"
    assert vivace.profile(result.bundle, data, calls=2).layers


def test_images_that_were_trained_on_are_known_again_in_another_object(pairs: list[Any], tmp_path: Path) -> None:
    dataset = Pairs(pairs, CLASSES)
    result = run_on(dataset, tmp_path / "run")
    held_out = vivace.evaluate(result.bundle, dataset)
    assert (held_out.split, held_out.num_images_left_out) == ("held out", 18)
    as_arrays = Pairs([(np.asarray(image), CLASSES[label]) for image, label in pairs])
    assert vivace.evaluate(result.bundle, as_arrays).num_images_left_out == 18


def test_copies_contradictions_and_leaks_are_found_and_left_out_is_written(pairs: list[Any], tmp_path: Path) -> None:
    many = [(np.roll(np.asarray(image), shift, axis=0), label) for shift in range(4) for image, label in pairs]
    train, val = [*many[:80], many[0], (many[1][0], 1)], [*many[80:], many[7]]
    data = {"train": Pairs(train, CLASSES), "val": Pairs(val, CLASSES)}
    kinds = {finding.kind: finding.names for finding in vivace.audit(data).findings}
    assert kinds["duplicate"] == ("train:train/000000", "train:train/000080")
    assert kinds["contradiction"] == ("train:train/000001", "train:train/000081")
    assert kinds["leak"] == ("train:train/000007",)
    result = run_on(data, tmp_path / "run")
    rows = (result.run / "left_out.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [
        ["train", "train/000001", "contradiction"],
        ["train", "train/000081", "contradiction"],
        ["train", "train/000007", "leak"],
    ]


@pytest.mark.parametrize("step", [1, 6])
def test_a_killed_run_is_resumed_bitwise_with_the_same_data(
    pairs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    unbroken = run_on(Pairs(pairs, CLASSES), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        die_after(patch, step)
        with pytest.raises(Killed):
            run_on(Pairs(pairs, CLASSES), tmp_path / "killed")
    again = Pairs([(image.copy(), label) for image, label in pairs], CLASSES)
    assert_same_weights(unbroken, run_on(again, tmp_path / "killed", resume=True))


def test_a_run_is_not_resumed_with_other_data(pairs: list[Any], tmp_path: Path) -> None:
    images, labels = square_arrays(pairs)
    run_on((images, labels), tmp_path / "run")
    other = images.copy()
    other[5] //= 2
    for changed in ((other, labels), (images[:-1], labels[:-1]), (images, (labels + 1) % 3)):
        with pytest.raises(CheckpointError, match="can't be resumed with other data"):
            run_on(changed, tmp_path / "run", resume=True, epochs=4)
    assert run_on((images, labels), tmp_path / "run", resume=True, epochs=4).epochs == 4


def test_a_run_on_some_files_of_a_folder_is_not_resumed_with_others(make_folder: MakeFolder, tmp_path: Path) -> None:
    from torch.utils.data import Subset

    whole = ImageFolder(make_folder())
    run_on(Subset(whole, range(24)), tmp_path / "run")
    with pytest.raises(CheckpointError, match="can't be resumed with other data"):
        run_on(Subset(whole, range(1, 24)), tmp_path / "run", resume=True, epochs=4)


def test_resuming_with_data_that_can_not_be_read_says_so(pairs: list[Any], tmp_path: Path) -> None:
    run_on(Pairs(pairs, CLASSES), tmp_path / "run")
    with pytest.raises(DataError, match="the data set is empty: got Pairs-dataset"):
        run_on(Pairs([], CLASSES), tmp_path / "run", resume=True)


def test_a_stopped_run_says_the_call_that_resumes_it(
    pairs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Engine, *_: Any) -> None:
        raise Interrupted("stopped; continue it with `resume=True`", signal_number=2)

    monkeypatch.setattr(Engine, "_after_step", stopped)
    with pytest.raises(Interrupted) as caught:
        run_on(Pairs(pairs, CLASSES), tmp_path / "run")
    assert f"`vivace.train(data, resume=True, run={str(tmp_path / 'run')!r})`" in str(caught.value)


def test_the_call_has_the_options_that_open_an_object() -> None:
    data = vivace.Data(Pairs([]), label_column="what")
    assert resume_call(data, Path("runs/1")) == (
        "`vivace.train(vivace.Data(data, label_column='what'), resume=True, run='runs/1')`"
    )


def test_records_hold_a_name_and_a_fingerprint_and_no_contents(pairs: list[Any], tmp_path: Path) -> None:
    result = run_on(Pairs(pairs, CLASSES), tmp_path / "run")
    facts = json.loads((result.run / "run.json").read_text())["data"]
    assert facts["name"] == "Pairs-dataset"
    assert facts["place"] is None
    assert (len(facts["fingerprint"]), facts["num_images"]) == (64, 24)
    info = json.loads((result.bundle / "bundle.json").read_text())
    assert "object at 0x" not in json.dumps(info)


def test_a_run_whose_object_is_gone_is_continued_by_its_name_from_the_cache(
    pairs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = run_on(Pairs(pairs, CLASSES), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_on(Pairs(pairs, CLASSES), tmp_path / "run")
    assert main(["train", "Pairs-dataset", "--resume", "--run", str(tmp_path / "run"), "--tune", "off", "--quiet"]) == 0
    assert "the data can't be opened any more" in capsys.readouterr().err
    weights = [path / "bundle" / "model.safetensors" for path in (tmp_path / "run", unbroken.run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_comparing_runs_on_an_object_asks_for_it(pairs: list[Any], tmp_path: Path) -> None:
    dataset = Pairs(pairs, CLASSES)
    one = run_on(dataset, tmp_path / "one")
    other = run_on(dataset, tmp_path / "other", overrides={"seed": 1})
    with pytest.raises(ConfigError, match=r"trained on Pairs-dataset, an object of a Python program, .* Give `data`"):
        vivace.compare(one.run, other.run)
    assert vivace.compare(one.run, other.run, dataset, split="all").num_images == 24


def test_the_folder_of_a_run_on_an_object_needs_no_quotes(
    pairs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = vivace.train(square_arrays(pairs), override(TINY, {"epochs": 1}), tune=False, quiet=True)
    assert result.run.name.startswith("numpy-arrays-tiny")
    resumed = vivace.train(square_arrays(pairs), resume=True, epochs=2, tune=False, quiet=True)
    assert resumed.run.resolve() == result.run.resolve()


def test_what_is_left_out_of_an_object_is_said(
    pairs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"train": Pairs(pairs, [*CLASSES, "white"]), "val": Pairs([(pairs[0][0].rotate(90), "blue")])}
    result = run_on(data, tmp_path / "run")
    assert "left out 1 class without an image: white" in result.warnings
    assert "val has no images of green, red, so it gives no metrics for them" in result.warnings
    assert "data: 3 classes (blue … red), 24 train, 1 val" in capsys.readouterr().err
