"""Graphs that are made once for all searches of a session: to export and to quantize takes most of a search's time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pytest
from small_modules import SPEEDS

from vivace.acceleration.candidates import Builder
from vivace.compression import quantize

QUANTIZERS = {name: kind for name, kind in vars(quantize).items() if isinstance(kind, FunctionType)}


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are kept."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def graphs_made_once(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches take what an earlier one has made of the same bundle and images; not where a test changes how."""
    plain = Builder._made

    def made(builder: Builder, name: str, make: Callable[[Path], None]) -> Path:
        if any(getattr(quantize, one) is not kind for one, kind in QUANTIZERS.items()):
            return plain(builder, name, make)
        what = (builder._bundle.folder / "bundle.json").read_bytes() + builder._calibrate().tobytes()
        kept = graphs / hashlib.sha256(what).hexdigest() / name

        def copied(folder: Path) -> None:
            if not kept.exists():
                make(folder)
                shutil.copytree(folder, kept)
            else:
                shutil.copytree(kept, folder, dirs_exist_ok=True)

        return plain(builder, name, copied)

    monkeypatch.setattr(Builder, "_made", made)


@pytest.fixture
def without_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches for a faster module leave int8 out: to quantize takes longer than all the rest."""
    monkeypatch.delitem(SPEEDS, "openvino int8")
