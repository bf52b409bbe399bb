"""Thresholds from training to predictions: in the bundle, by every runtime, in tables and JSON."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from answers import last_answer
from colours import colour_folder
from factories import make_bundle
from vivace.acceleration.candidates import Candidate
from vivace.acceleration.networks import open_network
from vivace.acceleration.thresholds import thresholds_of
from vivace.bundle import Bundle, derive_bundle, load_bundle
from vivace.cli import main
from vivace.errors import BundleError, ConfigError, DataError
from vivace.evaluation.evaluate import evaluate
from vivace.exporting.export import export
from vivace.manifest import manifest_hash
from vivace.predictor import Predictor
from vivace.statistics.conformal import class_scores
from vivace.training.train import train
from vivace.uncertainty.record import FEATURES, UNCERTAINTY
from vivace.uncertainty.scores import generalised_entropy
from vivace.uncertainty.validated import EDGES, VALIDATED


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle with thresholds from 72 held-out images, and its data."""
    data = colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=60, splits=("train", "test"))
    result = train(
        data,
        epochs=2,
        overrides={"batch_size": 32, "data.val_fraction": 0.4, "model.arguments": {"widths": [8, 16], "depth": 1}},
        run=tmp_path_factory.mktemp("runs") / "run",
        tune=False,
        quiet=True,
    )
    return load_bundle(result.bundle), data


def test_training_leaves_thresholds_of_the_validation_images(run: tuple[Bundle, Path]) -> None:
    bundle, data = run
    found = bundle.uncertainty()
    assert found is not None
    assert (found.num_images, found.num_choosing, found.images) == (58, 14, "held-out images")
    assert found.variant == f"eager {bundle.info.precision}"
    assert found.also_chose == ("the temperature",)
    # not one of them was trained on, and what is measured on them is said to show nothing
    result = evaluate(bundle, data, split="val")
    assert result.uncertainty is not None
    assert result.uncertainty.on_calibration_images
    assert any("calibrated on: coverage, errors, and how well unlike images" in line for line in result.warnings)
    assert result.num_images_trained_on == 0
    assert result.metrics.num_images == 72
    features = bundle.known_features()
    assert features is not None
    assert features.shape == (72, 16)
    assert [score.name for score in found.ood] != []
    assert all(len(score.generated) == 4 for score in found.ood)


def test_training_leaves_what_was_answered_to_validation_images(run: tuple[Bundle, Path]) -> None:
    bundle, data = run
    found = bundle.validated()
    assert found is not None
    assert (found.num_images, found.images, found.variant) == (72, "held-out images", f"eager {bundle.info.precision}")
    # as `evaluate` counts them, whose images are the same
    result = evaluate(bundle, data, split="val")
    predicted_K = np.array(result.metrics.confusion).sum(0)
    assert list(found.class_counts) == predicted_K.tolist()
    assert sum(found.confidence_counts) == 72
    assert len(found.below_counts) == len(EDGES)


def test_a_prediction_tells_set_abstaining_and_whether_it_is_unlike(run: tuple[Bundle, Path]) -> None:
    bundle, data = run
    files = sorted((data / "test").rglob("*.png"))[::20]
    predictor = Predictor(bundle, coverage=0.95, abstain=0.2, batch_size=4)
    decider = predictor.decider
    assert decider is not None
    assert decider.threshold == sorted(decider.found.scores)[int(np.ceil(59 * 0.95)) - 1]
    probs = predictor.probs(np.stack([bundle.preprocess.load(file) for file in files]))
    sets = class_scores(probs, decider.found.rule) <= decider.threshold
    rows = predictor(files)
    for row, inside, probs_K in zip(rows, sets, probs, strict=True):
        assert row.prediction_set is not None
        expected = {name for name, is_in in zip(bundle.classes, inside, strict=True) if is_in} | {row.label}
        assert set(row.prediction_set) == expected
        assert row.prediction_set[0] == row.label
        assert decider.answered_from is not None
        assert row.abstain == (probs_K.max() < decider.answered_from)
    assert sum(bool(row.ood) for row in rows) <= 3
    alone = predictor(files[0])
    assert (alone.prediction_set, alone.abstain, alone.ood) == (rows[0].prediction_set, rows[0].abstain, rows[0].ood)
    again = pickle.loads(pickle.dumps(predictor))
    assert [row.prediction_set for row in again(files)] == [row.prediction_set for row in rows]
    noise = np.random.default_rng(0).integers(0, 256, (bundle.preprocess.size, bundle.preprocess.size, 3), np.uint8)
    assert predictor(noise).ood_score > max(row.ood_score for row in rows if row.ood_score is not None)


