"""Classify images with BUNDLE: files, folders, globs, tars, parquet files, URLs, or - for a list of such on stdin.

Any number of them: each is written as soon as it is classified. Ends with 0 if at least one image was classified (the
first of the others are listed on stderr), with 1 if none was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.common import bundle_place, tell
from vivace.cli.options import verb_options
from vivace.cli.reliance import reliance
from vivace.errors import ConfigError, printable

if TYPE_CHECKING:
    from vivace.batch.cluster.engine import RayEngine
    from vivace.batch.outputs import Outputs
    from vivace.batch.run import Streamed
    from vivace.prediction import Failure, Prediction

# failures that are told one by one
NUM_TOLD = 20


class Paths(tuple[str, ...]):
    """A separate type: to check tuple[str, ...] the parser imports modules that take longer than a prediction."""


PATHS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="PATHS",
    instance_from_str=Paths,
    is_instance=lambda value: isinstance(value, Paths),
    str_from_instance=list,
)


@verb_options
class Options:
    """The options of `vivace predict`."""

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's."""
    paths: Annotated[
        tyro.conf.Positional[Paths], PATHS, tyro.conf.arg(metavar="PATHS", help_behavior_hint="(required)")
    ]
    """Files, folders, globs, tars and parquet files that hold images, URLs of these, or - for a list on stdin."""
    topk: int = 5
    """Classes per image. Of sets of labels those that reach their thresholds are shown, however many."""
    out: Path | None = None
    """Write a row per image to this .csv, .jsonl or .parquet file."""
    overwrite: bool = False
    """Replace the file that --out names if it is there; never one that is read, nor a file of a bundle or run."""
    resume: bool = False
    """Go on where the same command was killed; its output is that of a run that nothing stopped, to the last byte."""
    sort_into: Path | None = None
    """Link each image into a folder for its class below this one; copies where there can be no links."""
    embeddings: Path | None = None
    """Write features, what the network's last layer is given, to this .parquet file."""
    coverage: float | None = None
    """How often the true class is to be in the prediction set, (0, 1). Default: 0.9."""
    abstain: float | None = None
    """The error to allow among the images that are answered, (0, 1): the others are abstained on. Default: 0.05."""
    decode: Literal["fine", "coarse"] = "fine"
    """fine: JPEGs as in training. coarse: at half of that resolution, cheaper to decode; it changes some answers."""
    heat_maps: Path | None = None
    """Draw each image beside the places that speak for its class into this folder, as PNG."""
    batch_size: int = 64
    """Images per forward pass."""
    threads: int | None = None
    """Processors to use. Default: all."""
    engine: Literal["local", "ray"] = "local"
    """local: this process. ray: processes of a Ray cluster, of this machine or of many; in a trusted network only."""
    workers: int | None = None
    """Processes of the cluster, each with --threads processors (default: 4). Default: as many as it has room for."""
    ray_address: str | None = None
    """HOST:PORT of a Ray cluster that runs. Default: RAY_ADDRESS, or one of this machine, started for this run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: that of the bundle's own metrics, where the device has it."""
    quiet: bool = False
    """No progress display."""
    json: bool = False
    """Print the result as one JSON object on the last line."""


def run(options: Options) -> int:
    """Predict, write, print. 1 if no image could be classified."""
    from vivace.batch.cluster.choice import engine_for
    from vivace.batch.outputs import Outputs
    from vivace.predictor import check_whole

    _check(options)
    outputs = Outputs(
        options.out,
        overwrite=options.overwrite,
        sort_into=options.sort_into,
        embeddings=options.embeddings,
        inputs=[bundle_place(options.bundle)],
    )
    outputs.check(options.paths, resuming=options.resume)
    check_whole("topk", options.topk)
    with engine_for(
        options.engine,
        options.bundle,
        workers=options.workers,
        ray_address=options.ray_address,
        threads=options.threads,
        device=options.device,
        precision=options.precision,
    ) as engine:
        return _predicted(options, outputs, engine)


def _predicted(options: Options, outputs: Outputs, engine: RayEngine | None) -> int:
    """Predict by an engine, write, print."""
    from vivace.bars import CountingBar
    from vivace.batch.cluster.choice import predictor_beside
    from vivace.batch.run import predict_stream
    from vivace.data.text import count_of
    from vivace.notices import warn

    predictor = predictor_beside(
        engine,
        options.bundle,
        options.device,
        options.batch_size,
        options.precision,
        options.threads,
        coverage=options.coverage,
        abstain=options.abstain,
        decode=options.decode,
    )
    if options.decode != "fine":
        warn("JPEGs are decoded coarsely, at half of the resolution that training had: some answers are others")
    asked = {"coverage": options.coverage, "abstain": options.abstain}
    if predictor.decider is not None and any(value is not None for value in asked.values()):
        for note in predictor.decider.notes():
            warn(note)
    told = _Told(options, predictor.bundle.info.multi_label)
    with CountingBar("predicting", quiet=options.quiet) as bar:
        result = predict_stream(
            predictor,
            options.paths,
            topk=options.topk,
            outputs=outputs,
            resume=options.resume,
            draw=None if options.heat_maps is None else _pictures(options, predictor),
            each=told,
            progress=None if options.quiet else bar.progress,
            engine=engine,
        )
    told.close()
    if repeated := result.num_repeated:
        warn(f"{count_of(repeated, 'name')} left out, of files that are named already: each is classified once")
    if line := result.skipped.summary(result.num_images + result.num_failures):
        warn(line)
    if outputs.replaced is not None:
        warn(f"replaced: {options.out}")
    if options.json:
        print_json("predict", {"bundle": str(predictor.bundle.folder), **told.to_json(result)})
    else:
        print(_summary(options, result), file=sys.stderr)
    return 0 if result.num_images else 1


