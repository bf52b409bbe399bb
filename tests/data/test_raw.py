"""Images that are kept as they are: which axis has the channels, what is stored, measured, loaded and augmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from own import Pairs
from vivace.data.augmentation.augment import Augment
from vivace.data.caching.cache import open_cache
from vivace.data.caching.held import hold
from vivace.data.config import AugmentConfig
from vivace.data.loader import Batches, iterate_eval
from vivace.data.objects.pixels import content_of
from vivace.data.place import Data
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import ConfigError, DataError, ImageError
from vivace.training.loop.arrays import prepare_data
from vivace.training.recipes.recipe import Recipe

RNG = np.random.default_rng(0)
LABELS = np.arange(24) % 3


def values(dtype: str, channels: int, count: int = 24, side: int = 12) -> np.ndarray:
    shape = (count, side, side, channels)
    if dtype == "float32":
        return RNG.normal(-3, 1e3, shape).astype(np.float32)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def seen_as(dtype: str, channels: int, **options: Any) -> Preprocess:
    half = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return Preprocess(**{"size": 12, "store_size": 12, "pixels": dtype, "channels": channels, **half, **options})


KINDS = [("uint8", 2), ("uint8", 4), ("uint8", 5), ("uint16", 1), ("uint16", 3), ("uint16", 7), ("float32", 5)]


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_a_cache_holds_arrays_and_items_of_any_form_as_they_are(dtype: str, channels: int) -> None:
    images = values(dtype, channels)
    first = torch.from_numpy(images).movedim(-1, 1)
    preprocess = seen_as(dtype, channels)
    forms: list[Any] = [
        (images, LABELS),
        (images.transpose(0, 3, 1, 2), LABELS),
        (first, torch.from_numpy(LABELS)),
        Pairs([(image, int(label)) for image, label in zip(images, LABELS, strict=True)]),
        Pairs([(image, int(label)) for image, label in zip(first, LABELS, strict=True)]),
    ]
    for form in forms:
        source = open_source(form)
        assert (source.channels, source.pixels) == (channels, dtype)
        assert any("are kept as they are" in note for note in source.notes)
        cached = open_cache(source, preprocess).splits["train"]
        assert cached.images_NHWC.dtype == dtype
        assert np.array_equal(cached.images_NHWC[:], images)
        # read again from the file, as the next run does
        assert np.array_equal(open_cache(source, preprocess).splits["train"].images_NHWC[3:5], images[3:5])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((12, 10, 5), "last"),
        ((5, 12, 10), "first"),
        ((12, 12, 4), "last"),
        ((2, 12, 12), "first"),
        ((12, 10, 3), ""),
        ((3, 12, 10), ""),
        # 3 is a colour's number on whichever axis it is
        ((3, 5, 12), ""),
    ],
)
def test_which_axis_has_the_channels_is_said_in_one_line(shape: tuple[int, ...], expected: str) -> None:
    content = content_of(np.zeros(shape, np.uint8))
    assert content.note == expected
    if expected:
        data = Pairs(
            [(values("uint8", 1, 1, 60).reshape(-1)[: np.prod(shape)].reshape(shape), n % 2) for n in range(6)]
        )
        (note,) = [note for note in open_source(data).notes if "channel" in note]
        assert f"have {min(shape)} channels of uint8, the {expected} axis: they are kept as they are" in note


def test_floats_with_three_channels_are_8_bits_unless_they_are_to_be_kept() -> None:
    floats = (values("uint8", 3) / np.float32(255)).astype(np.float32)
    assert open_source((floats, LABELS)).pixels == "uint8"
    kept = open_source(Data((floats * 1000, LABELS), pixels="float32"))
    assert (kept.channels, kept.pixels) == (3, "float32")
    assert np.array_equal(open_cache(kept, seen_as("float32", 3)).splits["train"].images_NHWC[:], floats * 1000)
    with pytest.raises(DataError, match=r"not from 0 to 1: .* vivace\.Data\(\.\.\., pixels='float32'\)"):
        open_source((floats * 2, LABELS))


def test_16_bits_of_pillow_are_kept() -> None:
    images = values("uint16", 1)
    data = Pairs([(Image.fromarray(image[..., 0]), int(label)) for image, label in zip(images, LABELS, strict=True)])
    source = open_source(data)
    assert (source.channels, source.pixels) == (1, "uint16")
    assert np.array_equal(open_cache(source, seen_as("uint16", 1)).splits["train"].images_NHWC[:], images)


def test_images_of_another_kind_than_most_are_bad_images() -> None:
    images = values("uint8", 5, 40)
    pairs: list[Any] = [(image, index % 2) for index, image in enumerate(images)]
    pairs[7] = (images[7][..., :4], 1)
    cache = open_cache(open_source(Pairs(pairs)), seen_as("uint8", 5))
    assert cache.audit.quarantined == {"train:train/000007"}
    assert "item 7 has 4 channels of uint8, the others 5 channels of uint8" in str(cache.audit.findings)
    pairs[8:20] = [(image[..., :4], label) for image, label in pairs[8:20]]
    with pytest.raises(DataError, match="13 of 40 images"):
        open_cache(open_source(Pairs(pairs)), seen_as("uint8", 5))
    with pytest.raises(DataError, match=r"splits have images of different kinds: got train 5 .*; val 4 channels"):
        open_source({"train": (images, np.arange(40) % 2), "val": (images[..., :4], np.arange(40) % 2)})


def test_images_of_another_kind_than_those_of_training_are_refused() -> None:
    source = open_source((values("uint8", 5), LABELS))
    with pytest.raises(DataError, match=r"numpy-arrays has 5 channels of uint8, and 3 channels of uint8 are asked for"):
        open_cache(source, seen_as("uint8", 3))
    with pytest.raises(DataError, match=r"has 3 channels of uint8, and 5 channels of uint16 are asked for"):
        open_cache(open_source((values("uint8", 3), LABELS)), seen_as("uint16", 5))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_that_of_pictures_channel_by_channel(fit: Any, interpolation: Any) -> None:
    # nothing overshoots: of 8 bits, Pillow clips between the two axes too
    image = values("uint8", 3, 1, 31)[0, :20] // 3 + 85
    expected = Preprocess(size=16, store_size=16, fit=fit, interpolation=interpolation).store(Image.fromarray(image))
    five = np.concatenate([image, image[..., :2]], -1)
    options: dict[str, Any] = {"size": 16, "store_size": 16, "fit": fit, "interpolation": interpolation}
    found = seen_as("uint8", 5, **options).store(five)
    assert np.array_equal(found[..., :3], expected)
    # 256 times as large, they are rounded 256 times as finely
    deep = seen_as("uint16", 5, **options).store(five.astype(np.uint16) * 256)
    assert np.abs(deep[..., :3] / 256 - expected.astype(float)).max() <= 2
    real = seen_as("float32", 5, **options).store(five.astype(np.float32))
    inside = slice(None) if fit != "pad" else slice(4, 12)
    assert np.abs(real[inside, :, :3].clip(0, 255) - expected[inside]).max() <= 2


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_mean_and_deviation_are_numpys(dtype: str, channels: int) -> None:
    images = values(dtype, channels)
    source = open_source({"train": (images, LABELS), "val": (images, LABELS)})
    data = prepare_data(open_cache(source, seen_as(dtype, channels), allow_leaks=True), Recipe())
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    wanted = images.astype(np.float64) / white
    np.testing.assert_allclose(data.preprocess.mean, wanted.mean((0, 1, 2)), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(data.preprocess.std, wanted.std((0, 1, 2)), rtol=1e-5)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    for dtype, least in (("uint16", 1 / 65535), ("float32", 1.0)):
        images = values(dtype, 4)
        images[..., 2] = 7
        source = open_source({"train": (images, LABELS), "val": (images, LABELS)})
        data = prepare_data(open_cache(source, seen_as(dtype, 4), allow_leaks=True), Recipe())
        assert data.preprocess.std[2] == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_batches_have_the_values_as_float32(dtype: str, resident: bool) -> None:
    images = values(dtype, 5)
    batches = Batches(images, LABELS, batch_size=7, resident=resident)
    for batch in batches.epoch(0):
        assert batch.images_BCHW.dtype == torch.float32
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        wanted = images[batch.indices_B.numpy()].astype(np.float32)
        assert np.array_equal(batch.images_BCHW.permute(0, 2, 3, 1).numpy(), wanted)
    (whole,) = iterate_eval(images, LABELS, batch_size=100)
    assert np.array_equal(whole.images_BCHW.permute(0, 2, 3, 1).numpy(), images.astype(np.float32))


def test_geometric_augmentations_move_values_and_change_none() -> None:
    images = torch.from_numpy(values("uint16", 5).astype(np.float32)).permute(0, 3, 1, 2)
    fill = torch.tensor([1.0, 2, 3, 4, 5])
    augment = Augment(AugmentConfig(flip="random", translate=2, cutout=4), size=12, num_classes=3, fill=fill)
    labels = torch.from_numpy(LABELS)
    moved, _ = augment(images, labels, labels, times_seen=0, generator=torch.Generator().manual_seed(0))
    assert moved.dtype == torch.float32
    is_blank = (moved == fill[:, None, None]).all(1)
    assert 24 * 4 <= is_blank.sum() <= 24 * 16
    for before, after, blank in zip(images, moved, is_blank, strict=True):
        known = {tuple(pixel) for pixel in before.flatten(1).T.tolist()}
        assert all(tuple(pixel) in known for pixel in after.flatten(1).T[~blank.flatten()].tolist())


def test_what_is_held_for_other_processes_is_the_same(tmp_path: Path) -> None:
    images = values("uint16", 5)
    for number, form in enumerate([(images, LABELS), Pairs([(image, n % 3) for n, image in enumerate(images)])]):
        held = hold(open_source(form), tmp_path / str(number))
        cached = open_cache(held, seen_as("uint16", 5), cache_dir=tmp_path / f"cache{number}").splits["train"]
        assert np.array_equal(cached.images_NHWC[:], images)


LOADED: dict[str, tuple[Any, str]] = {
    "another dtype": (values("uint8", 5, 1)[0], r"got uint8 \[12, 12, 5\], they are uint16 with 5 channels"),
    "other channels": (values("uint16", 4, 1)[0], r"got uint16 \[12, 12, 4\], they are uint16 with 5 channels"),
    "no channels": (np.zeros((12, 12, 0), np.uint16), r"got uint16 \[12, 12, 0\]"),
    "a picture": (Image.new("RGB", (12, 12)), r"got uint8 \[12, 12, 3\]"),
    "too few pixels": (np.zeros((2, 2, 5), np.uint16), "too small"),
    "terabytes": (np.broadcast_to(np.zeros(5, np.uint16), (2**20, 2**20, 5)), "too many pixels"),
}


@pytest.mark.parametrize("case", LOADED)
def test_what_is_not_as_in_training_is_refused_when_it_is_classified(case: str) -> None:
    value, message = LOADED[case]
    with pytest.raises(ImageError, match=message):
        seen_as("uint16", 5).load(value)


def test_nan_and_infinity_are_refused() -> None:
    image = np.zeros((12, 12, 5), np.float64)
    image[3, 4] = np.nan, np.inf, 0, 0, 1e300
    for read in (seen_as("float32", 5).load, content_of):
        with pytest.raises(ImageError, match="3 values that are NaN or infinite, or beyond float32"):
            read(image)


def test_pixels_of_8_bits_keep_their_fingerprint() -> None:
    # caches and runs of before are found again
    assert Preprocess(size=32, store_size=32).fingerprint() == "198c726c0dfc320ecebc71d3b37b4e52"
    assert (
        Preprocess(size=32, store_size=32).fingerprint() != seen_as("uint16", 3, size=32, store_size=32).fingerprint()
    )
    with pytest.raises(ConfigError, match=r"preprocess\.channels"):
        Preprocess(size=8, store_size=8, channels=0, mean=(), std=())
