"""Show where BUNDLE's time goes, layer by layer, and in which precision its kernels really ran."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vivace.cli.answers import print_json
from vivace.cli.columns import left, right, widest
from vivace.cli.common import bundle_place
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options

if TYPE_CHECKING:
    from vivace.profiling.profile import Profile

MAX_NAME = 72


@verb_options
class Options:
    """The options of `vivace profile`."""

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Images to run it on, as for vivace train: test, else val, else all. Default: generated ones."""
    top: int = 20
    """How many layers to list, the slowest first; 0: all."""
    batch_size: int = 1
    """Images in a call."""
    calls: int = 20
    """Calls; a layer's time is their median."""
    threads: int | None = None
    """Processors to use. Default: all."""
    timeout: float = 600.0
    """Seconds after which profiling is stopped."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    json: bool = False
    """Print the result as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> None:
    """Profile and print."""
    from vivace.config import check_range
    from vivace.verbs.profile import profile as profile_bundle

    check_range("top", options.top, 0)
    profile = profile_bundle(
        options.bundle,
        options.opening.of_optional(options.data),
        batch_size=options.batch_size,
        calls=options.calls,
        threads=options.threads,
        timeout=options.timeout,
        cache_dir=options.cache_dir,
    )
    if options.json:
        print_json(
            "profile", {"bundle": str(bundle_place(options.bundle)), "summary": profile.summary(), **profile.to_dict()}
        )
        return
    print("\n".join([*table(profile, options.top), "", profile.summary()]))


def table(profile: Profile, top: int) -> list[str]:
    """Lines of a table: the slowest layers, and the others together."""
    ordered = sorted(profile.layers, key=lambda layer: -layer.ms)
    shown = ordered[:top] if top else ordered
    total = max(profile.layers_ms, 1e-9)
    rows = [("layer", "kind", "kernel", "precision", "ms", "fraction")]
    rows += [
        (
            _end_of(layer.name),
            layer.kind,
            _end_of(layer.kernel),
            layer.precision,
            f"{layer.ms:.3f}",
            f"{layer.ms / total:.1%}",
        )
        for layer in shown
    ]
    rest = ordered[len(shown) :]
    if rest:
        ms = sum(layer.ms for layer in rest)
        rows.append((f"{len(rest)} others", "", "", "", f"{ms:.3f}", f"{ms / total:.1%}"))
    widths = [widest(row[column] for row in rows) for column in range(6)]
    return [
        "  ".join(
            (right if column > 3 else left)(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _end_of(text: str) -> str:
    """The end of a long name: that is where layers differ."""
    return text if len(text) <= MAX_NAME else "…" + text[1 - MAX_NAME :]