def _check(options: Options) -> None:
    """Raises ConfigError for options that do not go together."""
    if not options.paths:
        raise ConfigError("PATHS is missing. Give files, folders, globs, or - for a list of paths on stdin.")
    if options.out is None and options.overwrite:
        raise ConfigError("--overwrite goes with --out: got no --out. Leave it out.")
    if options.resume and options.out is options.embeddings is options.sort_into is None:
        raise ConfigError("--resume goes with --out: got no --out. Give the one of the run that was killed.")
    if options.engine == "ray" and options.heat_maps is not None:
        raise ConfigError("--engine ray and --heat-maps exclude each other: workers draw nothing. Leave one out.")
    for name, given in (("--json", options.json), ("--heat-maps", options.heat_maps is not None)):
        if options.resume and given:
            raise ConfigError(
                f"--resume and {name} exclude each other: only the images that are left would be in it. Leave one out."
            )


def _pictures(options: Options, predictor: Any) -> Any:
    """What draws the heat maps of all items beside them, in a folder."""
    # it needs torch, which a graph's runtime does without
    from vivace.heatmaps.drawn import Drawing
    from vivace.sources.paths import folders_of

    folder = options.heat_maps
    assert folder is not None
    return lambda items: (
        Drawing(folder, predictor, [item.name for item in items], folders_of(options.paths)).with_pictures
    )


class _Told:
    """What is said of each outcome as it comes; what --json prints is kept for the end."""

    def __init__(self, options: Options, multi_label: bool) -> None:
        self._json, self._multi_label, self._decode = options.json, multi_label, options.decode
        self._prints = options.out is None and not options.json
        self._named = options.out is not None or options.json
        self._rows: list[Prediction] = []
        self._failures: list[Failure] = []
        self._num_failures = 0

    def __call__(self, outcome: Prediction | Failure) -> None:
        from vivace.prediction import Failure

        if isinstance(outcome, Failure):
            self._num_failures += 1
            if self._num_failures <= NUM_TOLD:
                tell(f"not classified: {outcome.path} ({outcome.problem}) {outcome.message}")
            if self._json:
                self._failures.append(outcome)
        elif self._json:
            self._rows.append(outcome)
        elif self._prints:
            from vivace.batch.rows import applying

            found = outcome.topk if not self._multi_label else applying(outcome)
            ranked = "  ".join(f"{printable(name)} {100 * probability:.1f} %" for name, probability in found)
            print(f"{printable(outcome.path)}\t{ranked or '–'}{reliance(outcome)}")

    def close(self) -> None:
        """Says how many failures were not told."""
        if (more := self._num_failures - NUM_TOLD) > 0:
            # where no output names them, nothing does
            where = "which have an error in the output" if self._named else "which a table by --out names"
            tell(f"not classified: {more:,} more, {where}")

    def to_json(self, result: Streamed) -> dict[str, Any]:
        """Plain values."""
        return {
            "num_images": result.num_images,
            "num_failures": result.num_failures,
            "num_passed_over": len(result.skipped),
            "images_per_second": result.images_per_second,
            "seconds": result.seconds,
            "decode": self._decode,
            "num_workers": result.num_workers,
            "num_restarts": result.num_restarts,
            "predictions": [self._plain(row) for row in self._rows],
            "failures": [
                {"path": failure.path, "problem": failure.problem, "message": failure.message}
                for failure in self._failures
            ],
        }

    def _plain(self, row: Prediction) -> dict[str, Any]:
        from vivace.predicted import reliance_cells

        return {
            "path": row.path,
            "label": row.label,
            "probability": row.probability,
            "topk": [{"label": name, "probability": probability} for name, probability in row.topk],
            **({"labels": list(row.labels)} if self._multi_label else {}),
            **reliance_cells(row, as_text=False),
            **({} if row.heat_map is None else {"heat_map": row.heat_map}),
        }


def _summary(options: Options, result: Streamed) -> str:
    """One line of what was done."""
    summary = f"{result.num_images:,} images in {result.seconds:.2f} s, {result.images_per_second:,.0f} images/s"
    if result.num_workers:
        restarts = f", {result.num_restarts:,} of them started again" if result.num_restarts else ""
        summary += f"; by {result.num_workers:,} {'worker' if result.num_workers == 1 else 'workers'} of Ray{restarts}"
    if result.num_resumed:
        summary += f"; {result.num_resumed:,} were done before"
    if result.num_failures:
        summary += f"; {result.num_failures:,} could not be classified"
    if options.out is not None:
        summary += f"; written to {options.out}"
    if options.embeddings is not None:
        summary += f"; features in {options.embeddings}"
    if options.sort_into is not None:
        summary += f"; sorted into {options.sort_into}"
    if options.heat_maps is not None:
        summary += f"; heat maps in {options.heat_maps}"
    return summary
