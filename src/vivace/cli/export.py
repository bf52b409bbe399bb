"""Write a bundle's weights for plain PyTorch: torch.load(weights_only=True) and load_state_dict accept the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vivace.cli.common import print_json, verb_options


@verb_options
class Options:
    """The options of `vivace export`."""

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's."""
    state_dict: Annotated[Path, tyro.conf.arg(metavar="FILE.pth")]
    """Where the plain state dict is written."""
    json: bool = False
    """Print the result as one JSON object on the last line."""


def run(options: Options) -> None:
    """Write the file and say what it is."""
    from vivace.bundle import export_state_dict, load_bundle

    bundle = load_bundle(options.bundle)
    path = export_state_dict(bundle, options.state_dict)
    architecture = bundle.info.architecture
    if options.json:
        print_json({"state_dict": str(path), "bytes": path.stat().st_size, "model": architecture.name})
        return
    print(f"wrote {path}, the state dict of {architecture.name} with {architecture.num_classes} classes")
