"""Classify images with BUNDLE: files, folders, globs, or - for a list of paths on stdin.

Ends with 0 if at least one image was classified (the others are listed on stderr), with 1 if none was.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.common import bundle_place, tell
from vivace.cli.options import verb_options
from vivace.cli.reliance import reliance, reliance_cells
from vivace.errors import ConfigError, OutputPathError, printable

if TYPE_CHECKING:
    from vivace.prediction import Prediction, Predictions


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
    """Files, folders, globs, or - for a list on stdin."""
    topk: int = 5
    """Classes per image. Of sets of labels those that reach their thresholds are shown, however many."""
    out: Path | None = None
    """Write a row per image to this .csv, .jsonl or .parquet file."""
    overwrite: bool = False
    """Replace the file that --out names if it is there; never an image that is read, nor a file of a bundle or run."""
    coverage: float | None = None
    """How often the true class is to be in the prediction set, (0, 1). Default: 0.9."""
    abstain: float | None = None
    """The error to allow among the images that are answered, (0, 1): the others are abstained on. Default: 0.05."""
    heat_maps: Path | None = None
    """Draw each image beside the places that speak for its class into this folder, as PNG."""
    batch_size: int = 64
    """Images per forward pass."""
    threads: int | None = None
    """Processors to use. Default: all."""
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
    from vivace.bars import counting_bar
    from vivace.data.layouts.listing import skipped_summary
    from vivace.data.text import count_of
    from vivace.notices import warn
    from vivace.prediction import expand_paths, folders_of, predict_files, predictor_for, without_repeats
    from vivace.predictor import check_whole
    from vivace.reporting.tables import check_table, write_rows

    if not options.paths:
        raise ConfigError("PATHS is missing. Give files, folders, globs, or - for a list of paths on stdin.")
    replaced = None
    if options.out is not None:
        replaced = check_table(options.out, inputs=[bundle_place(options.bundle)], overwrite=options.overwrite)
    elif options.overwrite:
        raise ConfigError("--overwrite goes with --out: got no --out. Leave it out.")
    check_whole("topk", options.topk)
    left: list[str] = []
    named = expand_paths(options.paths, passed_over=left)
    files, left = without_repeats(named), without_repeats(left)
    if repeated := len(named) - len(files):
        warn(f"{count_of(repeated, 'name')} left out, of files that are named already: each is classified once")
    if replaced is not None:
        assert options.out is not None
        check_unread(options.out, files, listed="-" in options.paths)
    predictor = predictor_for(
        options.bundle,
        options.device,
        options.batch_size,
        options.precision,
        options.threads,
        coverage=options.coverage,
        abstain=options.abstain,
    )
    asked = {"coverage": options.coverage, "abstain": options.abstain}
    if predictor.decider is not None and any(value is not None for value in asked.values()):
        for note in predictor.decider.notes():
            warn(note)
    progress, close = counting_bar("predicting", quiet=options.quiet)
    try:
        result = predict_files(
            predictor,
            files,
            topk=options.topk,
            passed_over=left,
            heat_maps=options.heat_maps,
            folders=folders_of(options.paths),
            progress=progress,
        )
    finally:
        close()
    if line := skipped_summary(result.passed_over, len(result.rows) + len(result.failures)):
        warn(line)
    for failure in result.failures:
        tell(f"not classified: {failure.path} ({failure.problem}) {failure.message}")
    if options.out is not None:
        as_text = options.out.suffix.lower() == ".csv"
        rows = table_of_sets(result, as_text=as_text) if result.multi_label else table(result, as_text=as_text)
        write_rows(rows, options.out, overwrite=options.overwrite)
        if replaced is not None:
            warn(f"replaced: {options.out}")
    if options.json:
        print_json("predict", {"bundle": str(predictor.bundle.folder), **to_json(result)})
        return 0 if result.rows else 1
    if options.out is None:
        for row in result.rows:
            found = row.topk if not result.multi_label else applying(row)
            ranked = "  ".join(f"{printable(name)} {100 * probability:.1f} %" for name, probability in found)
            print(f"{printable(row.path)}\t{ranked or '–'}{reliance(row)}")
    summary = f"{len(result.rows):,} images in {result.seconds:.2f} s, {result.images_per_second:,.0f} images/s"
    if result.failures:
        summary += f"; {len(result.failures):,} could not be classified"
    if options.out is not None:
        summary += f"; written to {options.out}"
    if options.heat_maps is not None:
        summary += f"; heat maps in {options.heat_maps}"
    print(summary, file=sys.stderr)
    return 0 if result.rows else 1


def check_unread(out: Path, files: Iterable[str], *, listed: bool) -> None:
    """Raises OutputPathError if `out`, a file that is there, is one of the files that are read, by whatever name.

    listed: their list is read from stdin, which may be a file too.
    """
    place = out.stat()
    read: str | None = None
    with contextlib.suppress(OSError, ValueError):
        # a stdin that is no file of the system has no number
        if listed and os.path.samestat(place, os.fstat(sys.stdin.fileno())):
            read = "the list on stdin"
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(place, os.stat(file)):  # noqa: PTH116
                read = file
    if read is not None:
        raise OutputPathError(f"--out is what is read: {out} and {read}. Give another name.")


def applying(row: Prediction) -> tuple[tuple[str, float], ...]:
    """(label, probability) of the labels that reach their thresholds, the likeliest first."""
    probs = dict(row.topk)
    return tuple((name, probs[name]) for name in row.labels)


def table_of_sets(result: Predictions, *, as_text: bool) -> list[dict[str, Any]]:
    """A row per image: path, error, labels, probabilities of these; failures have none.

    as_text: both as one text, separated by semicolons, in place of lists.
    """
    rows: list[dict[str, Any]] = []
    for row in result.rows:
        found = applying(row)
        names, probs = [name for name, _ in found], [probability for _, probability in found]
        if as_text:
            texts = ";".join(names), ";".join(f"{value:.6g}" for value in probs)
            rows.append({"path": row.path, "error": "", "labels": texts[0], "probabilities": texts[1]})
        else:
            rows.append({"path": row.path, "error": "", "labels": names, "probabilities": probs})
    for failure in result.failures:
        none: Any = "" if as_text else []
        rows.append({"path": failure.path, "error": failure.problem, "labels": none, "probabilities": none})
    return rows


def table(result: Predictions, *, as_text: bool) -> list[dict[str, Any]]:
    """A row per image: path, error, and label_1, probability_1, label_2 … ; failures have empty labels.

    Of a bundle with thresholds also prediction_set, abstain, ood and ood_score. as_text: the set as one text, separated
    by semicolons, in place of a list.
    """
    count = max((len(row.topk) for row in result.rows), default=1)
    rows = []
    for row in result.rows:
        cells: dict[str, Any] = {"path": row.path, "error": ""}
        for rank, (name, probability) in enumerate(row.topk, start=1):
            cells[f"label_{rank}"], cells[f"probability_{rank}"] = name, probability
        rows.append(cells | reliance_cells(row, as_text=as_text))
    for failure in result.failures:
        cells = {"path": failure.path, "error": failure.problem}
        for rank in range(1, count + 1):
            cells[f"label_{rank}"], cells[f"probability_{rank}"] = "", None
        if any(row.prediction_set is not None for row in result.rows):
            cells |= {"prediction_set": "" if as_text else [], **dict.fromkeys(("abstain", "ood", "ood_score"))}
        rows.append(cells)
    return rows


def to_json(result: Predictions) -> dict[str, Any]:
    """Plain values."""
    return {
        "num_images": len(result.rows),
        "num_failures": len(result.failures),
        "num_passed_over": len(result.passed_over),
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "predictions": [
            {
                "path": row.path,
                "label": row.label,
                "probability": row.probability,
                "topk": [{"label": name, "probability": probability} for name, probability in row.topk],
                **({"labels": list(row.labels)} if result.multi_label else {}),
                **reliance_cells(row, as_text=False),
                **({} if row.heat_map is None else {"heat_map": row.heat_map}),
            }
            for row in result.rows
        ],
        "failures": [
            {"path": failure.path, "problem": failure.problem, "message": failure.message}
            for failure in result.failures
        ],
    }
