"""Evaluation: the metrics are those of the network on these very images, and what can't be measured is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from answers import last_answer
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.cli import main
from vivace.data.place import Data
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, DataError
from vivace.evaluation.evaluate import evaluate
from vivace.evaluation.mistakes import NUM_MISTAKES
from vivace.evaluation.tta import averaged_probs
from vivace.metrics.summary import evaluate_probs
from vivace.models.zoo import create_model
from vivace.prediction import Predictor
from vivace.uncertainty.scores import Answers


def make_bundle(folder: Path, classes: Sequence[str]) -> Bundle:
    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=len(classes)),
        classes=tuple(classes),
        preprocess=Preprocess(size=32, store_size=36),
    )
    return save_bundle(folder, create_model("simple_cnn", len(classes), size=32), info)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """An untrained network for the three colours of `make_folder`."""
    return make_bundle(tmp_path / "bundle", ("blue", "green", "red"))


def test_metrics_are_those_of_the_files(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    """Decoded once more, one by one, without a cache."""
    folder = make_folder(per_class=5)
    result = evaluate(bundle, folder, device="cpu", batch_size=4)
    files = sorted(folder.rglob("*.png"))
    pixels = np.stack([bundle.preprocess.load(path) for path in files])
    labels = np.array([bundle.classes.index(path.parent.name) for path in files])
    probs = Predictor(bundle, device="cpu", batch_size=4).probs(pixels)
    assert result.metrics == evaluate_probs(probs, labels, bundle.classes)
    assert result.top1 == result.metrics.top1


def test_with_test_time_augmentation_the_metrics_are_those_of_averaged_answers(
    bundle: Bundle, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(per_class=5)
    pixels = np.stack([bundle.preprocess.load(path) for path in sorted(folder.rglob("*.png"))])
    labels = np.repeat(np.arange(3), 5)
    answers = averaged_probs(Predictor(bundle, device="cpu").probs, pixels, "mirror")
    result = evaluate(bundle, folder, device="cpu", tta="mirror")
    assert result.metrics.nll == pytest.approx(evaluate_probs(answers, labels, bundle.classes).nll, rel=1e-4)
    assert main(["evaluate", str(bundle.folder), str(folder), "--tta", "mirror", "--quiet"]) == 0
    assert "test-time augmentation: mirror" in capsys.readouterr().out


def test_only_the_least_sure_share_gets_other_views(
    bundle: Bundle,
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_folder(per_class=5)
    predictor = Predictor(bundle, device="cpu", batch_size=4)
    asked: list[int] = []
    answered = predictor._answered

    def counting(pixels: np.ndarray, *, more: bool) -> Answers:
        asked.append(len(pixels))
        return answered(pixels, more=more)

    monkeypatch.setattr(predictor, "_answered", counting)
    plain = evaluate(predictor, folder)
    assert sum(asked) == 15
    asked.clear()
    some = evaluate(predictor, folder, tta="shift", tta_share=0.4)
    # each image once, and five more views of 6 of 15
    assert sum(asked) == 15 + 5 * 6
    assert some.metrics.nll not in (plain.metrics.nll, evaluate(predictor, folder, tta="shift").metrics.nll)
    with pytest.raises(ConfigError, match="tta_share is out of range: got 0"):
        evaluate(predictor, folder, tta="shift", tta_share=0)
    options = ["--tta", "mirror", "--tta-share", "0.25", "--quiet"]
    assert main(["evaluate", str(bundle.folder), str(folder), *options]) == 0
    assert "test-time augmentation: mirror for 25 % of the images" in capsys.readouterr().out


def test_mistakes_are_the_most_confident_first_with_their_images(
    bundle: Bundle, make_folder: Callable[..., Path]
) -> None:
    folder = make_folder(per_class=30)
    result = evaluate(bundle, folder, device="cpu")
    confusion = np.asarray(result.metrics.confusion)
    assert len(result.mistakes) == min(NUM_MISTAKES, confusion.sum() - np.trace(confusion)) == NUM_MISTAKES
    probabilities = [mistake.probability for mistake in result.mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    for mistake, image in zip(result.mistakes, result.images_NHWC, strict=True):
        assert mistake.label != mistake.predicted
        assert mistake.name.startswith(mistake.label)
        np.testing.assert_array_equal(image, bundle.preprocess.load(folder / mistake.name))


def test_no_mistakes_are_no_fault(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    result = evaluate(make_bundle(tmp_path / "one", ("blue", "green", "red")), make_folder(), device="cpu")
    best = int(np.argmax(np.asarray(result.metrics.confusion).sum(0)))
    folder = tmp_path / "easy" / result.classes[best]
    folder.mkdir(parents=True)
    predictor = Predictor(tmp_path / "one", device="cpu")
    for path in sorted((tmp_path / "colours").rglob("*.png")):
        probs = predictor.probs(predictor.bundle.preprocess.load(path)[None])
        if probs.argmax() == best:
            shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    easy = evaluate(predictor, folder.parent)
    assert (easy.top1, easy.mistakes, easy.images_NHWC.shape) == (1, (), (0, 32, 32, 3))


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [((), "all"), (("train", "val", "test"), "test"), (("train", "valid"), "val"), (("val",), "val")],
)
def test_the_split_is_test_else_val_else_all(
    bundle: Bundle, make_folder: Callable[..., Path], splits: tuple[str, ...], chosen: str
) -> None:
    result = evaluate(bundle, make_folder(per_class=3, splits=splits), device="cpu")
    assert (result.split, result.metrics.num_images) == (chosen, 9)


def test_the_split_can_be_chosen(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(per_class=3, splits=("train", "val"))
    result = evaluate(bundle, folder, split="train", device="cpu")
    assert result.split == "train"
    with pytest.raises(DataError, match=r"no split 'vla' in colours\. Did you mean 'val'\? It has train, val"):
        evaluate(bundle, folder, split="vla", device="cpu")


def test_only_the_chosen_split_is_read(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(per_class=3, splits=("train", "test"))
    (folder / "train" / "red" / "000.png").write_bytes(b"broken")
    assert evaluate(bundle, folder, device="cpu").metrics.num_images == 9


def test_classes_are_matched_by_name_and_may_be_fewer(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(per_class=3)
    shutil.rmtree(folder / "green")
    bundle = make_bundle(tmp_path / "bundle", ("red", "grey", "blue"))
    metrics = evaluate(bundle, folder, device="cpu").metrics
    assert [(row.name, row.support) for row in metrics.per_class] == [("red", 3), ("grey", 0), ("blue", 3)]


def test_images_of_a_class_that_the_bundle_does_not_know_are_left_out_and_said(
    bundle: Bundle, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(per_class=3)
    (folder / "green").rename(folder / "greem")
    assert evaluate(bundle, folder, device="cpu").metrics.num_images == 6
    assert "left out 3 images whose classes are not in the bundle: greem" in capsys.readouterr().err


def test_bad_images_are_refused_unless_they_may_be_skipped(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(per_class=3)
    (folder / "red" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 9 images of colours can't be used.*empty.*`on_bad_image='skip'`"):
        evaluate(bundle, folder, device="cpu")
    assert evaluate(bundle, folder, device="cpu", on_bad_image="skip").metrics.num_images == 8


def test_nothing_left_to_evaluate_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "red"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of data can be used\. .vivace audit. lists why"):
        evaluate(bundle, folder.parent, device="cpu", on_bad_image="skip")


def test_a_bundle_that_is_none_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        evaluate(tmp_path, tmp_path / "nowhere", device="cpu")


def test_the_result_is_plain_for_json(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    plain = evaluate(bundle, make_folder(per_class=3), device="cpu").to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert {"top1", "top1_low", "top1_high", "top5", "nll", "ece", "num_images", "split", "confusion"} <= set(plain)
    assert plain["per_class"][0]["name"] == "blue"
    assert plain["mistakes"][0]["predicted"] in plain["classes"]


def test_progress_tells_of_decoding_and_the_second_run_decodes_nothing(
    bundle: Bundle, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder(per_class=3)
    steps: list[tuple[int, int]] = []
    for _ in range(2):
        evaluate(
            bundle,
            folder,
            device="cpu",
            cache_dir=tmp_path / "own",
            progress=lambda done, total: steps.append((done, total)),
        )
    assert steps == [(9, 9)]


def test_grey_pixels_of_arrays_go_through(tmp_path: Path) -> None:
    """scikit-learn's digits: one channel, from an array rather than files."""
    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=10, in_channels=1),
        classes=tuple("0123456789"),
        preprocess=Preprocess(size=32, store_size=32, channels=1, mean=(0.5,), std=(0.25,)),
    )
    bundle = save_bundle(tmp_path / "digits", create_model("simple_cnn", 10, in_channels=1, size=32), info)
    result = evaluate(bundle, "digits", device="cpu")
    assert (result.split, result.metrics.num_images) == ("test", 359)
    assert result.images_NHWC.shape == (36, 32, 32, 1)


