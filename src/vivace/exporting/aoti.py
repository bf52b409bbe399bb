"""A package of AOTInductor: the network compiled for this machine, which torch alone runs."""

from __future__ import annotations

from pathlib import Path

from vivace.bundle import Bundle
from vivace.exporting.pt2 import classifier_of
from vivace.runtimes.aoti import ROW, compile_package
from vivace.runtimes.inductor_private import load_package
from vivace.runtimes.loading import Classifier
from vivace.runtimes.quiet import quiet

__all__ = ["load_file", "write_file"]


def write_file(bundle: Bundle, path: Path) -> None:
    """Write the package to `path`, in the precision of a bundle that computes by AOTInductor, else in float32.

    Raises KernelError if it can't be compiled.
    """
    compile_package(bundle, bundle.info.precision if bundle.info.runtime == ROW.name else "fp32", path)


def load_file(path: Path) -> Classifier:
    """What the package computes."""
    with quiet():
        return classifier_of(load_package(path))
