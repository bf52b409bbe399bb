"""Bundles for sets of labels: every runtime, the certificate, the deployment without torch, and the verbs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from answers import last_answer
from factories import make_bundle
from tables_of_sets import colour_table
from vivace.acceleration.splits import open_splits
from vivace.bundle import Bundle, BundleInfo, derive_bundle, load_bundle
from vivace.cli import main
from vivace.errors import BundleError
from vivace.exporting.export import export
from vivace.exporting.parity import compare_probs, verify
from vivace.prediction import Predictor, predict

NAMES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained network, whose thresholds let some labels of some images apply."""
    root = tmp_path_factory.mktemp("sets")
    plain = make_bundle(root / "plain", size=16)

    def add(folder: Path) -> BundleInfo:
        return dataclasses.replace(plain.info, precision="fp32", task="multi_label", thresholds=(0.4, 0.5, 0.6))

    return derive_bundle(plain, root / "bundle", add)


def pixels(count: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_each_label_has_a_probability_of_its_own(bundle: Bundle) -> None:
    probs = Predictor(bundle).probs(pixels())
    model, preprocess = bundle.build_model(), bundle.preprocess
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2) / 255 - torch.tensor(preprocess.mean)[:, None, None]
    with torch.no_grad():
        expected = model(images / torch.tensor(preprocess.std)[:, None, None]).sigmoid().numpy()
    np.testing.assert_allclose(probs, expected, atol=1e-4)
    assert np.abs(probs.sum(1) - 1).max() > 0.05


def test_labels_that_reach_their_thresholds_apply(bundle: Bundle) -> None:
    predictor = Predictor(bundle)
    for found in predictor(list(pixels()), topk=1):
        probs = dict(predictor(pixels()[int(found.path.removeprefix("image "))], topk=3).topk)
        wanted = {name for name, least in zip(NAMES, (0.4, 0.5, 0.6), strict=True) if probs[name] >= least}
        assert set(found.labels) == wanted
        # all that apply are ranked, however few were asked for
        assert wanted <= {name for name, _ in found.topk}


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_graph_for_another_runtime_answers_alike(bundle: Bundle, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    made = export(bundle, runtime, tmp_path / runtime)
    assert made.parity is not None
    assert made.parity.set_agreement == 1.0
    assert made.parity.top1_agreement is None
    opened = load_bundle(tmp_path / runtime)
    assert opened.info.thresholds == (0.4, 0.5, 0.6)
    assert "set_agreement" in opened.info.parity
    np.testing.assert_allclose(Predictor(opened).probs(pixels()), Predictor(bundle).probs(pixels()), atol=1e-3)
    assert verify(opened).holds


def test_agreement_is_that_of_the_predicted_sets() -> None:
    expected = np.array([[0.9, 0.1], [0.5004, 0.9], [0.7, 0.2]])
    found = np.array([[0.9, 0.1], [0.4999, 0.9], [0.3, 0.2]])
    parity = compare_probs(
        expected, found, runtime="onnx", precision="fp32", images="generated", thresholds_K=(0.5, 0.5)
    )
    # of the second the threshold is within the tolerance; the third has lost its label
    assert parity.set_agreement == pytest.approx(2 / 3)
    assert not parity.holds
    assert "agreement of the sets of labels 66.67%" in parity.summary()
    assert "set_agreement" in parity.recorded()
    plain = compare_probs(expected, expected, runtime="onnx", precision="fp32", images="generated")
    assert "set_agreement" not in plain.to_dict()


def test_a_deployment_predicts_the_same_sets_without_torch(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(bundle, "deploy", tmp_path / "deployed")
    told = json.loads((tmp_path / "deployed" / "model.json").read_text())
    assert (told["task"], told["thresholds"]) == ("multi_label", [0.4, 0.5, 0.6])
    for index, image in enumerate(pixels(4)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    files = [str(tmp_path / f"{index}.png") for index in range(4)]
    done = subprocess.run(
        [sys.executable, "-B", str(tmp_path / "deployed" / "classifier.py"), *files, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)["predictions"]
    wanted = predict(bundle, files)
    assert [[row["label"] for row in one["labels"]] for one in found] == [list(row.labels) for row in wanted]


@pytest.mark.parametrize(
    ("task", "thresholds"),
    [("multi_label", ()), ("multi_label", (0.5, 0.5)), ("multi_label", (0.5, 0.5, 1.5)), ("single_label", (0.5,) * 3)],
)
def test_a_bundle_with_other_thresholds_than_labels_is_refused(
    bundle: Bundle, task: Any, thresholds: tuple[float, ...], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="thresholds"):
        derive_bundle(
            bundle, tmp_path / "b", lambda _: dataclasses.replace(bundle.info, task=task, thresholds=thresholds)
        )


def test_the_verbs_speak_of_labels(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = colour_table(tmp_path / "data", count=60), str(bundle.folder)
    images = [str(path.parent / f"{index}.png") for index in range(3)]
    assert main(["predict", folder, *images, "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert [row["labels"] for row in answer["predictions"]] == [list(row.labels) for row in predict(bundle, images)]
    assert main(["predict", folder, *images, "--out", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "path,error,labels,probabilities"
    assert main(["predict", folder, *images, "--out", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows] == [list(row.labels) for row in predict(bundle, images)]
    assert main(["evaluate", folder, str(path), "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert answer["num_images"] == 60
    assert {row["name"]: row["threshold"] for row in answer["per_label"]} == {"blue": 0.4, "green": 0.5, "red": 0.6}
    assert main(["evaluate", folder, str(path)]) == 0
    shown = capsys.readouterr().out
    assert "mAP" in shown
    assert "top-1" not in shown
    assert main(["verify", folder, "--json"]) == 0
    assert last_answer(capsys.readouterr().out)["top1_agreement"] is None


def test_runs_on_sets_are_not_compared(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = colour_table(tmp_path / "data", count=60), str(bundle.folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert main(["compare", folder, str(tmp_path / "copy"), str(path)]) == 2
    assert "predicts sets of labels" in capsys.readouterr().err


def test_the_images_of_a_search_are_right_if_the_whole_set_is(bundle: Bundle, tmp_path: Path) -> None:
    splits = open_splits(bundle, colour_table(tmp_path / "data", count=400))
    images = splits.certify
    assert images.label_sets_MK is not None
    truth = images.label_sets_MK[images.labels].astype(np.float32)
    assert images.right(truth).all()
    truth[0, 0] = 1 - truth[0, 0]
    assert images.right(truth).tolist() == [False] + [True] * (len(images) - 1)
    # labels are compared with their own thresholds
    assert images.right(truth * 0.55)[1:].tolist() == (truth[1:, 2] == 0).tolist()
