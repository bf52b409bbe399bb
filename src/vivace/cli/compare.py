"""Show which of two runs is more accurate, by a paired test on the same images, or that neither is."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.columns import left, widest
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options
from vivace.errors import printable

if TYPE_CHECKING:
    from vivace.verbs.compare import Compared, RunComparison


@verb_options
class Options:
    """The options of `vivace compare`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run's folder, or a bundle's."""
    other: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN2")]
    """The other one, with the same classes."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Images to compare on, as for `vivace train`. Default: the data that both were trained on, where they lay then,
    if they are in the cache."""
    split: str | None = None
    """train, val, test or all. Default: test if there is one, else val, else all; without the images that one of the
    two was trained on."""
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
    report: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Write both side by side as one HTML file: where they differ, by class and image by image."""
    lang: Literal["en", "zh"] = "en"
    """The language of that file: en or zh (Chinese)."""
    quiet: bool = False
    """No progress display."""
    json: bool = False
    """Print the result as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> None:
    """Compare, and say on which images."""
    from vivace.bars import CountingBar
    from vivace.verbs.compare import compare

    with CountingBar("decoding", quiet=options.quiet) as bar:
        compared = compare(
            options.run,
            options.other,
            options.opening.of_optional(options.data),
            split=options.split,
            batch_size=options.batch_size,
            threads=options.threads,
            device=options.device,
            cache_dir=options.cache_dir,
            on_bad_image=options.on_bad_image,
            report=options.report,
            lang=options.lang,
            progress=bar.progress,
        )
    if options.json:
        print_json("compare", compared.to_dict())
    else:
        print("\n".join(lines(compared)))


def lines(compared: RunComparison) -> list[str]:
    """What was measured, on which images, and the verdict."""
    width = widest(printable(one.path) for one in compared.runs)
    low, high = 100 * compared.difference_low, 100 * compared.difference_high
    left_out = compared.num_images_left_out
    trained_on = f"; {left_out:,} others left out, which one of them was trained on" if left_out else ""
    return [
        f"{printable(compared.data)}, {compared.split}: the same {compared.num_images:,} images for both{trained_on}",
        *(_line(one, width) for one in compared.runs),
        f"difference {100 * compared.difference:+.2f} points [{low:+.2f}, {high:+.2f}], 95 %",
        compared.verdict(),
        *([] if compared.report is None else [f"wrote {printable(compared.report)}"]),
    ]


def _line(one: Compared, width: int) -> str:
    trained = "" if one.seconds is None else f", trained in {one.seconds:,.0f} s"
    return (
        f"{left(printable(one.path), width)}  {100 * one.top1:.2f} %  [{100 * one.top1_low:.2f}, "
        f"{100 * one.top1_high:.2f}]  alone right on {one.num_only_right:,}; {printable(one.model)}, "
        f"{one.bytes / 1e6:,.1f} MB{trained}"
    )