def test_the_command_prints_a_table_and_draws_figures(
    bundle: Bundle, make_folder: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, figures = make_folder(per_class=3), tmp_path / "figures"
    arguments = ["evaluate", str(bundle.folder), str(folder), "--device", "cpu", "--quiet"]
    assert main([*arguments, "--figures", str(figures)]) == 0
    out = capfd.readouterr().out
    assert "colours, split all: 9 images, fp32" in out
    assert "top-3   100.00 %" in out
    assert sorted(path.name for path in figures.iterdir()) == ["confusion.png", "mistakes.png"]
    assert main([*arguments, "--json"]) == 0
    printed = last_answer(capfd.readouterr().out)
    assert printed["num_images"] == 9


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_no_terminal_takes_survive_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle", ("猫", "狗"))
    for label in bundle.classes:
        (tmp_path / "data" / label).mkdir(parents=True)
        name = os.path.join(tmp_path, "data", label, os.fsdecode(b"caf\xe9.png"))  # noqa: PTH118
        try:
            Image.effect_noise((40, 40), 90).save(name)
        except OSError:
            pytest.skip("this file system takes no such names")
    for verb, needed in (("evaluate", "called"), ("predict", "caf")):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([verb, str(bundle.folder), str(tmp_path / "data"), "--device", "cpu", "--quiet"]) == 0
        printed = stdout.buffer.getvalue().decode(encoding)
        assert "caf\\udce9.png" in printed
        assert needed in printed


def test_a_class_without_images_has_no_shares_in_the_table(
    bundle: Bundle, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(per_class=3)
    for path in (folder / "green").iterdir():
        path.unlink()
    assert main(["evaluate", str(bundle.folder), str(folder), "--device", "cpu", "--quiet"]) == 0
    told = capsys.readouterr()
    assert next(line.split() for line in told.out.splitlines() if line.startswith("green")) == [
        "green",
        *["n/a"] * 3,
        "0",
    ]
    assert "skipped 1 empty class folder: green" in told.err


def test_columns_of_a_manifest_may_be_named(bundle: Bundle, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(per_class=3)
    rows = [f"{path.relative_to(folder)},{path.parent.name},x" for path in sorted(folder.rglob("*.png"))]
    (folder / "list.csv").write_text("\n".join(["where,what,more", *rows]) + "\n")
    evaluation = evaluate(bundle, Data(folder / "list.csv", image_column="where", label_column="what"), device="cpu")
    assert evaluation.metrics.num_images == 9
