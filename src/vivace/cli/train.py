"""Train a classifier on DATA and write its bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from vivace.cli.answers import print_json
from vivace.cli.common import parse_assignments
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options
from vivace.cli.runs import few_digits
from vivace.errors import MissingExtra
from vivace.training.recipes.keywords import FIELDS, OPENING, TrainKeywords

if TYPE_CHECKING:
    from vivace.training.result import TrainResult

# parameters whose option has another name: "from" is a word of Python's
PARAMETERS = {"start_from": "--from", "model.start_from": "--from"}


@verb_options
class Network:
    """What is trained, and how."""

    recipe: Literal["auto", "fast", "accurate", "finetune", "private", "robust", "article"] = "auto"
    """A named recipe. auto: finetune for photos in colour if pretrained weights are on this machine, else fast.
    finetune: from pretrained weights. fast: from random weights. accurate: fast, longer. robust: against attacks within
    L∞ 8/255, at some cost of plain accuracy. private: with differential privacy. article: a plain network."""
    config: Path | None = None
    """A recipe as YAML, such as the recipe.yaml of an earlier run, in place of --recipe."""
    model: str | None = None
    """simple_cnn, fast_cnn, fast_photo, timm/NAME for any network of timm, or FILE.py:NAME for one of your own: a class
    or function in that file, which is run, that makes a torch.nn.Module. Its arguments: --set model.arguments.NAME=…"""
    pretrained: bool = False
    """Start from published weights of --model, or of the network of finetune: from an installed package or a cache,
    else downloaded."""
    from_scratch: bool = False
    """Start from random weights even if pretrained ones are on this machine: by fast, unless --recipe names another."""
    weights: Path | None = None
    """Start from a local safetensors or .pth state dict, or from a bundle's folder."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Start from a trained run or bundle: its network and preprocessing; classes are matched by their names, so that
    classes and images may have been added."""
    size: int | None = None
    """Side of the network's square input, px."""
    batch_size: int | None = None
    """Images per optimizer step."""
    optimizer: str | None = None
    """sgd, adam, adamw, muon, lamb, or any optimizer of timm."""
    lr: float | None = None
    """Peak learning rate."""
    seed: int | None = None
    """Seed of everything random."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """Any other field of the recipe, such as --set schedule.name=cosine; may be repeated. How an image becomes
    square: --set data.fit=crop, squash or pad. The largest image that is read, in pixels: --set data.max_pixels=N."""


@verb_options
class Budget:
    """How long it trains."""

    epochs: int | None = None
    """Passes over the training images. 0 with finetune: only the last layer is fitted, in seconds."""
    within: str | None = None
    """Time budget from process start to saved bundle, such as 90s, 10m, 1.5h: the schedule is planned to fit."""
    target: float | None = None
    """Stop at this validation accuracy, such as 0.9. fast plans its network and schedule to reach it soon, unless
    --epochs is given; finetune ends with the first of its stages that reaches it."""


@verb_options
class Images:
    """How images are read."""

    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    val_fraction: float | None = None
    """Fraction of the training images that is held out if there is no validation split. Default: 0.1."""
    on_bad_image: Literal["auto", "refuse", "skip"] | None = None
    """What to do with images that are corrupt, contradict each other, or are in train and in another split. Default:
    auto: leave them out (of train, where they are in another split too) and list them in left_out.csv, up to 5 %."""
    allow_leaks: bool = False
    """Continue even if training images also appear in val or test."""


@verb_options
class Run:
    """Where and how it runs."""

    run: Path | None = None
    """The run's folder. Default: runs/DATA-RECIPE, such as runs/photos-finetune."""
    resume: bool = False
    """Continue the run in --run, or the newest one on DATA that has not ended; --epochs may be larger than before."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """Precision of forward and backward passes. Default: the one that a short trial finds fastest."""
    tune: Literal["on", "off"] = "on"
    """Choose precision, memory format and so on by a short measured trial."""
    track: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TRACKER")] = ()
    """Experiment tracker to report to: mlflow, wandb or trackio (tensorboard is always written); may be repeated, or a
    list such as mlflow,wandb."""
    quiet: bool = False
    """No progress, and no line of what DATA holds unless something is left out; warnings are shown all the same."""
    json: bool = False
    """Print the result as one JSON object on the last line."""


@verb_options
class Options:
    """The options of `vivace train`."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name (digits, cifar10, …), a folder of class folders, a folder with train/ and val/ or test/,
    a manifest (.csv, .jsonl, .parquet) or an archive of a folder (.zip, .tar.*)."""
    network: Network = field(default_factory=Network)
    budget: Budget = field(default_factory=Budget)
    opening: Opening = field(default_factory=Opening)
    images: Images = field(default_factory=Images)
    execution: Run = field(default_factory=Run)


def keywords(options: Options) -> TrainKeywords:
    """The options that are keywords of `vivace.train`, and were given."""
    groups = (options.network, options.images, options.execution, options.opening)
    values = {name: value for group in groups for name, value in vars(group).items()}
    values["start_from"] = values.pop("from_")
    # a flag that was not given is not set to False: the recipe decides
    given = {
        name: values[name] for name in (*FIELDS, *OPENING) if values[name] is not None and values[name] is not False
    }
    return cast(TrainKeywords, given)


def run(options: Options) -> int:
    """Train, draw the curves, print where everything lies; 1 if a network of the user's own got no graph."""
    from vivace.hardware import process_seconds
    from vivace.verbs.train import train

    execution, budget, images = options.execution, options.budget, options.images
    result = train(
        options.data,
        options.network.config or options.network.recipe,
        epochs=budget.epochs,
        within=budget.within,
        target=budget.target,
        overrides=parse_assignments(options.network.set),
        run=execution.run,
        resume=execution.resume,
        device=execution.device,
        from_scratch=options.network.from_scratch,
        tune=execution.tune == "on",
        cache_dir=images.cache_dir,
        track=execution.track,
        quiet=execution.quiet,
        clock=process_seconds,
        **keywords(options),
    )
    curves, warnings = _draw_curves(result.run, result.saved_epoch)
    warnings = [*result.warnings, *warnings]
    status = 0 if result.no_graph is None else 1
    if execution.json:
        name = json.loads((result.run / "run.json").read_text(encoding="utf-8"))["data"]["name"]
        print_json("train", {"data": name, **result.to_dict(), "warnings": warnings})
        return status
    score = "top-1" if result.val_map is None else "mAP"
    rows: list[tuple[str, str]] = [
        (f"validation {score}", score_line(result.metrics["val"])),
        (f"test {score}", score_line(result.metrics["test"]) if "test" in result.metrics else "no test split"),
        *robust_lines(result),
        ("epochs", epochs_line(result)),
        ("time", f"{result.train_seconds:.1f} s training, {result.total_seconds:.1f} s in all"),
    ]
    if result.stopped_early is not None:
        rows.append(("stopped", result.stopped_early.removeprefix("stopped ")))
    if result.target_reached is not None:
        when = f"after {result.target_seconds:.1f} s" if result.target_seconds else "not reached"
        rows.append(("target", f"{budget.target or ''} {when}".strip()))
    if result.within_seconds is not None:
        rows.append(
            (
                "within",
                f"{result.within_seconds:.0f} s: used {100 * result.total_seconds / result.within_seconds:.1f} %",
            )
        )
    rows += [("run", str(result.run)), ("bundle", str(result.bundle)), ("curves", curves)]
    rows.append(("report", _report_line(result)))
    rows += [("warning", message) for message in warnings]
    for name, value in rows:
        print(f"{name:<17} {value}")
    return status


