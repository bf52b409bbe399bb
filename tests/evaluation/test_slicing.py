"""Slices of an evaluation: what images look like is gathered from files, pixels and features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from answers import last_answer
from factories import make_bundle
from vivace.bundle import Bundle
from vivace.cli import main
from vivace.cli.sliced import print_slices
from vivace.data import filesizes
from vivace.data.filesizes import image_sizes
from vivace.data.sources import open_source
from vivace.data.splits import Split
from vivace.evaluation import slicing
from vivace.evaluation.evaluate import evaluate
from vivace.evaluation.measuring import measure
from vivace.evaluation.slicing import FeatureKeeper, slices_of
from vivace.metrics.measured import Measured
from vivace.prediction import Predictor
from vivace.uncertainty.scores import Answers


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "net", widths=[8, 16], depth=1)


@pytest.fixture
def photos(make_folder: Callable[..., Path]) -> Path:
    """120 images, of which a third is wide."""
    folder = make_folder(per_class=40)
    for path in sorted(folder.rglob("*.png"))[::3]:
        with Image.open(path) as image:
            wide = image.convert("RGB").resize((60, 32))
        wide.save(path)
    return folder


def test_an_evaluation_tells_slices_of_every_kind(
    bundle: Bundle, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(bundle.folder), str(photos), "--device", "cpu", "--quiet", "--json"]) == 0
    slices = last_answer(capsys.readouterr().out)["slices"]
    rows = slices["rows"]
    assert {row["kind"] for row in rows} == {"class", "brightness", "size", "aspect", "pair", "cluster"}
    assert slices["num_images"] == 120
    assert sum(row["num_images"] for row in rows if row["kind"] == "class") == 120
    (wide,) = [row for row in rows if row["kind"] == "aspect" and row["part"] == 3]
    assert (wide["name"], wide["num_images"]) == ("wider than 5:4", 40)
    assert main(["evaluate", str(bundle.folder), str(photos), "--device", "cpu", "--quiet"]) == 0
    assert f"of {slices['num_tested']} parts of the images (Holm, 5 %)" in capsys.readouterr().out


def test_a_report_has_the_slices_of_an_evaluation(bundle: Bundle, photos: Path) -> None:
    evaluation = evaluate(bundle, photos, device="cpu")
    found = measure(Predictor(bundle, device="cpu", batch_size=50), photos)
    assert slices_of(found.measured, bundle.classes, clusters_N=found.clusters_N) == evaluation.slices


def test_the_terminal_tells_those_that_are_worse_or_the_first_ones(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.repeat([0, 1], 60)
    answers = np.where((labels == 1) & (np.arange(120) % 2 == 0), 0, labels)
    measured = Measured(
        split="test",
        probs_NK=np.eye(2)[answers],
        labels_N=labels,
        names=[str(row) for row in range(120)],
        images=lambda rows: np.zeros((len(rows), 4, 4, 3), np.uint8),
    )
    print_slices(slices_of(measured, ("good", "bad")))
    told = capsys.readouterr().out
    assert "mistakes are surely more frequent in 1 of 2 parts of the images" in told
    assert "bad   50.0 % wrong" in told
    assert "elsewhere 0.0 %, 60 images" in told
    assert "good" not in told


def test_sizes_come_from_headers_of_files_and_are_unknown_for_files_that_are_gone(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_source(photos).splits["train"]
    names = split.names[10:40]
    sizes = image_sizes(split, names)
    assert sizes is not None
    for name, size in zip(names, sizes.tolist(), strict=True):
        with Image.open(photos / name) as image:
            assert tuple(size) == image.size
    # of many files some are looked at, the same ones for a seed
    with monkeypatch.context() as few:
        few.setattr(filesizes, "MAX_FILES", 5)
        some = image_sizes(split, split.names, seed=3)
        assert some is not None
        assert (some > 0).all(1).sum() == 5
        assert np.array_equal(some, image_sizes(split, split.names, seed=3))
    (photos / names[0]).unlink()
    (photos / names[1]).write_bytes(b"no image")
    again = image_sizes(split, names)
    assert again is not None
    assert again[:2].tolist() == [[0, 0], [0, 0]]
    assert again[2:].tolist() == sizes[2:].tolist()


def test_arrays_have_one_size() -> None:
    arrays = np.zeros((2, 4, 4, 3), np.uint8)
    assert image_sizes(Split(name="test", names=("a", "b"), labels=np.zeros(2, int), arrays=arrays), ("a", "b")) is None


def test_features_of_some_of_many_images_are_kept_in_whatever_batches_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slicing, "MAX_IMAGES", 150)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    features = (np.eye(2, 8)[truth] * 4 + rng.normal(0, 0.2, (400, 8))).astype(np.float32)
    found = []
    for size in (7, 400):
        keeper = FeatureKeeper(400, seed=1)
        for start in range(0, 400, size):
            part = features[start : start + size]
            keeper.take(Answers(np.full((len(part), 3), 1 / 3, np.float32), None, part))
        clusters = keeper.clusters()
        assert clusters is not None
        found.append(clusters)
    assert np.array_equal(found[0], found[1])
    assert (found[0] >= 0).sum() == 150
    known = found[0] >= 0
    # two clusters of three: a kind of image may be cut in two, but none holds both kinds
    for number in range(found[0].max() + 1):
        assert len(set(truth[known & (found[0] == number)])) == 1
    keeper = FeatureKeeper(4)
    keeper.take(Answers(np.full((4, 3), 1 / 3, np.float32)))
    assert keeper.clusters() is None
