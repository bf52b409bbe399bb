"""The eager runtime computes what the plain network does, from raw pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.bundle import Architecture, Bundle, BundleInfo, load_bundle, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError
from vivace.exporting.export import export
from vivace.models.zoo import create_model
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.table import runnable

CPU = torch.device("cpu")


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[[int], Bundle]:
    """make_bundle(channels): an untrained network of 4 classes."""

    def make(channels: int = 3) -> Bundle:
        torch.manual_seed(0)
        info = BundleInfo(
            architecture=Architecture(name="simple_cnn", num_classes=4, in_channels=channels),
            classes=("a", "b", "c", "d"),
            preprocess=Preprocess(
                size=32,
                store_size=36,
                channels=channels,
                mean=(0.4, 0.5, 0.6)[:channels],
                std=(0.2, 0.3, 0.1)[:channels],
            ),
        )
        return save_bundle(tmp_path / "bundle", create_model("simple_cnn", 4, in_channels=channels, size=32), info)

    return make


def pixels(num_images: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, channels), dtype=np.uint8)


# aoti has a test of its own: its compiler takes ten seconds. inductor's compiler takes five: three channels will do
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        pytest.param(name, channels, marks=[pytest.mark.long] if (name, channels) == ("inductor", 1) else [])
        for name in runnable()
        if name != "aoti"
        for channels in (1, 3)
    ],
)
def test_every_runtime_gives_the_plain_networks_probabilities(
    make_bundle: Callable[[int], Bundle], tmp_path: Path, name: str, channels: int
) -> None:
    bundle, images = make_bundle(channels), pixels(9, channels)
    runs = bundle if name in ("eager", "inductor") else load_bundle(export(bundle, name, tmp_path / name).path)
    probs = load_runtime(name, runs, device=CPU, precision="fp32")(images)
    assert probs.dtype == np.float32
    normalised = (images / 255 - np.array(bundle.preprocess.mean)) / np.array(bundle.preprocess.std)
    with torch.no_grad():
        logits = bundle.build_model()(torch.from_numpy(normalised).float().permute(0, 3, 1, 2).contiguous())
    np.testing.assert_allclose(probs, logits.softmax(1), atol=2e-6)


def test_half_precision_is_close_and_probabilities_still_sum_to_one(make_bundle: Callable[[int], Bundle]) -> None:
    bundle, images = make_bundle(3), pixels(9)
    exact = load_runtime("eager", bundle, device=CPU, precision="fp32")(images)
    rounded = load_runtime("eager", bundle, device=CPU, precision="bf16")(images)
    assert rounded.dtype == np.float32
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.02)
    np.testing.assert_allclose(rounded.sum(1), 1, atol=1e-6)


def test_pixels_that_are_read_only_or_a_cut_out_are_taken(make_bundle: Callable[[int], Bundle]) -> None:
    classify = load_runtime("eager", make_bundle(3), device=CPU, precision="fp32")
    stored = np.random.default_rng(0).integers(0, 256, (5, 36, 36, 3), dtype=np.uint8)
    cut = stored[:, 2:34, 2:34]
    frozen = np.ascontiguousarray(cut)
    frozen.setflags(write=False)
    np.testing.assert_array_equal(classify(frozen), classify(cut))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 3e-2), ("fp16", 1e-2)])
def test_a_gpu_agrees_with_the_cpu(make_bundle: Callable[[int], Bundle], precision: str, tolerance: float) -> None:
    bundle, images = make_bundle(3), pixels(33)
    expected = load_runtime("eager", bundle, device=CPU, precision="fp32")(images)
    probs = load_runtime("eager", bundle, device=torch.device("cuda"), precision=precision)(images)
    np.testing.assert_allclose(probs, expected, atol=tolerance)


def test_an_unknown_runtime_is_refused_with_the_nearest(make_bundle: Callable[[int], Bundle]) -> None:
    with pytest.raises(ConfigError, match=r"the runtime is unknown: got 'eagre'\. Did you mean 'eager'\? Known: eager"):
        load_runtime("eagre", make_bundle(3), device=CPU, precision="fp32")