def robust_lines(result: TrainResult) -> list[tuple[str, str]]:
    """What adversarial training came to, and how to measure more than an upper bound; nothing of other runs."""
    from vivace.statistics.proportions import wilson_interval

    found = result.robust
    if found is None:
        return []
    low, high = wilson_interval(found.num_right, found.num_images)
    bound = f"{100 * found.accuracy:.2f} % [{100 * low:.2f}, {100 * high:.2f}] of {found.num_images:,} images"
    return [
        ("robust, at most", f"{bound}: by PGD of {found.steps} steps, {found.threat}; an upper bound"),
        ("", f"vivace evaluate {result.run} DATA --attack {found.threat} measures the robustness"),
    ]


def epochs_line(result: TrainResult) -> str:
    """How long a run trained, in epochs and images."""
    epochs, num_images = result.epochs, result.num_images_seen
    if epochs == 0 and result.epsilon is not None:
        return f"0: private training came before them, in steps of {num_images:,} images in all"
    if epochs == 0:
        return f"0: the head was solved on {num_images:,} views of images"
    return f"{few_digits(epochs)} ({num_images:,} images)"


def score_line(metrics: Mapping[str, Any]) -> str:
    """What a split's metrics come to: top-1 accuracy, or of sets of labels mAP, F1 and exact match."""
    if "map" not in metrics:
        return top1_line(metrics)
    return (
        f"{100 * metrics['map']:.2f} %, F1 {100 * metrics['f1_macro']:.2f} %, exact match "
        f"{100 * metrics['exact_match']:.2f} % of {metrics['num_images']:,} images"
    )


def top1_line(metrics: Mapping[str, Any]) -> str:
    """A split's top-1 accuracy with its 95 % interval (Wilson's)."""
    low, high = 100 * metrics["top1_low"], 100 * metrics["top1_high"]
    return f"{100 * metrics['top1']:.2f} % [{low:.2f}, {high:.2f}] of {metrics['num_images']:,} images"


def _report_line(result: TrainResult) -> str:
    """Where the report is, or why there is none."""
    if result.report is not None:
        return str(result.report)
    if find_spec("jinja2") is None:
        return f"not written ({MissingExtra('jinja2', 'report', 'writing a report')})"
    return "not written"


def _draw_curves(run: Path, saved_epoch: float | None) -> tuple[str, list[str]]:
    """(what the curves are in, warnings)."""
    from vivace.errors import VivaceError
    from vivace.notices import warn

    try:
        from vivace.reporting.figures import curves

        curves(run / "metrics.csv", run / "curves.png", saved_epoch=saved_epoch)
    except MissingExtra as error:
        return f"{run / 'metrics.csv'} ({error})", []
    except VivaceError as error:
        warning = f"the curves were not drawn: {error}"
        warn(warning)
        return "not drawn", [warning]
    return str(run / "curves.png"), []
