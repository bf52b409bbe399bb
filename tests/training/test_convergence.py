"""A rough check that training still learns as fast as it did: a few seconds on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vivace.training.train import train


@pytest.mark.parametrize(
    ("recipe", "epochs", "at_least"),
    [
        # measured: 100 % validation, 98.9 % test
        ("fast", 4, 0.97),
        # 99.3 and 98.1 %
        ("article", 6, 0.95),
    ],
)
def test_digits_are_learnt_in_a_few_epochs(recipe: str, epochs: int, at_least: float, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    threads = torch.get_num_threads()
    try:
        result = train(
            "digits",
            recipe,
            epochs=epochs,
            # the same on every machine
            overrides={"precision": "fp32", "channels_last": False, "compile": False},
            tune=False,
            run=tmp_path / "run",
            cache_dir=tmp_path / "cache",
            quiet=True,
        )
    finally:
        torch.set_num_threads(threads)
    assert result.val_top1 >= at_least
    # and what is measured on the validation split holds on images that nothing has chosen
    assert result.test_top1 is not None
    assert result.test_top1 >= at_least - 0.03
