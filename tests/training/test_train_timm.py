"""Networks of timm train through vivace.train and come back out of their bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vivace
from vivace.prediction import Predictor


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_a_network_of_timm_trains_at_small_size(name: str, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    result = vivace.train(
        make_folder(per_class=4),
        epochs=1,
        run=tmp_path / "run",
        tune=False,
        quiet=True,
        overrides={"model.name": f"timm/{name}", "data.size": 32, "batch_size": 4},
    )
    # 9 of 12 images train, and the last batch of one joins the one before: 2 steps
    assert result.num_images_seen == 9
    bundle = vivace.load(result.bundle)
    assert (bundle.info.architecture.name, bundle.info.architecture.num_classes) == (f"timm/{name}", 3)
    probs = Predictor(bundle).probs(np.zeros((2, 32, 32, 3), np.uint8))
    assert probs.shape == (2, 3)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
