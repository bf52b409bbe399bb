"""Near duplicates: which changed copies are found, and which images that are merely alike are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

import vivace
from vivace.data.alike import neighbours
from vivace.data.alike.near import Alike, near_duplicates
from vivace.data.alike.thumbnails import SYMMETRIES, cosines, grey_thumbnails, turned, turned_cosines
from vivace.data.alike.warping import warp, warped

SIDE = 64


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """A picture of soft shapes in several sizes, as photos have them."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        (x, y), (w, h) = rng.integers(-10, side, 2).tolist(), rng.integers(4, side // 2, 2).tolist()
        draw.ellipse((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def lettered(image: Image.Image) -> Image.Image:
    made = image.copy()
    ImageDraw.Draw(made).text((2, 44), "© PHOTO", fill="white", font=ImageFont.load_default(14))
    return made


def recoloured(image: Image.Image) -> Image.Image:
    hue, *rest = image.convert("HSV").split()
    turned_hue = Image.merge("HSV", (hue.point(lambda value: (value + 20) % 256), *rest)).convert("RGB")
    return ImageEnhance.Contrast(ImageEnhance.Brightness(turned_hue).enhance(0.8)).enhance(0.8)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized": lambda image: image.resize((40, 40)),
    "mirrored": ImageOps.mirror,
    "mirrored upside down": ImageOps.flip,
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180°": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "cropped": lambda image: image.crop((6, 0, 64, 58)),
    "lettered": lettered,
    "recoloured": recoloured,
}


def stored(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.resize((SIDE, SIDE))) for image in images])


def pairs_of(found: Alike) -> set[tuple[tuple[str, int], ...]]:
    return {group.members for group in found.groups}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change: str) -> None:
    originals = [picture(seed) for seed in range(12)]
    copies = [CHANGES[change](image) for image in originals[:4]]
    found = near_duplicates({"train": stored(originals), "test": stored(copies)})
    assert pairs_of(found) == {(("train", row), ("test", row)) for row in range(4)}
    assert (found.num_compared, found.num_flat) == (16, 0)
    done = {group.done for group in found.groups}
    assert done == {change if change.startswith(("mirrored", "turned")) else ""}
    assert all(0.88 <= group.detail <= 1 for group in found.groups)


def test_pictures_of_one_composition_are_no_duplicates() -> None:
    """A disc on a bright ground each, with other details: alike in everything that is coarse."""
    images = []
    for seed in range(40):
        ground = np.full((SIDE, SIDE, 3), 220, np.uint8)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 729
        noise = np.asarray(picture(seed))
        ground[disc] = noise[disc]
        images.append(Image.fromarray(ground))
    assert near_duplicates({"train": stored(images)}).groups == ()


def test_flat_images_are_left_out_and_counted() -> None:
    images = stored([picture(0), ImageOps.mirror(picture(0))])
    ramp = np.linspace(100, 110, SIDE).astype(np.uint8)
    flat = np.stack([np.broadcast_to((ramp + shift)[:, None, None], (SIDE, SIDE, 3)) for shift in range(5)])
    found = near_duplicates({"train": np.concatenate([images, flat])})
    assert pairs_of(found) == {(("train", 0), ("train", 1))}
    assert (found.num_compared, found.num_flat) == (2, 5)


def test_thousands_of_equal_images_are_one_image_and_no_group_of_their_own() -> None:
    images = np.repeat(stored([picture(0), picture(1)]), [2000, 1], axis=0)
    assert near_duplicates({"train": images}) == Alike((), 2, 0)
    mirrored = stored([ImageOps.mirror(picture(0))])
    (group,) = near_duplicates({"train": images, "test": mirrored}).groups
    assert len(group.members) == 2001
    assert group.done == ""


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_have_no_pairs(count: int) -> None:
    assert near_duplicates({"train": stored([picture(0)])[:count]}) == Alike((), count, 0)


def test_a_large_data_set_is_searched_in_cells_and_finds_what_the_exhaustive_search_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    originals = [picture(seed) for seed in range(24)]
    copies = [CHANGES["cropped"](ImageOps.mirror(image)) for image in originals]
    splits = {"train": stored(originals), "test": stored(copies)}
    every = pairs_of(near_duplicates(splits))
    assert len(every) >= 22
    monkeypatch.setattr(neighbours, "MAX_EXHAUSTIVE", 20)
    within_cells = pairs_of(near_duplicates(splits))
    assert len(within_cells & every) >= 0.95 * len(every)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint16, 5), (np.float32, 2), (np.uint8, 1)])
