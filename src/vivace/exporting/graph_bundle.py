"""A bundle with the graph for another runtime, compared with PyTorch before it is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import torch

from vivace.bundle import Bundle, BundleInfo, derive_bundle
from vivace.errors import VivaceError, first_line
from vivace.exporting.exporters import exporter_of
from vivace.exporting.parity import Parity, check_parity, measure_parity
from vivace.exporting.progress import doing
from vivace.notices import warn
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.table import PORTABLE

__all__ = ["add_graph", "with_graph_for"]


def with_graph_for(
    runtime: str, bundle: Bundle, out: Path, images_NHWC: np.ndarray, images: str
) -> tuple[Bundle, Parity]:
    """Write a bundle that computes by `runtime` in float32, and return it with its certificate.

    images: what images_NHWC are of. Nothing is kept if it raises: ExportError, ParityError, MissingExtra.
    """
    found: list[Parity] = []

    def add(folder: Path) -> BundleInfo:
        doing(f"writing the graph for {runtime}")
        exporter_of(runtime).write_graph(bundle, folder)
        info = dataclasses.replace(bundle.info, runtime=runtime, precision="fp32")
        doing("comparing it with PyTorch")
        # from the files, as their users will
        names = tuple(path.name for path in folder.iterdir())
        classify = load_runtime(runtime, Bundle(folder, info, names), device=torch.device("cpu"), precision="fp32")
        found.append(measure_parity(bundle, classify, images_NHWC, runtime=runtime, precision="fp32", images=images))
        check_parity(found[0])
        # the graph that stands for the network was compared when it was written; now there was nothing to do so with
        is_known = not found[0].compared and bundle.info.parity.get("runtime") == runtime
        return dataclasses.replace(info, parity=bundle.info.parity if is_known else found[0].recorded())

    return derive_bundle(bundle, out, add), found[0]


def add_graph(bundle: Bundle, images_NHWC: np.ndarray, images: str) -> str | None:
    """Add to the bundle of a network of the user's own, in place, the graph that runs without its code.

    Returns None, or why there is none: a warning says it, and the bundle needs the code wherever it is used.
    bundle: with its code.
    """
    try:
        # of what it can't trace torch prints all of the program so far
        with contextlib.redirect_stderr(io.StringIO()):
            with_graph_for(PORTABLE, bundle, bundle.folder, images_NHWC, images)
        return None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # the network is the user's: in a batch of another size it may raise anything
        told = str(error) if isinstance(error, VivaceError) else f"{type(error).__name__}: {first_line(error)}."
        # bundles are shared: the place of a folder that is gone is private, and of no use
        reason = re.sub(r"\S*\.tmp/", "", told)
    network = {**bundle.info.network, "without_graph": reason}
    derive_bundle(bundle, bundle.folder, lambda folder: dataclasses.replace(bundle.info, network=network))
    warn(
        f"the bundle has no graph that runs without the network's code: {reason} The weights are saved; wherever it is "
        "used it needs the code: `vivace.load(folder, model=...)`"
    )
    return reason