def test_evaluate_measures_the_promises_and_prints_them(
    run: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = run
    result = evaluate(bundle, data, coverage=0.8, abstain=0.3)
    found = result.uncertainty
    assert found is not None
    predictor = Predictor(bundle, coverage=0.8, abstain=0.3)
    rows = predictor(sorted((data / "test").rglob("*.png")))
    truth = [Path(row.path).parent.name for row in rows]
    inside = [label in (row.prediction_set or ()) for label, row in zip(truth, rows, strict=True)]
    assert found.coverage == np.mean(inside)
    assert found.mean_set_size == np.mean([len(row.prediction_set or ()) for row in rows])
    assert found.abstained == np.mean([row.abstain for row in rows])
    assert found.ood_flagged == np.mean([row.ood for row in rows])
    assert found.unlike == ()
    assert not found.on_calibration_images
    other = colour_folder(tmp_path / "other", per_class=3)
    (other / "blue" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    options = ["--ood", str(other), "--quiet"]
    assert main(["evaluate", str(bundle.folder), str(data), *options, "--json"]) == 0
    captured = capsys.readouterr()
    told = last_answer(captured.out)["uncertainty"]
    assert [one["name"] for one in told["unlike"]] == [
        str(other),
        "uniform noise",
        "normal noise",
        "shuffled patches",
        "flat colours",
    ]
    assert told["unlike"][0]["by_score"]["energy"]["num_others"] == 9
    assert "1 of the images of" in captured.err
    assert main(["evaluate", str(bundle.folder), str(data), *options]) == 0
    shown = capsys.readouterr().out
    assert "sets    hold the true class for" in shown
    assert "calibrated on 58 held-out images" in shown
    assert "uniform noise" in shown


def test_predict_writes_columns_and_says_what_not_to_rely_on(
    run: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = run
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    files = [str(file) for file in sorted((data / "test").rglob("*.png"))[::60]]
    command = ["predict", str(bundle.folder), *files, str(broken), "--coverage", "0.99", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "rows.csv")]) == 0
    assert "58 calibration images are too few for a coverage of 0.99" in capsys.readouterr().err
    *rows, failed = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert [set(row["prediction_set"].split(";")) for row in rows] == [set(bundle.classes)] * 3
    assert {row["abstain"] for row in rows} == {""}
    assert {row["ood"] for row in rows} <= {"True", "False", "true", "false"}
    assert (failed["path"], failed["prediction_set"], failed["ood"]) == (str(broken), "", "")
    assert main([*command, "--json"]) == 0
    (first, *_) = last_answer(capsys.readouterr().out)["predictions"]
    assert set(first["prediction_set"]) == set(bundle.classes)
    assert first["abstain"] is None
    assert main(command) == 0
    assert "\tone of 3: " in capsys.readouterr().out


def test_a_graph_keeps_the_thresholds_and_scores_by_probabilities(run: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, data = run
    files = sorted((data / "test").rglob("*.png"))[::30]
    graph = load_bundle(export(bundle, "onnx", tmp_path / "graph").path)
    assert UNCERTAINTY in graph.files
    assert FEATURES not in graph.files
    assert graph.validated() == bundle.validated()
    predictor = Predictor(graph)
    assert predictor.decider is not None
    assert predictor.decider.ood is not None
    assert predictor.decider.ood.name == "entropy"
    expected = Predictor(bundle)(files)
    for row, other in zip(predictor(files), expected, strict=True):
        assert (row.label, row.prediction_set, row.abstain) == (other.label, other.prediction_set, other.abstain)
        assert row.ood is not None
    assert evaluate(graph, data, ood="generated").uncertainty.unlike[0].by_score.keys() == {"entropy"}  # type: ignore[union-attr]


def test_a_folder_without_torch_decides_as_the_bundle_does(run: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, data = run
    files = sorted((data / "test").rglob("*.png"))[::30]
    out = tmp_path / "deployed"
    export(bundle, "deploy", out, data=data)
    program = [sys.executable, "-B", str(out / "classifier.py")]
    options = ["--coverage", "0.98", "--abstain", "0.2"]
    done = subprocess.run([*program, *map(str, files), *options, "--json"], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["predictions"]
    expected = Predictor(bundle, coverage=0.98, abstain=0.2)
    entropy = next(score for score in expected.decider.found.ood if score.name == "entropy")  # type: ignore[union-attr]
    for row, other, file in zip(rows, expected(files), files, strict=True):
        assert (row["prediction_set"], row["abstain"]) == (list(other.prediction_set or ()), other.abstain)
        probs = expected.probs(bundle.preprocess.load(file)[None])
        assert row["ood"] == bool(generalised_entropy(probs)[0] > entropy.threshold)
    done = subprocess.run([*program, str(files[0]), "--coverage", "0.97"], capture_output=True, text=True, check=False)
    assert (done.returncode, "no threshold for 0.97. Known: 0.8, 0.9, 0.95, 0.98, 0.99" in done.stderr) == (2, True)
    assert "Before you rely on an answer" in (out / "README.md").read_text("utf-8")


def test_what_a_search_chose_gets_thresholds_of_its_own_answers(run: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, data = run
    network = open_network("", bundle, data, tmp_path / "work", cache_dir=None, on_bad_image="auto")
    notes: list[str] = []
    steps = SimpleNamespace(run=lambda function, *arguments: function(*arguments), note=notes.append)
    winner = SimpleNamespace(candidate=Candidate(runtime="onnx", precision="fp32"))
    measurements: Any = SimpleNamespace(
        network_of=lambda result: network,
        probs=lambda result, images, part: network.probs(result.candidate, images),
        steps=steps,
    )
    made = thresholds_of(measurements, winner)  # type: ignore[arg-type]
    assert made is not None
    found = made.found
    assert (found.variant, found.images, found.num_images) == ("onnx fp32", "selection images", 58)
    assert found.also_chose == ("the variant", "the temperature")
    assert [(score.name, len(score.generated)) for score in found.ood] == [("entropy", 4)]
    few = dataclasses.replace(network.splits, select=network.splits.select.some(19))
    network = dataclasses.replace(network, splits=few)
    assert thresholds_of(measurements, winner) is None  # type: ignore[arg-type]
    assert "19 of 20 selection images" in notes[0]


def test_of_8_bits_the_thresholds_of_the_network_before_are_not_kept(run: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, _ = run
    int8 = dataclasses.replace(bundle.info, precision="int8")
    files = derive_bundle(bundle, tmp_path / "int8", lambda folder: int8).files
    assert not {UNCERTAINTY, VALIDATED} & set(files)
    assert UNCERTAINTY in derive_bundle(bundle, tmp_path / "same", lambda folder: bundle.info).files


def test_a_bundle_without_thresholds_answers_as_before(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those do that were made before there were any."""
    bundle, data = make_bundle(tmp_path / "bundle"), make_folder()
    image = next(data.rglob("*.png"))
    row = Predictor(bundle)(image)
    assert (row.prediction_set, row.abstain, row.ood, row.ood_score) == (None, None, None, None)
    assert evaluate(bundle, data).uncertainty is None
    for options in ({"coverage": 0.8}, {"abstain": 0.1}):
        with pytest.raises(ConfigError, match=r"would be ignored: got .*has no calibrated thresholds"):
            Predictor(bundle, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"ood would be ignored: got 'generated'"):
        evaluate(bundle, data, ood="generated")
    assert main(["predict", str(bundle.folder), str(image), "--json", "--quiet"]) == 0
    assert "prediction_set" not in last_answer(capsys.readouterr().out)["predictions"][0]


def test_what_can_not_go_together_is_refused(run: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, data = run
    with pytest.raises(ConfigError, match="ood can't go with several views"):
        evaluate(bundle, data, ood="generated", tta="mirror")
    with pytest.raises(ConfigError, match="coverage would be ignored"):
        evaluate(Predictor(bundle), data, coverage=0.8)
    with pytest.raises(ConfigError, match=r"coverage is out of range: got 90"):
        evaluate(bundle, data, coverage=90)
    with pytest.raises(DataError, match="there are no images in"):
        evaluate(bundle, data, ood=tmp_path / "nothing*")
    assert evaluate(bundle, data, tta="mirror").uncertainty is None


@pytest.mark.parametrize("name", [UNCERTAINTY, FEATURES, VALIDATED])
def test_thresholds_that_were_changed_are_refused(name: str, run: tuple[Bundle, Path], tmp_path: Path) -> None:
    """By the hash; and where somebody sealed the bundle anew, by what is in them."""
    folder = tmp_path / "bundle"
    shutil.copytree(run[0].folder, folder)
    (folder / name).write_bytes(b"{}" + (folder / name).read_bytes()[2:])
    with pytest.raises(BundleError, match=rf"{name} is damaged"):
        load_bundle(folder)
    (folder / name).write_bytes(b"{}")
    manifest = json.loads((folder / "bundle.json").read_text())
    from vivace.files import sha256_of

    manifest["files"][name] = {"sha256": sha256_of(folder / name), "bytes": 2}
    manifest["sha256"] = manifest_hash(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    opens = (lambda place: load_bundle(place).validated()) if name == VALIDATED else Predictor
    with pytest.raises(BundleError, match=rf"{name} (is wrong|does not hold)"):
        opens(folder)
