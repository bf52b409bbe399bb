"""Write what a person must know of a run or a bundle before relying on it as one HTML file that needs no network."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options

if TYPE_CHECKING:
    from vivace.verbs.report import Report


@verb_options
class Options:
    """The options of `vivace report`."""

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Images to look at, as for `vivace train`. Default: those that the run was trained on, where they lay then, if
    they are in the cache."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """The report. Default: report.html in the run's folder; of a bundle its name with -report.html appended."""
    lang: Literal["en", "zh"] = "en"
    """The language of the report: en or zh (Chinese)."""
    card: Annotated[Path | None, tyro.conf.arg(metavar="README.md")] = None
    """Write a model card too, in the form that Hugging Face's hub reads."""
    split: str | None = None
    """train, val, test or all. Default: test if there is one, else val, else the images that were not trained on."""
    batch_size: int = 250
    """Images per forward pass."""
    threads: int | None = None
    """Processors to use. Default: all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested)."""
    on_bad_image: Literal["auto", "refuse", "skip"] = "auto"
    """What to do with images that are corrupt or contradict each other. auto: leave them out, up to 5 %."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    quiet: bool = False
    """No progress display."""
    json: bool = False
    """Print the result as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> None:
    """Write the report, and say what it does not have."""
    from vivace.bars import CountingBar
    from vivace.verbs.report import report

    with CountingBar("decoding", quiet=options.quiet) as bar:
        written = report(
            options.bundle,
            options.opening.of_optional(options.data),
            out=options.out,
            lang=options.lang,
            card=options.card,
            split=options.split,
            batch_size=options.batch_size,
            threads=options.threads,
            device=options.device,
            cache_dir=options.cache_dir,
            on_bad_image=options.on_bad_image,
            progress=bar.progress,
        )
    if options.json:
        print_json("report", {"lang": options.lang, **written.to_dict()})
        return
    _print(written)


def _print(written: Report) -> None:
    print(f"wrote {written.report}, {written.bytes / 1e3:,.0f} kB: {', '.join(written.sections)}")
    if written.card is not None:
        print(f"wrote {written.card}, a model card")
    if written.not_measured:
        print("not measured: " + "; ".join(f"{what} ({command})" for what, command in written.not_measured))
