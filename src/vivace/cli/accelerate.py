"""Find the fastest variant of BUNDLE whose accuracy drop is proven, on images, to be within a budget."""

from __future__ import annotations

import signal
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vivace.acceleration.options import SearchOptions
from vivace.cli.answers import print_json
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options
from vivace.cli.terminated import Terminated
from vivace.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from vivace.bundle import Bundle

NOTHING_FASTER = 3


@verb_options
class Search(SearchOptions):
    """What to search for."""

    within: str | None = None
    cache_dir: Path | None = None


@verb_options
class Options:
    """The options of `vivace accelerate`."""

    bundle: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's; or a network's name, such as timm/resnet18.a1_in1k, with its published weights."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """Images for calibration, selection and certification, as for vivace train."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The new bundle, with its report. Default: the bundle's folder with -accelerated appended to its name."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """With a network's name: a local safetensors or .pth state dict instead of the published weights."""
    size: int | None = None
    """With a network's name: side of its square input, px. Default: that of the published weights."""
    quiet: bool = False
    """No progress."""
    json: bool = False
    """Print the result as one JSON object on the last line."""
    search: Search = field(default_factory=Search)
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> int:
    """Run a search and print its report; exit status 3 if no faster variant was found, or nothing could be decided."""
    try:
        return _run(options)
    except Terminated:
        raise Interrupted(
            "stopped by SIGTERM; the same command continues from what was built", signal_number=signal.SIGTERM
        ) from None


def _run(options: Options) -> int:
    import sys
    import time

    from vivace.acceleration.accelerate import accelerate, default_out
    from vivace.acceleration.receipt import markdown
    from vivace.bundle import load_bundle
    from vivace.hardware import process_seconds
    from vivace.notices import worded

    def tell(message: str) -> None:
        if not options.quiet:
            print(worded(message), file=sys.stderr, flush=True)

    started = time.monotonic() - process_seconds()
    out = options.out or default_out(Path(options.bundle))
    result = accelerate(
        _given(options, out) if _is_name(options) else load_bundle(Path(options.bundle)),
        options.opening.of(options.data),
        out=out,
        options=options.search,
        started=started,
        draw=_draw,
        on_message=tell,
    )
    for warning in result.warnings:
        print(f"warning: {worded(warning)}", file=sys.stderr)
    if options.json:
        data = result.receipt["images"].get("data", result.receipt["asked"]["data"])
        print_json("accelerate", {"data": data, **result.to_dict()})
    else:
        print(worded(markdown(result.receipt)))
        print(f"the bundle: {result.bundle}")
    if not result.accelerated:
        # also with --quiet: this is the result
        best = result.receipt["best"]
        nearest = f"; {best} came nearest" if best else ""
        print(f"{result.reason}: the bundle is unchanged{nearest}", file=sys.stderr)
        return NOTHING_FASTER
    return 0


def _is_name(options: Options) -> bool:
    """Whether a network was named instead of a bundle. Raises ConfigError for --weights or --size with a bundle."""
    named = not Path(options.bundle).exists() and (options.bundle.startswith("timm/") or options.weights is not None)
    if not named and (options.weights is not None or options.size is not None):
        raise ConfigError(
            f"--weights and --size go with a network's name: got the bundle {options.bundle}. Leave them out."
        )
    return named


def _given(options: Options, out: Path) -> Bundle:
    from vivace.acceleration.pretrained import bundle_from

    return bundle_from(
        options.bundle,
        options.opening.of(options.data),
        out.with_name(out.name + "-original"),
        weights=options.weights,
        size=options.size,
        cache_dir=options.search.cache_dir,
        on_bad_image=options.search.on_bad_image,
    )


def _draw(receipt: dict[str, Any], path: Path) -> None:
    import sys

    from vivace.errors import MissingExtra
    from vivace.reporting.figures import pareto

    try:
        pareto(receipt["rows"], path, max_drop=receipt["asked"]["max_drop"])
    except MissingExtra as error:
        print(f"no figure: {error}", file=sys.stderr)
