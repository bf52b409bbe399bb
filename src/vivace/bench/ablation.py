"""What each technique of a recipe is worth: switched off one at a time, in time and in accuracy (no torch here)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.bench.folder import folder_name
from vivace.bench.techniques import TECHNIQUES, Technique, known_techniques, techniques_of, unused
from vivace.config import from_yaml, to_dict
from vivace.errors import ConfigError, VivaceError
from vivace.statistics.intervals import paired_gain, paired_ratio
from vivace.training.recipes.keywords import recipe_changes
from vivace.training.recipes.named import read_recipe
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.train import planned_recipe, train

if TYPE_CHECKING:
    from vivace.data.place import AnyData

__all__ = [
    "TECHNIQUES",
    "AblationReport",
    "AblationRow",
    "Technique",
    "measure_ablation",
    "techniques_of",
]


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """A technique's receipt. Accuracies are fractions; a gain above 0 says that the technique helps."""

    name: str
    about: str
    n: int
    """Runs with it and without it, one of each for a seed."""
    speedup: float
    """Time of the loop without the technique over time with it, geometric mean; above 1 it saves time."""
    speedup_low: float | None
    speedup_high: float | None
    """Bounds of the 95 % interval of Student's t over the seeds, on the scale of logarithms; None with one seed."""
    gain: float
    """Mean validation accuracy with the technique less that without it."""
    gain_low: float | None
    gain_high: float | None
    """Bounds of the 95 % interval of Student's t over the seeds; None with one seed."""


@dataclass(frozen=True, kw_only=True)
class AblationReport:
    """All receipts, the recipe that they are about, and the runs behind them."""

    data: str
    recipe: Mapping[str, Any]
    """The resolved recipe with every technique on."""
    rows: tuple[AblationRow, ...]
    runs: Mapping[str, Sequence[Mapping[str, float]]]
    """By technique, "all on" among them: train_seconds and val_top1 of each seed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)

    def markdown(self) -> str:
        """The receipts as a table."""
        base = self.runs["all on"]
        seconds, top1 = (statistics.median(run[key] for run in base) for key in ("train_seconds", "val_top1"))
        lines = [
            f"# What each technique is worth on {self.data}",
            "",
            f"All on: {100 * top1:.2f} % validation accuracy, {seconds:.1f} s training (medians, n = {len(base)}). "
            "Each technique was switched off alone. Intervals are 95 %, Student's t over the seeds.",
            "",
            "| technique | time without it / with it | accuracy gained, points | n |",
            "| --- | --- | --- | --- |",
        ]
        for row in self.rows:
            speed, gain = f"{row.speedup:.2f}", f"{100 * row.gain:+.2f}"
            if row.speedup_low is not None and row.speedup_high is not None:
                speed += f" [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"
            if row.gain_low is not None and row.gain_high is not None:
                gain += f" [{100 * row.gain_low:+.2f}, {100 * row.gain_high:+.2f}]"
            about = f": {row.about}" if row.about else ""
            lines.append(f"| **{row.name}**{about} | {speed} | {gain} | {row.n} |")
        return "\n".join(lines) + "\n"


def measure_ablation(
    data: AnyData,
    recipe: str | Path | Recipe = "fast",
    *,
    out: Path,
    epochs: int | None = None,
    seeds: int = 3,
    techniques: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    cache_dir: Path | None = None,
    on_run: Callable[[str, int, TrainResult], None] = lambda name, seed, result: None,
) -> AblationReport:
    """Train with everything on and with each technique off, once per seed, and compare time and validation accuracy.

    The order of the runs turns round from seed to seed. What the machine decides (precision, memory format) is measured
    once, in the first run, and the same for all. out: folder for the runs, a subfolder each. on_run: told each result.
    The test split is looked at by none of the comparisons. Raises ConfigError for an unknown technique, one that
    the recipe does not use, or no seed; VivaceError after the first run if its trial decided against a technique.
    """
    if seeds < 1:
        raise ConfigError(f"`seeds` is out of range: got {seeds}. Give 1 or more.")
    # before the first run, which may take an hour
    known = known_techniques(techniques)
    recipe = read_recipe(recipe)
    if techniques:
        asked = {**recipe_changes({}, overrides), **({} if epochs is None else {"epochs": epochs}), "seed": 0}
        planned = planned_recipe(data, recipe, asked, cache_dir=cache_dir)
        for name in techniques:
            if not known[name].may_be_on(planned):
                raise unused(name, planned)

    def run(name: str, base: str | Path | Recipe, changes: Mapping[str, Any], seed: int, tune: bool) -> TrainResult:
        result = train(
            data,
            base,
            epochs=epochs,
            overrides={**(overrides or {}), **changes, "seed": seed},
            run=out / f"{folder_name(name)}-{seed}",
            device=device,
            tune=tune,
            cache_dir=cache_dir,
            quiet=True,
        )
        if result.val_map is not None:
            raise VivaceError(
                f"an ablation compares accuracies of one class an image, and images of {data} have sets of "
                f"labels. Compare the mAP of your own runs. The run is {result.run}."
            )
        on_run(name, seed, result)
        return result

    first = run("all on", recipe, {}, 0, True)
    resolved = from_yaml(Recipe, first.run / "recipe.yaml")
    for name in techniques:
        if not known[name].is_on(resolved):
            raise VivaceError(
                f"on this machine the first run did not use {name!r}: the trial decides about it, and found it "
                f"no faster. Give another technique, or a recipe with {known[name].decided_by}: true. "
                f"The run is {first.run}."
            )
    chosen = techniques_of(resolved, techniques)
    results: dict[str, list[TrainResult]] = {"all on": [first], **{technique.name: [] for technique in chosen}}
    for seed in range(seeds):
        order = [("all on", {}), *((technique.name, technique.off) for technique in chosen)]
        for name, off in order if seed % 2 == 0 else order[::-1]:
            if (name, seed) != ("all on", 0):
                results[name].append(run(name, resolved, off, seed, False))
    base = results.pop("all on")
    return AblationReport(
        data=str(data),
        recipe=to_dict(resolved),
        rows=tuple(_row(technique, base, results[technique.name]) for technique in chosen),
        runs={
            name: [{"train_seconds": r.train_seconds, "val_top1": r.val_top1} for r in runs]
            for name, runs in {"all on": base, **results}.items()
        },
    )


def _row(technique: Technique, with_it: Sequence[TrainResult], without: Sequence[TrainResult]) -> AblationRow:
    speedup, speedup_low, speedup_high = paired_ratio(
        [run.train_seconds for run in without], [run.train_seconds for run in with_it]
    )
    gain, gain_low, gain_high = paired_gain([run.val_top1 for run in without], [run.val_top1 for run in with_it])
    return AblationRow(
        name=technique.name,
        about=technique.about,
        n=len(with_it),
        speedup=speedup,
        speedup_low=speedup_low,
        speedup_high=speedup_high,
        gain=gain,
        gain_low=gain_low,
        gain_high=gain_high,
    )
