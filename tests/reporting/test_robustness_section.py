"""The report shows what corruptions and attacks left, of this bundle alone, and calls an upper bound one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factories import make_bundle
from reports import HOSTILE, make_sources
from vivace.bundle import load_bundle
from vivace.cli import main
from vivace.evaluation.evaluate import evaluate
from vivace.evaluation.kept import keep, kept_beside, kept_of
from vivace.files import write_json
from vivace.reporting.page.about import page_of
from vivace.reporting.page.render import render, sections_of

CLASSES = ("cat", "dog")


def scored(value: float) -> dict[str, float]:
    return {"accuracy": value, "low": value - 0.02, "high": value + 0.02}


def make_kept(**attack: Any) -> dict[str, Any]:
    """robustness.json of a bundle."""
    return {
        "corruptions": {
            "split": "test",
            "num_images": 1000,
            "constants": "CIFAR-10-C",
            "clean": scored(0.9),
            "mean": scored(0.61),
            "families": {"noise": scored(0.5), "blur": scored(0.7)},
            "cells": {"gaussian_noise": [0.8, 0.7, 0.6, 0.5, 0.4], "fog": [0.9, 0.8, 0.7, 0.6, 0.5]},
            "left_out": ["frost"],
        },
        "attack": {
            "split": "test",
            "num_images": 500,
            "threat": "linf:8/255",
            "clean": scored(0.9),
            "robust": scored(0.41),
            "is_standard": True,
            "attacks": [{"name": "pgd", "robust_so_far": 0.47}, {"name": "square", "robust_so_far": 0.41}],
            "deployed": None,
            "deployed_as": "eager fp32",
            "warnings": [],
            **attack,
        },
    }


def html_of(kept: dict[str, Any], lang: str = "en") -> str:
    return render(page_of(make_sources(CLASSES, robustness=kept)), lang=lang).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("lang", "texts"),
    [
        ("en", ("Under corruptions and attacks", "41.0 % of the images are still right", "39.0 % to 43.0 %", "noise")),
        ("zh", ("图像损坏与攻击", "仍有 41.0 % 的图像正确", "39.0 % 至 43.0 %", "噪声")),
    ],
)
def test_it_says_what_was_measured(lang: str, texts: tuple[str, ...]) -> None:
    html = html_of(make_kept(), lang)
    for text in (*texts, "gaussian noise", "CIFAR-10-C", "frost", "linf:8/255", "61.0 %"):
        assert text in html
    assert "upper bound, not the robustness" not in html
    assert "--corruptions" not in html


def test_an_incomplete_suite_is_called_an_upper_bound() -> None:
    html = html_of(make_kept(is_standard=False, warnings=["gradients may be masked: <b>"], deployed=scored(0.55)))
    assert "At most 41.0 % of the images are still right. This is an upper bound, not the robustness" in html
    assert "gradients may be masked: &lt;b&gt;" in html
    assert "55.0 %" in html
    steps = [{"name": "pgd", "robust_so_far": 0.47}, {"name": "square", "robust_so_far": 0.47, "is_complete": False}]
    html = html_of(make_kept(is_standard=False, attacks=steps))
    assert ">pgd<" in html
    assert ">square<" not in html


def test_what_was_not_measured_is_named_with_its_command() -> None:
    page = page_of(make_sources(CLASSES))
    assert "robustness" not in sections_of(page)
    missing = dict(page.not_measured)
    assert missing["corruptions"].endswith("DATA --corruptions")
    assert missing["attack"].endswith("DATA --attack linf:8/255")


def test_more_right_answers_under_attack_than_without_one_make_no_sense() -> None:
    kept = make_kept()
    kept["attack"]["robust"] = {**kept["attack"]["clean"], "accuracy": 1.0}
    assert kept["attack"]["clean"]["accuracy"] < 1
    assert page_of(make_sources(CLASSES, robustness=kept)).attacked is None


@pytest.mark.parametrize("junk", [*HOSTILE[:4], None, -1, 1e99, [], {}, {"accuracy": "1"}, [["x"]]])
def test_what_makes_no_sense_is_left_out(junk: Any) -> None:
    for part in ("corruptions", "attack"):
        for key in make_kept()[part]:
            kept = make_kept()
            kept[part][key] = junk
            assert "<script>document" not in html_of(kept)
    assert "robustness" not in sections_of(
        page_of(make_sources(CLASSES, robustness={"corruptions": junk, "attack": junk}))
    )


def test_results_are_kept_beside_the_bundle_and_belong_to_it_alone(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = make_folder(per_class=2), load_bundle(make_bundle(tmp_path / "net").folder)
    options = ["--device", "cpu", "--quiet"]
    assert main(["evaluate", str(bundle.folder), str(folder), *options]) == 0
    assert kept_of(bundle) == {}
    assert (
        main(["evaluate", str(bundle.folder), str(folder), *options, "--corruptions", "--corruption-images", "3"]) == 0
    )
    assert str(tmp_path / "net-robustness.json") in capsys.readouterr().out
    # an attack is added to what is there
    attacked = evaluate(bundle, folder, device="cpu", attack="linf:1/255", attack_methods=["fgsm"])
    assert keep(bundle, attacked) == kept_beside(bundle)
    kept = kept_of(bundle)
    assert (kept["corruptions"]["num_images"], kept["attack"]["threat"]) == (3, "linf:1/255")
    # another network of that name has none of it
    other = make_bundle(tmp_path / "net", "simple_cnn")
    assert kept_of(load_bundle(other.folder)) == {}
    assert keep(load_bundle(other.folder), attacked) == kept_beside(bundle)
    assert kept_of(load_bundle(other.folder))["corruptions"] is None


def test_a_file_of_somebody_else_stays_and_the_results_are_printed(
    tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = make_folder(per_class=2), make_bundle(tmp_path / "net")
    write_json(tmp_path / "net-robustness.json", {"mine": 1})
    before = (tmp_path / "net-robustness.json").read_bytes()
    options = ["--device", "cpu", "--quiet", "--attack", "linf:1/255", "--attack-methods", "fgsm"]
    assert main(["evaluate", str(bundle.folder), str(folder), *options]) == 0
    captured = capsys.readouterr()
    assert "robust, at most" in captured.out
    assert "the results are not kept for the report" in captured.err
    assert (tmp_path / "net-robustness.json").read_bytes() == before
