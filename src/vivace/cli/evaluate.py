"""Measure BUNDLE on labelled images: accuracy with intervals, loss, calibration, the confusion matrix, mistakes."""

from __future__ import annotations

import signal
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.columns import left, widest
from vivace.cli.common import bundle_place
from vivace.cli.explained import print_heat_maps
from vivace.cli.hardened import print_attack, print_corruptions
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options
from vivace.cli.reliance import print_uncertainty
from vivace.cli.sliced import print_slices
from vivace.errors import printable

if TYPE_CHECKING:
    from vivace.evaluation.evaluate import Evaluation
    from vivace.metrics.multilabel import MultiLabelMetrics

# a confusion matrix of more classes does not fit a terminal
MAX_CLASSES_PRINTED = 20
FIGURES = ("confusion.png", "mistakes.png")


@verb_options
class Options:
    """The options of `vivace evaluate`."""

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name, a folder, a manifest or an archive, as for `vivace train`."""
    split: str | None = None
    """train, val, test, or all where the data has one split only. Without a val split, val is what training held out;
    without any split, train is what was trained on, and there is no test. Default: test if there is one, else val, else
    the images that were not trained on."""
    figures: Path | None = None
    """Draw the confusion matrix and the worst mistakes into this folder."""
    batch_size: int = 250
    """Images per forward pass."""
    threads: int | None = None
    """Processors to use. Default: all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: that of the bundle's own metrics, where the device has it."""
    tta: Literal["none", "mirror", "shift"] = "none"
    """Test-time augmentation: average over mirrors, or over mirrors and shifts of a pixel (2 and 6 times the work)."""
    tta_share: float = 1.0
    """Fraction of the images, the least certain ones, that --tta sees more than once, (0, 1]."""
    corruptions: bool = False
    """Also measure the accuracy under 14 common corruptions (noise, blur, weather, digital) at five severities."""
    corruption_images: int = 1000
    """Images for --corruptions, at most, chosen at random."""
    attack: str | None = None
    """Also measure the accuracy under attack, within a norm and radius on pixels from 0 to 1: linf:8/255, l2:0.5."""
    attack_images: int = 1000
    """Images for --attack, at most, chosen at random."""
    attack_methods: tuple[str, ...] = ()
    """Some of fgsm, pgd, apgd-ce, apgd-t, fab-t, square. Default: all. The last four are AutoAttack's standard suite;
    without one of them robustness is overestimated."""
    attack_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """In which attacks look for points. auto: bf16 where the device has it, which is faster. In any case, what is found
    counts only if it fools the network in float32."""
    within: str | None = None
    """Time for --attack, such as 20m. Images that attacks do not finish by then count as robust, which is said."""
    seed: int = 0
    """Of the choice of images and of everything random in corruptions and attacks."""
    coverage: float | None = None
    """How often the true class is to be in the prediction set, (0, 1). Default: 0.9."""
    abstain: float | None = None
    """The error to allow among the images that are answered, (0, 1): the others are abstained on. Default: 0.05."""
    ood: str | None = None
    """A folder, file or glob of images of another kind: how well these are told from them, and from generated ones.
    "generated": from these alone."""
    heat_maps: Path | None = None
    """Draw the mistakes into this folder, beside the places that speak for the predicted class and for the true one."""
    on_bad_image: Literal["auto", "refuse", "skip"] = "auto"
    """What to do with images that are corrupt or contradict each other. auto: leave them out, up to 5 %."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    quiet: bool = False
    """No progress display."""
    json: bool = False
    """Print the result as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> int:
    """Evaluate, draw, print."""
    from vivace.bars import CountingBar
    from vivace.evaluation.evaluate import evaluate
    from vivace.metrics.summary import Metrics
    from vivace.outputs import check_file

    replaced = []
    if options.figures is not None:
        # before the work; figures in the data's folder would be taken for data
        outside = [Path(options.data)] if Path(options.data).is_dir() else []
        inputs = [bundle_place(options.bundle)]
        for name in FIGURES:
            path = options.figures / name
            replaced.append((path, check_file(path, inputs=inputs, outside=outside, option="--figures")))
    with CountingBar("images", quiet=options.quiet) as bar:
        evaluation = evaluate(
            options.bundle,
            options.opening.of(options.data),
            split=options.split,
            batch_size=options.batch_size,
            threads=options.threads,
            device=options.device,
            precision=options.precision,
            cache_dir=options.cache_dir,
            on_bad_image=options.on_bad_image,
            tta=options.tta,
            tta_share=options.tta_share,
            corruptions=options.corruptions,
            corruption_images=options.corruption_images,
            attack=options.attack,
            attack_images=options.attack_images,
            attack_methods=options.attack_methods,
            attack_precision=options.attack_precision,
            within=options.within,
            seed=options.seed,
            coverage=options.coverage,
            abstain=options.abstain,
            ood=options.ood,
            heat_maps=options.heat_maps,
            progress=bar.progress,
            stage=bar.stage,
            keep_interrupted=True,
        )
    kept = _keep(options.bundle, evaluation)
    drawn = options.figures is None or _drawn(options.figures, evaluation, replaced)
    if options.json:
        place = str(bundle_place(options.bundle))
        print_json("evaluate", {"bundle": place, "kept": kept, **evaluation.to_dict()})
        return _status(evaluation, drawn=drawn)
    _print(evaluation)
    if evaluation.slices is not None:
        print_slices(evaluation.slices)
    if evaluation.corruptions is not None:
        print_corruptions(evaluation.corruptions)
    if evaluation.attack is not None:
        print_attack(evaluation.attack)
    if evaluation.heat_maps is not None:
        print_heat_maps(evaluation.heat_maps)
    if kept is not None:
        print(f"\nkept     {kept} (vivace report shows it)")
    if options.figures is not None and drawn:
        names = [name for name in FIGURES if name != FIGURES[0] or isinstance(evaluation.metrics, Metrics)]
        print("\nfigures  " + "  ".join(str(options.figures / name) for name in names))
    return _status(evaluation, drawn=drawn)


