"""Calibrated bundles: the probabilities of fast's network fit better, its classes stay, and training is not touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same_weights import assert_same_weights
from torch import Tensor, nn

import vivace
from vivace.bundle import load_bundle
from vivace.cachedir import default_cache_dir
from vivace.data.caching.cache import open_cache
from vivace.data.sources import open_source
from vivace.metrics.calibration import negative_log_likelihood
from vivace.metrics.summary import evaluate_probs
from vivace.models.normalize import Normalize
from vivace.training.execution import ExecutionConfig
from vivace.training.loop import session as build
from vivace.training.loop.session import Session
from vivace.training.result import TrainResult
from vivace.training.techniques.calibrate import MIN_IMAGES, calibrated


class Squashed(nn.Module):
    """Its logits are not linear in the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)).tanh()


def unsure(model: nn.Module, num_images: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Images, what the network says of them, and labels that agree with it more often than it is sure."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, 2, 2, generator=generator)
    with torch.no_grad():
        logits = model.eval()(images)
    return images, logits, torch.multinomial((8 * logits).softmax(1), 1, generator=generator)[:, 0]


def test_a_copy_is_calibrated_and_the_network_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, logits, labels = unsure(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scaled, temperature = calibrated(model, logits, labels, images[:8])
    assert temperature == pytest.approx(1 / 8, rel=0.2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        probs = scaled(images).softmax(1).numpy()
    assert negative_log_likelihood(probs, labels) < negative_log_likelihood(logits.softmax(1).numpy(), labels)
    assert np.array_equal(probs.argmax(1), logits.argmax(1).numpy())


def test_a_network_that_can_not_be_scaled_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = Squashed()
    images, logits, labels = unsure(model)
    assert calibrated(model, logits, labels, images[:8]) == (model, None)


def test_few_images_and_broken_logits_calibrate_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, logits, labels = unsure(model)
    few = MIN_IMAGES - 1
    assert calibrated(model, logits[:few], labels[:few], images[:8]) == (model, None)
    logits[3, 1] = float("nan")
    assert calibrated(model, logits, labels, images[:8]) == (model, None)


def test_fast_gives_probabilities_that_mean_what_they_say(tmp_path: Path) -> None:
    result = vivace.train(
        "digits", run=tmp_path / "run", epochs=4, tune=False, quiet=True, overrides={"threads": 1, "precision": "fp32"}
    )
    assert result.temperature is not None
    assert result.temperature < 1  # smoothed labels make unsure
    bundle = load_bundle(result.bundle)
    assert bundle.info.temperature == result.temperature
    cache = open_cache(open_source("digits"), bundle.preprocess, cache_dir=default_cache_dir())
    test = cache.splits["test"]
    normalize = Normalize(bundle.preprocess.mean, bundle.preprocess.std)
    with torch.no_grad():
        logits = bundle.build_model()(normalize(torch.from_numpy(np.array(test.images_NHWC)).permute(0, 3, 1, 2)))
    # on images that chose nothing, against the probabilities that training ended with
    before, after = (
        evaluate_probs(some.softmax(1).numpy(), test.labels_N, cache.classes)
        for some in (logits * result.temperature, logits)
    )
    assert after.top1 == before.top1 == result.test_top1
    assert after.nll < 0.5 * before.nll
    assert after.ece < 0.3 * before.ece


def test_a_run_that_is_extended_goes_on_from_what_training_ended_with(
    make_folder: Callable[..., Path], tiny_yaml: Path, tmp_path: Path
) -> None:
    data = make_folder(per_class=160)  # a quarter of it validates: enough to calibrate on

    def run(name: str, epochs: int, **options: Any) -> TrainResult:
        return vivace.train(data, run=tmp_path / name, epochs=epochs, tune=False, quiet=True, **options)

    run("plain", 1, recipe=tiny_yaml)
    fitted = run("fitted", 1, recipe=tiny_yaml, overrides={"calibrate": True})
    assert fitted.temperature is not None
    plain = run("plain", 2, resume=True)
    fitted = run("fitted", 2, resume=True, overrides={"calibrate": False})
    assert fitted.temperature is None
    assert_same_weights(plain, fitted)


@pytest.mark.parametrize("early_stopping", [None, 1])
def test_the_temperature_is_that_of_the_weights_in_the_bundle(
    run_tiny: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch, early_stopping: int | None
) -> None:
    calibrate, said = Session.calibrated, []
    monkeypatch.setattr(build, "calibrated", lambda model, logits, *_: (said.append(logits), (model, None))[1])

    def compared(session: Session, model: nn.Module, execution: ExecutionConfig) -> tuple[nn.Module, float | None]:
        found = calibrate(session, model, execution)
        fresh, _ = session.logits_of_split(model, execution, "val")
        said.append(fresh)
        return found

    monkeypatch.setattr(Session, "calibrated", compared)
    result = run_tiny(
        changes={"calibrate": True, "early_stopping": early_stopping, "epochs": 3 if early_stopping is None else 50}
    )
    # stopped after an epoch that was worse than the one that is kept
    assert early_stopping is None or result.epochs < 50
    used, fresh = said
    assert torch.equal(used, fresh)
