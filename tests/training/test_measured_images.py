"""Evaluating a run's bundle on the images that it was trained on is never called a test (fault 71)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from answers import last_answer
from vivace.bundle import load_bundle
from vivace.cli import main
from vivace.data.caching.cache import open_cache
from vivace.data.sources import open_source
from vivace.errors import DataError
from vivace.evaluation.evaluate import evaluate
from vivace.exporting.parity import verify
from vivace.training.loop.arrays import prepare_data
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]
MakeFolder = Callable[..., Path]


@pytest.fixture
def data(make_folder: MakeFolder) -> Path:
    return make_folder("noise")


@pytest.fixture
def trained(run_tiny: RunTiny, data: Path) -> TrainResult:
    """18 of 24 images are trained on, 6 held out."""
    return run_tiny(data=data)


def test_of_data_without_splits_the_held_out_part_is_measured(trained: TrainResult, data: Path) -> None:
    result = evaluate(trained.bundle, data, device="cpu")
    assert (result.split, result.metrics.num_images) == ("held out", 6)
    assert (result.num_images_trained_on, result.num_images_left_out) == (0, 18)
    # the very images that training held out
    from vivace.training.folder.runfolder import RunFolder

    folder = RunFolder(trained.run, resume=True)
    recipe = folder.saved_recipe()
    folder.release()
    cache = open_cache(open_source(data), load_bundle(trained.bundle).preprocess)
    held_out = prepare_data(cache, recipe).val_indices
    assert held_out is not None
    assert trained.val_top1 == pytest.approx(result.top1)
    names = {cache.splits["train"].names[index] for index in held_out}
    assert {mistake.name for mistake in result.mistakes} <= names


def test_all_of_them_are_measured_when_asked_for_and_told(trained: TrainResult, data: Path) -> None:
    result = evaluate(trained.bundle, data, split="all", device="cpu")
    assert (result.split, result.metrics.num_images, result.num_images_trained_on) == ("all", 24, 18)
    assert [mistake.index for mistake in result.mistakes] == [
        sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png")).index(mistake.name)
        for mistake in result.mistakes
    ]


def test_only_images_that_were_trained_on_are_measured_and_told(
    trained: TrainResult, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = load_bundle(trained.bundle).trained_on()
    assert seen is not None
    cache = open_cache(open_source(data), load_bundle(trained.bundle).preprocess)
    split = cache.splits["train"]
    for name, known in zip(split.names, seen.among(split.digests_N), strict=True):
        if known:
            # under another name, in another place
            target = tmp_path / "copies" / name.replace(".png", "-copy.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / name, target)
    assert main(["evaluate", str(trained.run), str(tmp_path / "copies"), "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("copies, split all: 18 images, all of which were trained on, fp32\n")


def test_new_images_are_a_test(trained: TrainResult, make_folder: MakeFolder, data: Path) -> None:
    fresh = make_folder("fresh", per_class=2)
    for path in sorted(fresh.rglob("*.png")):
        Image.effect_noise((20, 20), 90).convert("RGB").save(path)
    result = evaluate(trained.bundle, fresh, device="cpu")
    assert (result.split, result.metrics.num_images) == ("all", 6)
    assert (result.num_images_trained_on, result.num_images_left_out) == (0, 0)


def test_a_split_of_its_own_is_measured_whole_and_what_leaked_into_it_is_counted(
    trained: TrainResult, make_folder: MakeFolder, data: Path
) -> None:
    split = make_folder("split", per_class=4, splits=("train", "test"))
    for path in sorted(split.rglob("*.png")):
        Image.effect_noise((20, 20), 90).convert("RGB").save(path)
    assert evaluate(trained.bundle, split, device="cpu").num_images_trained_on == 0
    for path in sorted((data / "red").iterdir()):
        shutil.copy(path, split / "test" / "red" / f"leaked-{path.name}")
    result = evaluate(trained.bundle, split, device="cpu")
    # two of the eight were held out
    assert (result.split, result.metrics.num_images, result.num_images_trained_on) == ("test", 20, 6)
    with pytest.raises(DataError, match=r"there is no split 'all' in split\..* It has train, test"):
        evaluate(trained.bundle, split, split="all", device="cpu")


def test_the_command_tells_what_was_measured(
    trained: TrainResult, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(trained.run), str(data), "--device", "cpu", "--quiet"]
    assert main(arguments) == 0
    assert (
        "noise, held out: 6 images; 18 others were trained on (--split train or all measures" in capsys.readouterr().out
    )
    assert main([*arguments, "--split", "all"]) == 0
    assert "noise, split all: 24 images, of which 18 were trained on, fp32" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    printed = last_answer(capsys.readouterr().out)
    assert (printed["num_images_trained_on"], printed["num_images_left_out"], printed["split"]) == (0, 18, "held out")


@pytest.mark.parametrize("as_table", [False, True])
def test_data_without_splits_have_no_test_split(
    trained: TrainResult, data: Path, capsys: pytest.CaptureFixture[str], as_table: bool
) -> None:
    if as_table:
        rows = [f"{path.relative_to(data)},{path.parent.name}" for path in data.rglob("*.png")]
        (data / "noise.csv").write_text("\n".join(["file_name,label", *rows]))
        data /= "noise.csv"
    with pytest.raises(
        DataError, match=r"no test split in noise, or any other .* Give `split='all'` .*, val .* held out"
    ):
        evaluate(trained.bundle, data, split="test", device="cpu")
    held_out = evaluate(trained.bundle, data, split="val", device="cpu")
    assert held_out.to_dict().items() >= {"split": "held out", "num_images": 6, "num_images_trained_on": 0}.items()
    assert held_out.top1 == pytest.approx(trained.val_top1)
    train = evaluate(trained.bundle, data, split="train", device="cpu")
    assert (train.split, train.metrics.num_images, train.num_images_trained_on) == ("train", 18, 18)
    assert main(["evaluate", str(trained.run), str(data), "--split", "train", "--device", "cpu", "--quiet"]) == 0
    assert "noise, split train: 18 images, all of which were trained on, fp32" in capsys.readouterr().out


def test_images_of_other_data_are_neither_trained_on_nor_held_out(
    trained: TrainResult, make_folder: MakeFolder
) -> None:
    fresh = make_folder("fresh", per_class=2)
    for path in sorted(fresh.rglob("*.png")):
        Image.effect_noise((20, 20), 90).convert("RGB").save(path)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"no image of fresh was trained on, .* Give `split='all'`\."):
            evaluate(trained.bundle, fresh, split=split, device="cpu")


def test_where_validation_images_were_held_out_of_train_they_are_the_val_split(
    run_tiny: RunTiny, make_folder: MakeFolder
) -> None:
    data = make_folder("parted", splits=("train", "test"))
    for path in sorted(data.rglob("*.png")):
        Image.effect_noise((20, 20), 90).convert("RGB").save(path)
    trained = run_tiny(data=data)
    result = evaluate(trained.bundle, data, split="val", device="cpu")
    assert (result.split, result.num_images_trained_on) == ("held out", 0)
    assert result.top1 == pytest.approx(trained.val_top1)


def test_images_compared_on_are_no_test_split_where_there_is_none(trained: TrainResult, data: Path) -> None:
    parity = verify(trained.bundle, data=data)
    assert parity.images == "noise"
    assert "24 images of noise are finite" in parity.summary()


def test_a_bundle_that_does_not_tell_says_so(
    trained: TrainResult, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vivace.bundle import save_bundle

    bundle = load_bundle(trained.bundle)
    old = save_bundle(tmp_path / "old", bundle.build_model(), bundle.info)
    assert evaluate(old, data, device="cpu").num_images_trained_on is None
    assert main(["evaluate", str(tmp_path / "old"), str(data), "--device", "cpu", "--quiet"]) == 0
    assert "unknown: which of these the bundle was trained on" in capsys.readouterr().out


def test_images_of_other_classes_are_told_in_the_result(trained: TrainResult, data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    (other / "green").rename(other / "violet")
    result = evaluate(trained.bundle, other, split="all", device="cpu")
    expected = "left out 8 images whose classes are not in the bundle: violet"
    assert expected in result.warnings
    assert expected in result.to_dict()["warnings"]
    assert evaluate(trained.bundle, data, split="all", device="cpu").warnings == ()
