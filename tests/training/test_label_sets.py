"""Training on images with sets of labels: losses, the head, calibration, and whole runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import vivace
from answers import last_answer
from tables_of_sets import COLOURS, colour_table
from vivace.cli import main
from vivace.config import to_yaml
from vivace.data.augmentation.mixing import mix
from vivace.data.config import DataConfig
from vivace.errors import ConfigError
from vivace.models.zoo import create_model
from vivace.training.dataset import as_told
from vivace.training.finetuning.head import fit_head
from vivace.training.folder.continuing import resume_call
from vivace.training.outcome import Outcome, outcome_warnings
from vivace.training.recipes.recipe import LossConfig, Recipe
from vivace.training.result import TrainResult
from vivace.training.techniques.calibrate import calibrated
from vivace.training.techniques.self_distillation import SelfDistillation
from vivace.training.techniques.tasks import LabelSets, positive_weights, task_of

CPU = torch.device("cpu")
SETS_MK = np.array([[True, False, True], [False, False, False], [True, True, True], [False, True, False]])
LABELS = torch.tensor([0, 1, 2, 3, 0, 2])


def task() -> LabelSets:
    found = task_of(SETS_MK, Recipe(), CPU, has_teacher=False)
    assert isinstance(found, LabelSets)
    return found


def loss_of(config: LossConfig) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return task().loss(config, LABELS.numpy(), ("a", "b", "c"), CPU)


def logits_of(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1)) * 2


def test_the_loss_is_binary_cross_entropy_summed_over_the_labels() -> None:
    logits, targets = logits_of(), torch.from_numpy(SETS_MK)[LABELS].float()
    expected = functional.binary_cross_entropy_with_logits(logits, targets) * 3
    torch.testing.assert_close(loss_of(LossConfig())(logits, LABELS), expected)
    # mixed targets are given as they are
    torch.testing.assert_close(loss_of(LossConfig())(logits, targets), expected)
    torch.testing.assert_close(task().losses(logits, LABELS).mean(), expected)
    smooth = functional.binary_cross_entropy_with_logits(logits, 0.8 * targets + 0.1) * 3
    torch.testing.assert_close(loss_of(LossConfig(label_smoothing=0.2))(logits, LABELS), smooth)


def test_weights_of_labels_and_the_balance_of_each() -> None:
    logits, targets = logits_of(), torch.from_numpy(SETS_MK)[LABELS].float()
    each = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weighted = (each * torch.tensor([0.75, 1.5, 0.75])).sum(1).mean()
    torch.testing.assert_close(loss_of(LossConfig(class_weights={"b": 2.0}))(logits, LABELS), weighted)
    # a has 4 of 6 images, b 3, c 4
    positive = torch.tensor([0.5, 1.0, 0.5])
    balanced = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive) * 3
    torch.testing.assert_close(loss_of(LossConfig(class_weights="balanced"))(logits, LABELS), balanced)
    assert positive_weights(np.array([1, 0, 999]), 1000).tolist() == [20, 20, pytest.approx(0.05)]
    with pytest.raises(ConfigError, match="names a class that the data do not have: got 'd'"):
        loss_of(LossConfig(class_weights={"d": 2.0}))


def test_focal_loss_weighs_each_label_by_how_wrong_it_is() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0]])
    probs = logits.sigmoid()[0]
    missed = torch.tensor([1 - probs[0], probs[1], 1 - probs[2]])
    expected = float((missed**2 * -(1 - missed).log()).sum())
    assert float(loss_of(LossConfig(focal_gamma=2.0))(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-5)


def test_the_score_and_what_is_right_of_an_answer() -> None:
    logits = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, -1.0]])
    assert task().rightness(logits, torch.tensor([0, 1])).tolist() == pytest.approx([1.0, 2 / 3])
    assert task().validation_score(logits, torch.tensor([0, 1])) == pytest.approx((0.5 + 1.0) / 2)
    # no image has a label: nothing can be ranked
    assert task().validation_score(logits, torch.tensor([1, 1])) == 0.0


def test_mixed_images_have_the_labels_of_both() -> None:
    images = torch.zeros(4, 3, 8, 8)
    sets = torch.from_numpy(SETS_MK).float()
    labels = torch.tensor([0, 1, 2, 3])
    _, targets = mix(
        images,
        labels,
        num_classes=3,
        label_sets_MK=sets,
        mixup_alpha=0.4,
        cutmix_alpha=0.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert targets.shape == (4, 3)
    assert ((targets >= 0) & (targets <= 1)).all()
    torch.testing.assert_close(targets.sum(0), sets.sum(0))


def test_self_distillation_starts_from_the_smoothed_labels() -> None:
    own = SelfDistillation(0.5, LABELS.numpy(), 3, label_smoothing=0.2, device=CPU, task=task())
    torch.testing.assert_close(own.probs_NK, 0.8 * torch.from_numpy(SETS_MK)[LABELS].float() + 0.1)
    logits, indices = logits_of(), torch.arange(6)
    own.record(indices, own.probs(logits))
    torch.testing.assert_close(own.probs_NK, logits.sigmoid())
    target = functional.binary_cross_entropy_with_logits(logits, logits.sigmoid()) * 3
    blended = own.blend(torch.tensor(1.0), logits, indices, progress=1.0)
    torch.testing.assert_close(blended, 0.5 + 0.5 * target)


def test_what_is_for_one_class_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"distill\.teacher can't go with sets of labels"):
        task_of(SETS_MK, Recipe(), CPU, has_teacher=True)
    balanced = Recipe(data=DataConfig(balanced_sampling=True))
    with pytest.raises(
        ConfigError, match=r"balanced_sampling can't go with sets of labels: .*class_weights='balanced'"
    ):
        task_of(SETS_MK, balanced, CPU, has_teacher=False)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_head_is_a_logistic_regression_for_each_label(balanced: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 4
    hits = torch.from_numpy(SETS_MK)[labels]
    features = hits.float() @ torch.randn(3, 20, generator=generator) + torch.randn(240, 20, generator=generator) * 2
    positive = positive_weights(hits.sum(0).numpy(), 240) if balanced else None
    head = fit_head(features, labels, 3, label_sets_MK=torch.from_numpy(SETS_MK).float(), positive_weights_K=positive)
    variance = features.var(0, correction=0)
    standardized = ((features - features.mean(0)) / (variance + variance.mean()).sqrt()).numpy()
    found = functional.linear(features, head.weight_KD, head.bias_K).sigmoid()
    for label in range(3):
        weight = {0: 1.0, 1: 1.0 if positive is None else float(positive[label])}
        # class_weight multiplies the loss of each image, and C goes with their sum
        reference = linear_model.LogisticRegression(
            C=1 / (head.strength * 240), tol=1e-8, max_iter=10_000, class_weight=weight
        ).fit(standardized, hits[:, label].numpy())
        expected = reference.predict_proba(standardized)[:, 1]
        assert float(np.abs(found[:, label].numpy() - expected).max()) < 0.02
    assert head.top1 == pytest.approx(float(((found > 0.5) == hits).float().mean()), abs=0.005)


@pytest.mark.parametrize("name", ["fast_cnn", "fast_photo"])
def test_each_label_is_calibrated_on_its_own_and_keeps_its_order(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 3, in_channels=3, size=32).eval()
    images = torch.randn(200, 3, 32, 32)
    with torch.no_grad():
        logits = model(images)
    spread = logits / logits.std(0)
    hits = torch.rand(200, 3) < (3 * spread + torch.tensor([1.0, -1.0, 0.0])).sigmoid()
    sets, labels = np.unique(hits.numpy(), axis=0, return_inverse=True)
    own = task_of(sets, Recipe(), CPU, has_teacher=False)
    better, temperature = calibrated(model, logits, torch.from_numpy(labels.reshape(-1)), images[:8], own)
    assert temperature is None
    assert better is not model
    with torch.no_grad():
        after = better(images)
    for label in range(3):
        # a straight line upwards
        assert float(torch.corrcoef(torch.stack([after[:, label], logits[:, label]]))[0, 1]) > 0.99999
    before_loss, after_loss = (
        float(functional.binary_cross_entropy_with_logits(values, hits.float())) for values in (logits, after)
    )
    assert after_loss < before_loss
    # few images, or none to tell by: the network itself
    few, _ = calibrated(model, logits[:50], torch.from_numpy(labels.reshape(-1))[:50], images[:8], own)
    assert few is model


def test_a_score_of_chance_is_told() -> None:
    def told(score: float) -> tuple[str, ...]:
        return outcome_warnings(
            Outcome(
                epochs=2,
                num_train=100,
                num_images_seen=200,
                num_right=0,
                num_val=20,
                num_val_commonest=10,
                commonest="a",
                score=score,
                multi_label=True,
                chance=0.3,
                target=0.9,
            )
        )

    assert told(0.31)[0].startswith(
        "the network may have learnt nothing: validation ended at a mAP of 0.310, and random"
    )
    assert told(0.8) == ("the target was not reached: validation ended at 0.8, the target is 0.9",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    root = tmp_path_factory.mktemp("sets")
    path = colour_table(root / "data")
    result = vivace.train(
        path,
        "fast",
        epochs=6,
        size=16,
        batch_size=16,
        run=root / "run",
        tune=False,
        cache_dir=root / "cache",
        device="cpu",
    )
    return result, path


def test_a_run_learns_the_labels_and_says_so_in_their_own_words(run: tuple[TrainResult, Path]) -> None:
    result, _ = run
    assert result.val_map is not None
    assert result.val_map > 0.9
    assert np.isnan(result.val_top1)
    said = json.loads((result.run / "result.json").read_text())
    assert said["val_map"] == result.val_map
    assert not [name for name in said if "top1" in name]
    with (result.run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val_map"]) == pytest.approx(result.val_map, abs=1e-5)
    assert not [name for name in rows[0] if "top1" in name]
    assert set(result.metrics["val"]) >= {"map", "f1_macro", "exact_match", "hamming_loss", "bce"}


def test_the_bundle_has_a_threshold_for_each_label_and_predicts_by_it(run: tuple[TrainResult, Path]) -> None:
    result, path = run
    bundle = vivace.load(result.bundle)
    assert bundle.info.task == "multi_label"
    assert len(bundle.info.thresholds) == len(COLOURS)
    rows = dict(line.split(",")[:2] for line in path.read_text().splitlines()[1:])
    predictions = bundle([path.parent / name for name in rows])
    right = [
        set(found.labels) == {part for part in rows[Path(found.path).name].split(";") if part != "[]"}
        for found in predictions
    ]
    assert np.mean(right) > 0.7
    for found in predictions:
        probs = dict(found.topk)
        assert all(probs[name] >= bundle.info.thresholds[bundle.classes.index(name)] for name in found.labels)
        assert found.label == found.topk[0][0]


def test_it_is_evaluated_by_the_same_metrics(run: tuple[TrainResult, Path]) -> None:
    result, path = run
    held_out = vivace.evaluate(result.bundle, path, split="val", cache_dir=path.parent.parent / "cache")
    told = held_out.to_dict()
    for name in ("map", "f1_macro", "exact_match", "hamming_loss"):
        assert told[name] == pytest.approx(result.metrics["val"][name], abs=1e-4)
    assert [row["name"] for row in told["per_label"]] == sorted(COLOURS)
    assert "confusion" not in told
    mirrored = vivace.evaluate(result.bundle, path, split="val", tta="mirror", cache_dir=path.parent.parent / "cache")
    assert mirrored.to_dict()["map"] > 0.8


def test_a_run_on_sets_goes_on_where_it_was(run: tuple[TrainResult, Path]) -> None:
    result, path = run
    longer = vivace.train(
        path, run=result.run, resume=True, epochs=7, cache_dir=path.parent.parent / "cache", device="cpu"
    )
    assert longer.epochs == 7
    assert longer.val_map is not None
    (found,) = vivace.runs(result.run.parent)
    assert found.val_map == longer.val_map


def test_the_command_line_says_map_and_its_answer_fits_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    path = str(colour_table(tmp_path / "data"))
    options = ["--epochs", "3", "--size", "16", "--batch-size", "16", "--tune", "off", "--device", "cpu"]
    stopping = ["--set", "early_stopping=1", "--set", "monitor=loss"]
    assert main(["train", path, *options, *stopping, "--run", str(tmp_path / "a"), "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert answer["val_map"] == answer["metrics"]["val"]["map"]
    assert main(["train", path, *options[2:], "--epochs", "1", "--run", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr()
    assert "validation mAP" in shown.out
    assert " mAP " in shown.err
    assert "top-1" not in shown.out
    # a metric of one class an image
    refused = ["--set", "early_stopping=1", "--set", "monitor=macro_f1", "--run", str(tmp_path / "c")]
    assert main(["train", path, *options, *refused]) == 2
    assert "monitor=macro_f1 is for one class an image" in capsys.readouterr().err


def test_a_network_is_fine_tuned_on_sets(tmp_path: Path) -> None:
    path = colour_table(tmp_path / "data")
    first = vivace.train(
        path, "fast", epochs=2, size=16, batch_size=16, run=tmp_path / "first", tune=False, device="cpu"
    )
    options: dict[str, Any] = {"weights": first.bundle, "model": "fast_cnn", "size": 16, "tune": False, "device": "cpu"}
    second = vivace.train(path, "finetune", epochs=0, run=tmp_path / "second", **options)
    assert second.val_map is not None
    assert second.val_map > 0.8
    assert isinstance(vivace.load(second.bundle).build_model(), nn.Module)


def test_how_labels_are_read_is_in_the_recipe_and_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    as_told(vivace.Data("x.csv", multi_label=True), Recipe(), changes, None)
    assert changes == {"data.multi_label": True}
    asked = as_told("x.csv", Recipe(), {"data.multi_label": "false"}, None)
    assert isinstance(asked, vivace.Data)
    assert asked.multi_label is False
    (tmp_path / "recipe.yaml").write_text(to_yaml(Recipe(data=DataConfig(multi_label=True))))
    resumed = as_told("x.csv", Recipe(), {}, tmp_path)
    assert isinstance(resumed, vivace.Data)
    assert resumed.multi_label is True
    # it need not be said again
    assert "multi_label" not in resume_call(resumed, tmp_path)
    assert as_told("x.csv", Recipe(), {}, tmp_path / "none") == "x.csv"