def test_images_of_any_dtype_and_channels_are_compared(dtype: type, channels: int) -> None:
    grey = stored([picture(seed) for seed in range(6)] + [ImageOps.flip(picture(0))]).astype(np.float32)[..., :1]
    images = np.repeat(grey * {np.uint16: 200, np.float32: 1e-3, np.uint8: 1}[dtype], channels, -1).astype(dtype)
    assert pairs_of(near_duplicates({"train": images})) == {(("train", 0), ("train", 6))}


def test_margins_of_padded_images_make_no_duplicates() -> None:
    images = np.full((8, SIDE, SIDE, 3), 128, np.uint8)
    for row in range(8):
        images[row, 16:48] = np.asarray(picture(row).resize((SIDE, 32)))
    images[7] = images[0].transpose(1, 0, 2)
    assert pairs_of(near_duplicates({"train": images}, padded=True)) == {(("train", 0), ("train", 7))}


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_cosines_of_a_turned_image_are_those_that_are_turned(symmetry: tuple[bool, int, int]) -> None:
    thumbnails = grey_thumbnails(stored([picture(3)]))
    np.testing.assert_allclose(
        cosines(turned(thumbnails, symmetry)), turned_cosines(cosines(thumbnails), symmetry), atol=0.01
    )


def test_thumbnails_are_means_of_what_a_pixel_covers() -> None:
    images = stored([picture(5)])
    means = images.reshape(1, 32, 2, 32, 2, 3).mean((2, 4)) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(grey_thumbnails(images), means, atol=0.1)


def test_a_warp_reads_where_it_says() -> None:
    ramp = np.tile(np.arange(32, dtype=np.float32), (1, 32, 1))
    laid, inside = warp(ramp, np.array([[0.5, 0.25, 1, 0]], np.float32))
    # output pixel i lies at u = (2 i + 1) / 32 - 1 and shows 0.5 u + 0.25
    places = ((np.arange(32) + 0.5) / 32 * 2 - 1) * 0.5 + 0.25
    np.testing.assert_allclose(laid[0, 0], (places + 1) / 2 * 32 - 0.5, atol=1e-4)
    assert inside.all()
    np.testing.assert_allclose(warped(ramp, 1), ramp)
    assert warp(ramp, np.array([[1, 0.5, 1, 0]], np.float32))[1].mean() == pytest.approx(0.75)


def test_the_audit_tells_leaks_contradictions_and_duplicates(tmp_path: Path) -> None:
    for split, label, name, image in (
        ("train", "a", "0", picture(0)),
        ("train", "a", "1", picture(1)),
        ("train", "a", "2", picture(2)),
        ("train", "a", "3", CHANGES["turned by 90°"](picture(2))),
        ("train", "b", "4", ImageOps.mirror(picture(1))),
        ("train", "b", "5", picture(5)),
        ("test", "a", "6", CHANGES["recoloured"](picture(0))),
        ("test", "b", "7", picture(7)),
    ):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{name}.png")
    found = vivace.audit(tmp_path / "data", size=64, cache_dir=tmp_path / "cache", quiet=True)
    assert [(finding.kind, finding.severity, finding.names) for finding in found.findings] == [
        ("near_leak", "warning", ("train:train/a/0.png", "test:test/a/6.png")),
        ("near_contradiction", "warning", ("train:train/a/1.png", "train:train/b/4.png")),
        ("near_duplicate", "warning", ("train:train/a/2.png", "train:train/a/3.png")),
    ]
    assert [finding.message for finding in found.findings] == [
        "nearly the same image is in train and test: train:train/a/0.png, test:test/a/6.png",
        "nearly the same image is labelled a and b: train:train/a/1.png, train:train/b/4.png (mirrored)",
        "nearly the same image: train:train/a/2.png, train:train/a/3.png (turned by 90°)",
    ]
    assert found.to_dict()["near_duplicates"] == {"num_groups": 3, "num_compared": 8, "num_flat": 0}
    assert found.summary() == "takes all 8 of these images"
    exact = vivace.audit(tmp_path / "data", size=64, near=False, cache_dir=tmp_path / "cache", quiet=True)
    assert (exact.findings, exact.to_dict()["near_duplicates"]) == ((), None)
