"""The module that writes a runtime's files: its row of `vivace.runtimes.table` names it, and it is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from vivace.bundle import Bundle
from vivace.runtimes.loading import Classifier
from vivace.runtimes.table import RUNTIMES, imported

__all__ = ["Exporter", "GraphExporter", "exporter_of"]


class Exporter(Protocol):
    """Writes the file of a runtime."""

    def write_file(self, bundle: Bundle, path: Path) -> None:
        """Write the file, and beside it those that it reads. Raises MissingExtra, ExportError."""

    def load_file(self, path: Path) -> Classifier:
        """What the runtime computes from a file that was written here a moment ago. Raises MissingExtra."""
        ...


class GraphExporter(Exporter, Protocol):
    """… of a runtime whose bundles hold a graph (its row has `graph_files`)."""

    def write_graph(self, bundle: Bundle, folder: Path) -> None:
        """Write the `graph_files` of a bundle into `folder`, float32, for any number of images.

        Raises MissingExtra, ExportError.
        """

    def copy_labelled(self, bundle: Bundle, folder: Path) -> tuple[str, str]:
        """Copy the files of a bundle's graph into `folder`, named and described even if an older vivace wrote it.

        Returns the names of the input and the output, as they are in the files that were written. A runtime whose row
        has no `deployment` needs none.
        """
        ...


def exporter_of(runtime: str) -> GraphExporter:
    """The exporter of a runtime; only one whose bundles hold a graph writes graphs."""
    return cast("GraphExporter", imported(str(RUNTIMES[runtime].exporter)))
