"""Drift of live answers: what is watched, where it is said, and that trials are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Client, answering, as_png

from factories import pixels
from vivace.bundle import Bundle, load_bundle, save_bundle
from vivace.serving.drift import RATE, DriftMonitor, watch_for
from vivace.serving.metrics import Meters
from vivace.uncertainty.validated import Validated

CLASSES = ("blue", "green", "red")


def answers(count: int, classes_K: list[float], *, sure: float, seed: int = 0) -> np.ndarray:
    """Probabilities [count, 3] of images of these classes; sure: the exponent of confidences, higher: more sure."""
    rng = np.random.default_rng(seed)
    confidence_N = 0.4 + 0.6 * rng.random(count) ** (1 / sure)
    probs_NK = np.repeat((1 - confidence_N[:, None]) / 2, 3, 1)
    probs_NK[np.arange(count), rng.choice(3, count, p=classes_K)] = confidence_N
    return probs_NK.astype(np.float32)


def monitor(told: list[Any], *, meters: Meters | None = None, num_validation: int = 1_000) -> DriftMonitor:
    found = Validated.of(answers(num_validation, [0.5, 0.3, 0.2], sure=4, seed=1), variant="v", images="images")
    return DriftMonitor(found, CLASSES, (meters or Meters()).of_drift("one"), told.append)


def test_traffic_without_drift_raises_no_more_alarms_than_stated() -> None:
    alarms: list[Any] = []
    for seed in range(60):
        one = monitor(alarms, num_validation=200)
        for part in range(6):
            one.observe(answers(100, [0.5, 0.3, 0.2], sure=4, seed=1000 + 10 * seed + part))
            one.describe()
    # 1 % of servers; with a probability of 0.1 % more than 4
    assert RATE == 0.01
    assert len(alarms) <= 4


@pytest.mark.parametrize(
    ("classes_K", "sure", "what"),
    [([0.1, 0.2, 0.7], 4.0, CLASSES), ([0.5, 0.3, 0.2], 1.0, ("confidence",))],
)
def test_drift_is_said_once_with_what_has_changed(classes_K: list[float], sure: float, what: tuple[str, ...]) -> None:
    alarms: list[Any] = []
    meters = Meters()
    one = monitor(alarms, meters=meters)
    one.observe(answers(2_000, [0.5, 0.3, 0.2], sure=4, seed=2))
    assert alarms == []
    assert one.describe()["alarm"] is False
    one.observe(answers(300, classes_K, sure=sure, seed=3))
    (told,) = alarms
    assert told["alarm"] is True
    assert 2_000 < told["alarm_at_image"] <= 2_300
    strongest = told["window"]["strongest"]
    assert strongest["what"].startswith(what)
    assert (strongest["live"] > strongest["validation"]) == strongest["more"]
    assert told["window"]["images"] == 50
    # it stays, with traffic as it was too
    one.observe(answers(500, [0.5, 0.3, 0.2], sure=4, seed=4))
    assert one.describe()["alarm"] is True
    assert len(alarms) == 1
    text = meters.text().decode()
    assert 'vivace_drift_alarm{bundle="one"} 1.0' in text
    assert 'vivace_drift_images_total{bundle="one"} 2800.0' in text


@pytest.fixture
def watched(folder: Path, tmp_path: Path) -> Bundle:
    """The bundle with a record of validation images that were all sure to be of its first class."""
    probs_NK = np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (400, 1))
    found = Validated.of(probs_NK, variant="eager fp32", images="validation images")
    bundle = load_bundle(folder)
    return save_bundle(tmp_path / "watched", bundle.build_model(), bundle.info, validated=found)


def test_the_server_says_what_it_watches_and_leaves_trials_out(watched: Bundle) -> None:
    with answering({"one": watched.folder}) as client:

        def drift() -> dict[str, Any]:
            told: dict[str, Any] = client.get("/bundles").json()["bundles"][0]["drift"]
            return told

        image = as_png(pixels(1, 32)[0])
        assert drift() == {
            "watched": True,
            "alarm": False,
            "alarm_at_image": None,
            "images": 0,
            "evidence": pytest.approx(1.0),
            "alarm_from": 200.0,
            "false_alarm_rate": 0.01,
            "validation_images": 400,
            "validated": "validation images, eager fp32",
            "window": None,
        }
        for _ in range(3):
            assert client.post("/predict?live=false", content=image).status_code == 200
        assert drift()["images"] == 0
        refused = client.post("/predict?live=perhaps", content=image)
        assert (refused.status_code, refused.json()["code"]) == (422, "live")
        # every protocol counts; what is unlike validation is seen within a few images
        for number in range(16):
            client.post(("/predict", "/models/one")[number % 2], content=image)
        told = drift()
        assert (told["images"], told["alarm"]) == (16, True)
        assert told["window"]["images"] == 16
        (line,) = [line for line in client.log() if line["event"] == "drift"]
        assert (line["bundle"], line["level"], line["alarm"]) == ("one", "warning", True)
        assert 'vivace_drift_alarm{bundle="one"} 1.0' in client.get("/metrics").text
        # opened anew it begins anew
        assert client.run(client.app.reload())
        assert drift()["alarm"] is False


def test_a_bundle_that_says_nothing_of_validation_is_served_and_says_so_in_one_line(client: Client) -> None:
    told = client.get("/bundles").json()["bundles"][0]["drift"]
    assert told["watched"] is False
    assert "does not say what its answers to validation images were" in told["reason"]
    assert [line["event"] for line in client.log()].count("drift_not_watched") == 1


def test_a_record_that_is_damaged_is_no_reason_not_to_serve(watched: Bundle) -> None:
    told: Callable[..., None] = lambda *_: None  # noqa: E731
    opened = dataclasses.replace(watched, info=dataclasses.replace(watched.info, classes=("one", "two")))
    found = watch_for(opened, Meters().of_drift("one"), told)
    assert found.describe()["watched"] is False
    assert "is wrong" in found.describe()["reason"]
