"""Check a bundle: every file's hash, and that its runtime agrees with PyTorch, on images."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated

import tyro

from vivace.cli.answers import print_json
from vivace.cli.common import bundle_place, tell
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options
from vivace.errors import ParityError


@verb_options
class Options:
    """The options of `vivace verify`."""

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Images to compare on, as for vivace train: test, else val, else all, 1,000 at most. Default: generated ones."""
    key: Annotated[Path | None, tyro.conf.arg(metavar="KEY.pub")] = None
    """Check its signature too, with this public key: the bundle is just what the key's owner has signed, or refused."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    json: bool = False
    """Print the result as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> int:
    """Check, and print what was found; a bundle that does not agree is an error. Returns the exit status."""
    from vivace.exporting.parity import check_parity, verify

    data = options.opening.of_optional(options.data)
    parity = verify(options.bundle, data=data, key=options.key, cache_dir=options.cache_dir)
    if options.json:
        signed_by = None if options.key is None else str(options.key)
        told = {**parity.to_dict(), "compared": parity.compared, "signed_by": signed_by}
        print_json("verify", {"bundle": str(bundle_place(options.bundle)), **told, "holds": parity.holds})
    else:
        print(f"{options.bundle}: every file is undamaged")
        if options.key is not None:
            print(f"{options.bundle}: signed with the key of {options.key}, and all that was signed is there unchanged")
        print(parity.summary())
    try:
        check_parity(parity)
    except ParityError as error:
        if not options.json:
            raise
        # --json prints one object, and it has this already
        tell(f"{type(error).__name__}: {error}")
        return error.exit_status
    return 0