def _drawn(folder: Path, evaluation: Evaluation, replaced: list[tuple[Path, str | None]]) -> bool:
    """Draw the figures; where they can't be drawn, a warning says why: what was measured is told all the same."""
    from vivace.errors import VivaceError
    from vivace.notices import warn
    from vivace.outputs import warn_of_replaced

    try:
        _draw(evaluation, folder)
    except VivaceError as error:
        warn(f"the figures are not drawn: {error}")
        return False
    for path, what in replaced:
        warn_of_replaced(path, what)
    return True


def _status(evaluation: Evaluation, *, drawn: bool) -> int:
    """0; 1 where the figures are missing; that of a process which a signal ended, where one ended the attacks."""
    number = None if evaluation.attack is None else getattr(signal, str(evaluation.attack.cut_off_by), None)
    return 128 + number if number is not None else 0 if drawn else 1


def _keep(bundle: Path, evaluation: Evaluation) -> str | None:
    """The file that keeps the results of corruptions and attacks; None if there are none, or it can't be written."""
    if evaluation.corruptions is None and evaluation.attack is None:
        return None
    from vivace.bundle import load_bundle
    from vivace.errors import OutputPathError, VivaceError, first_line
    from vivace.evaluation.kept import keep
    from vivace.notices import warn

    try:
        return str(keep(load_bundle(bundle), evaluation))
    except (OutputPathError, VivaceError) as error:
        # nobody asked for the file
        warn(f"the results are not kept for the report: {first_line(error)}")
        return None


def _print(evaluation: Evaluation) -> None:
    from vivace.metrics.summary import Metrics

    metrics, classes = evaluation.metrics, [printable(name) for name in evaluation.classes]
    top = min(5, len(classes))
    views = "" if evaluation.tta == "none" else f", test-time augmentation: {evaluation.tta}"
    if views and evaluation.tta_share < 1:
        views += f" for {100 * evaluation.tta_share:g} % of the images"
    print(f"{printable(evaluation.data)}, {_images(evaluation)}, {evaluation.precision}{views}")
    if evaluation.num_images_trained_on is None:
        print("        unknown: which of these the bundle was trained on")
    if not isinstance(metrics, Metrics):
        _print_sets(evaluation, metrics)
        return
    print(f"top-1   {_share(metrics.top1, metrics.top1_low, metrics.top1_high)}")
    print(f"top-{top}   {_share(metrics.top5, metrics.top5_low, metrics.top5_high)}")
    print(f"loss    {metrics.nll:.4f}")
    print(f"ECE     {metrics.ece:.4f}")
    print(f"speed   {evaluation.images_per_second:,.0f} images/s")
    if evaluation.uncertainty is not None:
        print_uncertainty(evaluation.uncertainty)
    width = widest(classes, least=5)
    print(f"\n{'class':<{width}}  precision  recall      F1  images")
    for name, row in zip(classes, metrics.per_class, strict=True):
        # without an image of the class there is nothing to recall
        shares = f"{row.precision:9.4f}  {row.recall:6.4f}  {row.f1:6.4f}"
        shares = shares if row.support else f"{'n/a':>9}  {'n/a':>6}  {'n/a':>6}"
        print(f"{left(name, width)}  {shares}  {row.support:6,}")
    if len(classes) <= MAX_CLASSES_PRINTED:
        print("\nconfusion (rows: true, columns: predicted, in the order of the table)")
        cell = max(len(f"{max(max(row) for row in metrics.confusion):,}"), 4) + 1
        for name, counts in zip(classes, metrics.confusion, strict=True):
            print(f"{left(name, width)} " + "".join(f"{count:>{cell},}" for count in counts))
    _print_mistakes(evaluation)


