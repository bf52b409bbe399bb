"""Write a bundle for another runtime, phones or browsers, as plain weights, or as a folder that needs no PyTorch.

The result is compared with PyTorch on images before it is kept.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.opening import Opening
from vivace.cli.options import verb_options
from vivace.errors import ConfigError
from vivace.runtimes.table import RUNTIMES

# of PyTorch itself
PT2, STATE_DICT = "pt2", "state-dict"
DEPLOY, WEB = "deploy", "web"


def _targets() -> dict[str, str]:
    """What --to takes, in the order of `vivace.exporting.export.targets`, and what each gives."""
    rows = [row for row in RUNTIMES.values() if row.exporter is not None]
    graphs, files = [row for row in rows if row.graph_files], [row for row in rows if not row.graph_files]
    return {
        **{row.name: row.export_help for row in graphs},
        PT2: "a file for PyTorch",
        **{row.name: row.export_help for row in files},
        STATE_DICT: "a file for PyTorch",
        DEPLOY: "a folder that classifies images without PyTorch",
        WEB: "a page that classifies images in the browser",
    }


def _help(targets: Mapping[str, str]) -> str:
    """ "onnx and openvino give a bundle …; pt2 and state-dict a file …": names that give the same are told together."""
    names = {gives: [name for name in targets if targets[name] == gives] for gives in targets.values()}
    told = [f"{' and '.join(found)} {'give ' * (not i)}{gives}" for i, (gives, found) in enumerate(names.items())]
    return "; ".join(told) + "."


if TYPE_CHECKING:
    Target = str
else:
    Target = Literal[tuple(_targets())]
HELP = _help(_targets())


@verb_options
class Options:
    """The options of `vivace export`."""

    bundle: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle's folder, or a run's."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Images to compare on, as for vivace train: test, else val, else all, 1,000 at most. Default: generated ones."""
    to: Annotated[Target | None, tyro.conf.arg(help=HELP)] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The folder of the new bundle, or the file; NAME.onnx and NAME.xml (for openvino) are files too. Only files
    that vivace wrote and nobody has changed are replaced."""
    state_dict: Annotated[Path | None, tyro.conf.arg(metavar="FILE.pth")] = None
    """The same as --to state-dict --out FILE.pth."""
    model: Annotated[str | None, tyro.conf.arg(metavar="FILE.py:NAME")] = None
    """The code of a network of your own, which pt2 and files for phones are made of; its bundle holds none."""
    onnxruntime_web: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """For web: the package onnxruntime-web, its folder or the file of npm pack. Default: from the cache, or by npm."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    json: bool = False
    """Print the result as one JSON object on the last line."""
    opening: Opening = field(default_factory=Opening)


def run(options: Options) -> None:
    """Write the files and say what they are."""
    target, out = options.to, options.out
    if options.state_dict is not None:
        if target is not None or out is not None:
            raise ConfigError("two targets: got --state-dict and --to or --out. Give one of them.")
        target, out = STATE_DICT, options.state_dict
    if target is None or out is None:
        missing = "--to" if target is None else "--out"
        raise ConfigError(f"{missing} is missing: say what to write, and where. Give --to onnx --out FOLDER, say.")

    from vivace.bundle import load_bundle
    from vivace.exporting.export import export

    bundle = load_bundle(options.bundle)
    exported = export(
        bundle,
        target,
        out,
        data=options.opening.of_optional(options.data),
        model=options.model,
        onnxruntime_web=options.onnxruntime_web,
        cache_dir=options.cache_dir,
    )
    architecture, parity = bundle.info.architecture, exported.parity
    if options.json:
        print_json(
            "export",
            {
                "bundle": str(bundle.folder),
                "path": str(exported.path),
                "target": exported.target,
                "bytes": exported.num_bytes,
                "model": architecture.name,
                "parity": parity.to_dict() if parity else None,
                **({"state_dict": str(exported.path)} if target == STATE_DICT else {}),
                **(
                    {"verified": list(exported.verified), "unverified": list(exported.unverified)}
                    if target == WEB
                    else {}
                ),
            },
        )
        return
    what = {STATE_DICT: "the state dict", DEPLOY: "a deployment", WEB: "a page for browsers"}.get(
        exported.target, exported.target
    )
    print(f"wrote {exported.path}, {what} of {architecture.name} with {architecture.num_classes} classes")
    if parity:
        print(parity.summary())
    for line in exported.verified:
        print(f"verified: {line}")
    for line in exported.unverified:
        print(f"not verified: {line}")
    if target == WEB:
        print(
            f"to open it: python -m http.server --directory {shlex.quote(str(exported.path))}, and http://localhost:8000"
        )
