"""Fixtures of the models: no test reaches the hub or reads the weights that a person has cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache of a hub that nobody answers for: the port of nothing on this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def publish(offline_hub: Path) -> Callable[[str, dict], None]:
    """publish("timm/NAME.TAG", state_dict): as if these weights had been downloaded before."""
    from safetensors.torch import save_file

    def put(repository: str, weights: dict) -> None:
        folder = offline_hub / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        save_file(weights, snapshot / "model.safetensors")

    return put
