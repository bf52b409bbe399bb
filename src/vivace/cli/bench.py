"""Measure on DATA and this machine what each technique of a recipe contributes, by switching it off alone."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.common import parse_assignments
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options


@verb_options
class Options:
    """The options of `vivace bench`."""

    what: Annotated[tyro.conf.Positional[Literal["ablation"]], tyro.conf.arg(metavar="ablation")]
    """ablation: the techniques that are switched on in the recipe."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name, a folder, a manifest or an archive, as for `vivace train`."""
    recipe: Literal["fast", "accurate", "finetune", "article"] = "fast"
    """A named recipe."""
    config: Path | None = None
    """A recipe as YAML in place of --recipe."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """Any field of the recipe, for all runs; may be repeated."""
    epochs: int | None = None
    """Passes over the training images in each run. Default: the recipe's."""
    seeds: int = 3
    """Runs with, and as many without each technique."""
    technique: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    """A technique, such as "label smoothing"; may be repeated. Default: all that the recipe uses."""
    out: Path | None = None
    """A new folder, for the reports and the runs. Default: runs/ablation, or runs/ablation-2 … if that exists."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested)."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    quiet: bool = False
    """No line for each run."""
    json: bool = False
    """Print the report as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> None:
    """Run the comparison; the reports are ablation.json, ablation.md and ablation.png in the folder."""
    import sys

    from vivace.bench.ablation import measure_ablation
    from vivace.bench.folder import free_folder
    from vivace.errors import MissingExtra
    from vivace.files import write_json
    from vivace.reporting.figures import ablation as draw
    from vivace.training.result import TrainResult

    out = free_folder(options.out)

    def tell(name: str, seed: int, result: TrainResult) -> None:
        if not options.quiet:
            line = f"{name:<18} seed {seed}  {100 * result.val_top1:6.2f} %  {result.train_seconds:7.1f} s"
            print(line, file=sys.stderr, flush=True)

    report = measure_ablation(
        options.opening.of(options.data),
        options.config or options.recipe,
        out=out,
        epochs=options.epochs,
        seeds=options.seeds,
        techniques=options.technique,
        overrides=parse_assignments(options.set),
        device=options.device,
        cache_dir=options.cache_dir,
        on_run=tell,
    )
    write_json(out / "ablation.json", report.to_dict())
    (out / "ablation.md").write_text(report.markdown(), encoding="utf-8")
    try:
        draw(report.to_dict()["rows"], out / "ablation.png")
    except MissingExtra as error:
        print(f"no figure: {error}", file=sys.stderr)
    if options.json:
        print_json("bench", report.to_dict())
    else:
        print(report.markdown())
        print(f"the reports and the runs are in {out}", file=sys.stderr)
