"""`vivace bench ablation`: each technique switched off alone, with a receipt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from answers import last_answer
from vivace.bench import ablation as module
from vivace.bench.ablation import TECHNIQUES, measure_ablation, techniques_of
from vivace.bench.folder import free_folder
from vivace.cli import main
from vivace.config import from_yaml, override, to_yaml
from vivace.data.config import AugmentConfig, DataConfig
from vivace.errors import ConfigError, VivaceError
from vivace.models.config import ModelConfig
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.reporting.figures import ablation as draw
from vivace.statistics.intervals import student_ratio
from vivace.training.recipes.recipe import LossConfig, Recipe
from vivace.training.result import TrainResult

TINY = Recipe(
    name="tiny",
    model=ModelConfig(name="fast_cnn", arguments={"widths": [8], "depth": 1, "stride": 2}),
    data=DataConfig(size=16, val_fraction=0.25),
    augment=AugmentConfig(flip="alternating"),
    optimizer=OptimizerConfig(name="muon", lr=0.05),
    epochs=1,
    batch_size=6,
    precision="fp32",
    channels_last=False,
    compile=False,
    threads=1,
)


def test_every_technique_changes_the_recipe_that_has_it_on() -> None:
    everything = override(
        Recipe(
            model=ModelConfig(name="fast_cnn", arguments={"activation": "relu"}),
            augment=AugmentConfig(
                random_resized_crop=(0.4, 1.0),
                translate=2,
                flip="alternating",
                trivial_augment=True,
                color_jitter=0.2,
                mix="augmix",
                cutout=4,
                start_size=16,
            ),
            optimizer=OptimizerConfig(
                name="muon",
                weight_decay=0.1,
                bias_lr_factor=16,
                sam=0.5,
                sam_adaptive=True,
                options={"normalize_filters": True},
            ),
            schedule=ScheduleConfig(name="cosine", warmup=0.1),
            loss=LossConfig(name="symmetric", label_smoothing=0.1, self_distillation=0.5),
        ),
        {
            "precision": "bf16",
            "tile_gradients": True,
            "winograd": True,
            "fuse_norms": True,
            "channels_last": True,
            "compile": True,
            "ema_decay": 0.9,
            "freeze_after": [0.5],
            "focus.share": 0.5,
        },
    )
    # what looks at one image at a time can not go with mixtures of two: these are in a recipe of their own
    mixed = override(
        everything, {"loss.self_distillation": 0.0, "focus.share": 1.0, "augment.mixup": 0.2, "augment.cutmix": 1.0}
    )
    with_one_of_them = [everything if technique.is_on(everything) else mixed for technique in TECHNIQUES]
    assert techniques_of(everything) + techniques_of(mixed, ["mixup", "cutmix"]) == sorted(
        TECHNIQUES, key=lambda technique: technique.name in ("mixup", "cutmix")
    )
    for technique, recipe in zip(TECHNIQUES, with_one_of_them, strict=True):
        changed = override(recipe, technique.off)
        assert changed != recipe
        # an alternating flip becomes a coin: that is another technique's matter
        assert not technique.is_on(changed)
    bare = override(Recipe(), {"precision": "fp32"})
    assert techniques_of(bare) == []


def test_an_unknown_technique_and_one_that_is_off_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'Muon'"):
        techniques_of(TINY, ["muon"])
    # before any data are opened
    with pytest.raises(ConfigError, match="Did you mean 'Muon'"):
        measure_ablation("no such data", TINY, out=Path("out"), techniques=["muon"])
    with pytest.raises(
        ConfigError,
        match=r"does not use 'cutout'.*It uses: whitening, identity start, Muon, .*flips, alternating flips",
    ):
        techniques_of(TINY, ["cutout"])
    with pytest.raises(ConfigError, match="`seeds` is out of range: got 0"):
        measure_ablation("nowhere", TINY, out=Path("x"), seeds=0)


def test_receipts_pair_the_runs_by_seed_in_alternating_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs: list[tuple[str, int]] = []
    # what a run gives: seconds and accuracy by technique, the seed adding to both
    facts = {"all-on": (10.0, 0.8), "muon": (9.0, 0.7), "flips": (10.0, 0.79)}

    def train(data: str, recipe: Any, *, run: Path, overrides: dict[str, Any], tune: bool, **options: Any) -> Any:
        name, _, seed = run.name.rpartition("-")
        runs.append((name, int(seed)))
        assert overrides["seed"] == int(seed)
        # the trial is made once
        assert tune == (len(runs) == 1)
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(to_yaml(TINY))
        seconds, top1 = facts[name]
        return TrainResult(
            bundle=run / "bundle",
            run=run,
            val_top1=top1 + 0.01 * int(seed) + (0.002 * int(seed) if name == "flips" else 0),
            test_top1=None,
            epochs=1,
            train_seconds=seconds + int(seed),
            total_seconds=20,
            num_images_seen=10,
        )

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "planned_recipe", lambda *given, **options: TINY)
    report = measure_ablation("data", "fast", out=tmp_path, seeds=3, techniques=["Muon", "flips"])
    assert runs == [
        *[("all-on", 0), ("muon", 0), ("flips", 0)],
        *[("flips", 1), ("muon", 1), ("all-on", 1)],
        *[("all-on", 2), ("muon", 2), ("flips", 2)],
    ]
    muon, flips = report.rows
    assert (muon.name, muon.n) == ("Muon", 3)
    # 9 / 10, 10 / 11, 11 / 12, paired by seed
    ratios = [0.9, 10 / 11, 11 / 12]
    assert (muon.speedup, muon.speedup_low, muon.speedup_high) == pytest.approx(student_ratio(ratios))
    assert muon.gain == pytest.approx(0.1)
    assert muon.gain_low == pytest.approx(0.1)
    # 0.010, 0.008, 0.006: mean 0.008, standard deviation 0.002, t of two degrees of freedom
    assert flips.gain == pytest.approx(0.008)
    assert flips.gain_high == pytest.approx(0.008 + 4.303 * 0.002 / 3**0.5)
    assert "| **Muon**" in report.markdown()
    assert "+10.00 [+10.00, +10.00]" in report.markdown()


def test_the_command_measures_on_real_runs(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(to_yaml(TINY))
    options = ["bench", "ablation", str(make_folder()), "--config", str(config), "--seeds", "2", "--out", str(out)]
    options += ["--technique", "flips", "--json", "--cache-dir", str(tmp_path / "cache")]
    assert main(options) == 0
    told = capsys.readouterr()
    result = last_answer(told.out)
    assert [row["name"] for row in result["rows"]] == ["flips"]
    assert result["rows"][0]["n"] == 2
    written = json.loads((out / "ablation.json").read_text())
    assert {key: result[key] for key in written} == written
    assert len([line for line in told.err.splitlines() if " seed " in line]) == 4
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    with_it, without = (from_yaml(Recipe, out / name / "recipe.yaml") for name in ("all-on-1", "flips-1"))
    # the recipe with one field changed, and nothing else
    assert without == dataclasses.replace(with_it, augment=dataclasses.replace(with_it.augment, flip="none"))
    # a second time into the same folder would mix the two
    assert main(options) == 2
    assert f"--out holds runs of an earlier ablation: {out} has ablation.json" in capsys.readouterr().err
    (out / "notes.txt").write_text("mine")
    assert main(options) == 2
    assert "--out holds something other than a bundle or a deployment" in capsys.readouterr().err


def test_what_can_be_known_is_refused_before_training(
    make_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(TINY))
    options = ["bench", "ablation", str(make_folder()), "--config", str(config), "--technique"]
    assert main([*options, "cutout"]) == 2
    assert "the recipe does not use 'cutout'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_the_trial_alone_decides_fails_after_it_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undecided = override(TINY, {"tile_gradients": "auto"})
    runs: list[Path] = []

    def train(data: str, recipe: Any, *, run: Path, **options: Any) -> Any:
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(to_yaml(override(undecided, {"tile_gradients": False})))
        runs.append(run)
        return TrainResult(
            bundle=run,
            run=run,
            val_top1=0.5,
            test_top1=None,
            epochs=1,
            train_seconds=1,
            total_seconds=1,
            num_images_seen=1,
        )

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "planned_recipe", lambda *given, **options: undecided)
    with pytest.raises(VivaceError, match=r"first run did not use 'tiled gradients': .*tile_gradients: true") as raised:
        measure_ablation("data", TINY, out=tmp_path, techniques=["tiled gradients"])
    assert raised.value.exit_status == 1
    assert len(runs) == 1


def test_without_out_each_ablation_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_folder(None) == Path("runs/ablation")
    (tmp_path / "runs/ablation/all-on-0").mkdir(parents=True)
    assert free_folder(None) == Path("runs/ablation-2")
    (tmp_path / "runs/ablation/all-on-0/recipe.yaml").write_text("name: tiny")
    with pytest.raises(ConfigError, match=r"`out` holds runs of an earlier ablation: .*all-on-0"):
        free_folder(Path("runs/ablation"))


def test_the_figure_shows_rows_without_intervals_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {"name": "a $technique", "n": 1, "speedup": 1.2, "speedup_low": None, "speedup_high": None}
    draw([{**row, "gain": 0.01, "gain_low": None, "gain_high": None}], tmp_path / "ablation.png")
    draw([], tmp_path / "empty.png")
    assert (tmp_path / "ablation.png").stat().st_size > 5000
