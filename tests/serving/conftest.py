"""Bundles to serve: one for PyTorch, and the same with its graph for ONNX Runtime, which needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Client, answering, process

from factories import make_bundle


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes that PyTorch runs, in float32."""
    return make_bundle(tmp_path_factory.mktemp("served") / "plain", widths=[8], depth=1).folder


@pytest.fixture(scope="session")
def graph_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for ONNX Runtime."""
    from vivace.exporting.export import export

    out = tmp_path_factory.mktemp("served") / "graph"
    export(folder, "onnx", out)
    return out


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    with answering({"plain": folder}) as found:
        yield found


@pytest.fixture(scope="session")
def shared(folder: Path) -> Iterator[Client]:
    """The same for all tests that leave it as it is."""
    with answering({"plain": folder}) as found:
        yield found


@pytest.fixture(scope="session")
def server(graph_folder: Path) -> Iterator[str]:
    """The URL of a server in another process, without torch."""
    with process({"graph": graph_folder}, header_seconds=120.0, idle_seconds=120.0) as (_, url):
        yield url


@pytest.fixture(scope="session")
def impatient(graph_folder: Path) -> Iterator[str]:
    """The same with very short patience."""
    with process({"graph": graph_folder}, header_seconds=0.2, idle_seconds=0.2) as (_, url):
        yield url
