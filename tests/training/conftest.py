"""A tiny training job: 24 images of 16 px, a convnet of a few thousand weights, everything switched on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vivace.config import override, to_yaml
from vivace.data.config import AugmentConfig, DataConfig
from vivace.models.config import ModelConfig
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.train import train

TINY = Recipe(
    name="tiny",
    model=ModelConfig(name="fast_cnn", arguments={"widths": [8, 16], "depth": 1, "stride": 2}),
    data=DataConfig(size=16, store_size=20, val_fraction=0.25),
    augment=AugmentConfig(flip="alternating", random_resized_crop=(0.5, 1.0), mixup=0.2),
    optimizer=OptimizerConfig(name="muon", lr=0.05, momentum=0.6, nesterov=True, weight_decay=0.01),
    schedule=ScheduleConfig(name="cosine", warmup=0.2),
    epochs=3,
    batch_size=6,
    ema_decay=0.9,
    precision="fp32",
    channels_last=False,
    compile=False,
    threads=1,
)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Training sets the number of threads of the process: give it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    """TINY as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(TINY))
    return path


@pytest.fixture
def run_tiny(make_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., TrainResult]:
    """run_tiny("name", {"optimizer.name": "adamw"}, resume=…): trains TINY in tmp_path/name on one folder."""
    folder = make_folder()

    def run(name: str = "run", changes: dict[str, Any] | None = None, **options: Any) -> TrainResult:
        # a resumed run brings its own recipe: only what the test changes is asked for
        recipe: Any = {"overrides": changes} if options.get("resume") else {"recipe": override(TINY, changes or {})}
        arguments = {"data": folder, "tune": False, "quiet": True, **recipe, **options}
        return train(run=tmp_path / name, **arguments)

    return run
