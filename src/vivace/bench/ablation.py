"""What each technique of a recipe is worth: switched off one at a time, in time and in accuracy (no torch here)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.config import from_yaml, to_dict
from vivace.errors import ConfigError, nearest
from vivace.statistics.intervals import paired_gain, paired_ratio
from vivace.training.execution import AUTO, OPTIONS, Ablation, ExecutionOption
from vivace.training.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.train import train

if TYPE_CHECKING:
    from vivace.data.place import AnyData

__all__ = ["TECHNIQUES", "AblationReport", "AblationRow", "Technique", "measure_ablation", "techniques_of"]


@dataclass(frozen=True)
class Technique:
    """A technique, and what to set in a recipe to do without it."""

    name: str
    about: str
    is_on: Callable[[Recipe], bool]
    off: Mapping[str, Any]


def _argument(networks: tuple[str, ...], name: str, wanted: Any, default: Any) -> Callable[[Recipe], bool]:
    """Whether a recipe trains one of these networks with this argument."""
    return lambda r: r.model.name in networks and r.model.arguments.get(name, default) == wanted


def _uses_fewer_steps(recipe: Recipe) -> bool:
    options = recipe.optimizer.options
    return recipe.optimizer.name == "muon" and int(options.get("ns_steps", MUON_STEPS)) < USUAL_STEPS


# Newton–Schulz steps of our Muon, and those of its authors
MUON_STEPS, USUAL_STEPS = 3, 5


def _of_execution(option: ExecutionOption, ablation: Ablation) -> Technique:
    """The technique of an option of how a step is computed."""
    return Technique(
        ablation.name,
        ablation.about,
        lambda recipe: getattr(recipe, option.field) not in (option.plain, AUTO),
        {option.field: option.plain},
    )


TECHNIQUES = (
    *(_of_execution(option, option.ablation) for option in OPTIONS if option.ablation is not None),
    Technique(
        "growing images",
        "small images at the start of training",
        lambda r: r.augment.start_size is not None,
        {"augment.start_size": None},
    ),
    Technique(
        "hard images",
        "epochs in the middle of the run made of the images with the highest loss",
        lambda r: r.focus.share < 1,
        {"focus.share": 1.0},
    ),
    Technique(
        "late freezing",
        "the first layers learn no more from some time on",
        lambda r: bool(r.freeze_after),
        {"freeze_after": []},
    ),
    Technique(
        "whitening",
        "a frozen first layer made from the images for a learnt one",
        _argument(("fast_cnn",), "whitening", True, True),
        {"model.arguments.whitening": False},
    ),
    Technique(
        "identity start",
        "convolutions that pass their input on at first, for random filters",
        _argument(("fast_cnn",), "identity", True, True),
        {"model.arguments.identity": False},
    ),
    Technique(
        "ReLU",
        "for SiLU",
        _argument(("fast_cnn", "fast_photo"), "activation", "relu", "silu"),
        {"model.arguments.activation": "silu"},
    ),
    Technique(
        "Muon", "Muon for SGD at its usual rate", lambda r: r.optimizer.name == "muon", {"optimizer.name": "sgd"}
    ),
    Technique("few Muon steps", "3 of Newton–Schulz for 5", _uses_fewer_steps, {"optimizer.options.ns_steps": 5}),
    Technique(
        "normalised filters",
        "each convolution's weights brought to a fixed norm",
        lambda r: bool(r.optimizer.options.get("normalize_filters")),
        {"optimizer.options.normalize_filters": False},
    ),
    Technique(
        "norm bias rate",
        "a higher one than that of the others",
        lambda r: r.optimizer.bias_lr_factor > 1,
        {"optimizer.bias_lr_factor": 1.0},
    ),
    Technique(
        "schedule",
        "a rate that rises and falls for a constant one",
        lambda r: r.schedule.name != "constant",
        {"schedule.name": "constant", "schedule.warmup": 0.0},
    ),
    Technique("flips", "mirrored images", lambda r: r.augment.flip != "none", {"augment.flip": "none"}),
    Technique(
        "alternating flips",
        "each image the other way round every epoch, for a coin",
        lambda r: r.augment.flip == "alternating",
        {"augment.flip": "random"},
    ),
    Technique("shifts", "shifted images", lambda r: r.augment.translate > 0, {"augment.translate": 0}),
    Technique(
        "crops",
        "random-resized crops for whole images",
        lambda r: r.augment.random_resized_crop is not None,
        {"augment.random_resized_crop": None},
    ),
    Technique("cutout", "blanked squares", lambda r: r.augment.cutout > 0, {"augment.cutout": 0}),
    Technique(
        "label smoothing", "softened targets", lambda r: r.loss.label_smoothing > 0, {"loss.label_smoothing": 0.0}
    ),
    Technique(
        "self-distillation",
        "targets that hold what the network last said of an image",
        lambda r: r.loss.self_distillation > 0,
        {"loss.self_distillation": 0.0},
    ),
    Technique("weight decay", "", lambda r: r.optimizer.weight_decay > 0, {"optimizer.weight_decay": 0.0}),
    Technique("moving average", "of the weights", lambda r: r.ema_decay is not None, {"ema_decay": None}),
)


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


def techniques_of(recipe: Recipe, names: Sequence[str] = ()) -> list[Technique]:
    """The techniques that are on in a resolved recipe; with names, these alone. Raises ConfigError for others."""
    known = _known(names)
    for name in names:
        if not known[name].is_on(recipe):
            on = ", ".join(technique.name for technique in TECHNIQUES if technique.is_on(recipe))
            raise ConfigError(f"the recipe does not use {name!r}: there is nothing to switch off. It uses: {on}.")
    return [technique for technique in TECHNIQUES if technique.is_on(recipe) and (not names or technique.name in names)]


def _known(names: Sequence[str]) -> dict[str, Technique]:
    """All techniques by name. Raises ConfigError if one of `names` is not among them."""
    known = {technique.name: technique for technique in TECHNIQUES}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"the technique is unknown: got {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
            )
    return known


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
    The test split is looked at by none of the comparisons. Raises ConfigError for an unknown technique or no seed.
    """
    if seeds < 1:
        raise ConfigError(f"`seeds` is out of range: got {seeds}. Give 1 or more.")
    # before the first run, which may take an hour
    _known(techniques)

    def run(name: str, base: str | Path | Recipe, changes: Mapping[str, Any], seed: int, tune: bool) -> TrainResult:
        result = train(
            data,
            base,
            epochs=epochs,
            overrides={**(overrides or {}), **changes, "seed": seed},
            run=out / f"{name.replace(' ', '-').lower()}-{seed}",
            device=device,
            tune=tune,
            cache_dir=cache_dir,
            quiet=True,
        )
        on_run(name, seed, result)
        return result

    first = run("all on", recipe, {}, 0, True)
    resolved = from_yaml(Recipe, first.run / "recipe.yaml")
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
