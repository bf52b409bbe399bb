"""Look for corrupt, duplicate, leaked and suspect images in DATA. Nothing is changed."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vivace.cli.answers import print_json
from vivace.cli.common import verb_options
from vivace.cli.opening import Opening

if TYPE_CHECKING:
    from vivace.data.audit import Audit
    from vivace.data.preprocess import Preprocess
    from vivace.data.splits import DataSource


@verb_options
class Options:
    """The options of `vivace audit`."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name, a folder, a manifest or an archive, as for `vivace train`."""
    size: int | None = None
    """Side of the network's input, px. Default: as `vivace train` chooses it, which then finds the images decoded."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    quiet: bool = False
    """No progress display, and no line of what DATA holds unless something is left out."""
    json: bool = False
    """Print the findings as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> None:
    """Audit and print the findings, the gravest first."""
    from vivace.cachedir import default_cache_dir
    from vivace.data.caching.cache import audit_source
    from vivace.data.config import DataConfig
    from vivace.data.describe import report
    from vivace.data.sources import open_source
    from vivace.training.dataset import stored_as
    from vivace.training.display import counting_bar

    cache_dir = options.cache_dir or default_cache_dir()
    source = open_source(
        options.opening.of(options.data),
        cache_dir=cache_dir,
    )
    report(source, DataConfig().val_fraction, quiet=options.quiet)
    preprocess = stored_as(source, size=options.size)
    progress, close = counting_bar("reading", quiet=options.quiet)
    try:
        audit = audit_source(source, preprocess, cache_dir=cache_dir, progress=progress)
    finally:
        close()
    verdict = _verdict(source, preprocess, cache_dir, audit)
    if options.json:
        print_json("audit", {"data": source.name, **audit.to_dict(), "train": verdict})
        return
    order = {"refuse": 0, "quarantine": 1, "warning": 2}
    for finding in sorted(audit.findings, key=lambda finding: order[finding.severity]):
        print(f"{finding.severity:<10}  {finding.kind:<20}  {finding.message}")
    counts = {level: sum(finding.severity == level for finding in audit.findings) for level in order}
    print(
        f"{audit.num_images:,} images: {counts['refuse']} findings to refuse, {counts['quarantine']} to quarantine, "
        f"{counts['warning']} warnings"
    )
    print(f"vivace train {verdict}")


def _verdict(source: DataSource, preprocess: Preprocess, cache_dir: Path, audit: Audit) -> str:
    """What `vivace train` does with the source, by the very check that it makes."""
    from vivace.data.caching.cache import open_cache
    from vivace.errors import DataError
    from vivace.notices import collected_warnings

    try:
        with collected_warnings():
            open_cache(source, preprocess, cache_dir=cache_dir)
    except DataError as error:
        return f"refuses this data: {error}"
    left_out = len(audit.quarantined)
    return (
        f"leaves out {left_out:,} of {audit.num_images:,} images: {audit.reasons()}"
        if left_out
        else f"takes all {audit.num_images:,} of these images"
    )
