"""Look for corrupt, duplicate, leaked and suspect images in DATA. Nothing is changed."""

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
    """The options of `vivace audit`."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name, a folder, a manifest or an archive, as for `vivace train`."""
    size: int | None = None
    """Side of the network's input, px. Default: as `vivace train` chooses it, which then finds the images decoded."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """A field of a recipe's data, as for `vivace train`, such as --set data.multi_label=true; may be repeated."""
    near: Literal["on", "off"] = "on"
    """Look for near duplicates too: resized, recompressed, mirrored, turned, cropped, recoloured or lettered copies."""
    bundle: Path | None = None
    """A bundle or run trained on DATA: labels that are probably wrong are found too, by its features."""
    fdr: float | None = None
    """Of the labels that are called wrong, the fraction that may be right. Default: 0.1."""
    report: Path | None = None
    """Write a page with pictures of the findings there, such as audit.html."""
    lang: Literal["en", "zh"] | None = None
    """With --report: its language, en or zh (Chinese). Default: en."""
    fix: Path | None = None
    """Write a manifest there (.csv) without what was found: what training leaves out, and copies, of which those in
    test stay. No file of DATA is changed."""
    fix_labels: bool = False
    """With --fix and --bundle: leave training images out whose labels are probably wrong."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    quiet: bool = False
    """No progress display, and no line of what DATA holds unless something is left out."""
    json: bool = False
    """Print the findings as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> None:
    """Audit and print the findings, the most severe first."""
    from vivace.bars import CountingBar
    from vivace.notices import worded
    from vivace.verbs.audit import SEVERITIES, audit

    with CountingBar("auditing", quiet=options.quiet) as bar:
        found = audit(
            options.opening.of(options.data),
            size=options.size,
            overrides=parse_assignments(options.set),
            near=options.near == "on",
            bundle=options.bundle,
            fdr=options.fdr,
            report=options.report,
            lang=options.lang,
            fix=options.fix,
            fix_labels=options.fix_labels,
            cache_dir=options.cache_dir,
            quiet=options.quiet,
            progress=bar.progress,
        )
    if options.json:
        print_json("audit", found.to_dict())
        return
    for finding in found.findings:
        print(f"{finding.severity:<10}  {finding.kind:<20}  {finding.message}")
    counts = {level: sum(finding.severity == level for finding in found.findings) for level in SEVERITIES}
    print(
        f"{found.num_images:,} images: {counts['refuse']} findings to refuse, {counts['quarantine']} to quarantine, "
        f"{counts['warning']} warnings"
    )
    for line in found.lines()[1:]:
        print(worded(line))
    if found.report is not None:
        print(f"report: {found.report}")
    if found.fixed is not None:
        print(f"manifest: {found.fixed}, {found.num_fixed:,} of {found.num_images:,} images")
    print(f"vivace train {found.summary()}")