def _print_mistakes(evaluation: Evaluation) -> None:
    if evaluation.mistakes:
        print("\nthe most confident mistakes")
        for mistake in evaluation.mistakes[:5]:
            what = printable(f"{mistake.label} called {mistake.predicted}  {mistake.name}")
            print(f"  {100 * mistake.probability:5.1f} %  {what}")


def _print_sets(evaluation: Evaluation, metrics: MultiLabelMetrics) -> None:
    print(f"mAP     {100 * metrics.map:.2f} %, of all pairs of image and label {100 * metrics.map_micro:.2f} %")
    print(f"F1      {100 * metrics.f1_macro:.2f} % (mean over labels), {100 * metrics.f1_micro:.2f} % (all pairs)")
    print(f"exact   {_share(metrics.exact_match, metrics.exact_match_low, metrics.exact_match_high)}")
    print(f"Hamming {100 * metrics.hamming_loss:.2f} % of the pairs are wrong")
    print(f"loss    {metrics.bce:.4f}")
    print(f"ECE     {metrics.ece:.4f}")
    print(f"speed   {evaluation.images_per_second:,.0f} images/s")
    names = [printable(row.name) for row in metrics.per_label]
    width = widest(names, least=5)
    print(f"\n{'label':<{width}}      AP  precision  recall      F1  images  threshold")
    for name, row in zip(names, metrics.per_label, strict=True):
        shares = f"{'n/a':>6}  {'n/a':>9}  {'n/a':>6}  {'n/a':>6}"
        if row.average_precision is not None:
            shares = f"{row.average_precision:6.4f}  {row.precision:9.4f}  {row.recall:6.4f}  {row.f1:6.4f}"
        print(f"{left(name, width)}  {shares}  {row.support:6,}  {row.threshold:9.4f}")
    _print_mistakes(evaluation)


def _images(evaluation: Evaluation) -> str:
    """Which images were measured, and whether the network has seen them before."""
    count, trained_on = f"{evaluation.metrics.num_images:,} images", evaluation.num_images_trained_on
    if evaluation.num_images_left_out:
        rest = f"{evaluation.num_images_left_out:,} others were trained on (--split train or all measures them too)"
        return f"{evaluation.split}: {count}; {rest}"
    if trained_on == evaluation.metrics.num_images:
        return f"split {evaluation.split}: {count}, all of which were trained on"
    of_which = f", of which {trained_on:,} were trained on" if trained_on else ""
    return f"split {evaluation.split}: {count}{of_which}"


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.2f} %  [{100 * low:.2f}, {100 * high:.2f}]"


def _draw(evaluation: Evaluation, folder: Path) -> None:
    from vivace.metrics.summary import Metrics
    from vivace.notices import warn
    from vivace.reporting.figures import confusion, mistakes

    if isinstance(evaluation.metrics, Metrics):
        confusion(evaluation.metrics.confusion, evaluation.classes, folder / "confusion.png")
    else:
        warn("no confusion matrix is drawn: images have sets of labels")
    rows = [
        {
            "image": image,
            "label": mistake.label,
            "predicted": mistake.predicted,
            "probability": mistake.probability,
            "name": mistake.name,
        }
        for mistake, image in zip(evaluation.mistakes, evaluation.images_NHWC, strict=True)
    ]
    mistakes(rows, folder / "mistakes.png")
