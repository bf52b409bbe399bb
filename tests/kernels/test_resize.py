"""The kernel that resizes gives the pixels of Pillow, to the last bit, and is used only where it may be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.data import workers
from vivace.data.caching.files import allocate
from vivace.data.preprocess import Preprocess
from vivace.data.workers import decode_files
from vivace.kernels import resize
from vivace.kernels.build import load_library
from vivace.kernels.resize import resize_square, use_fast_resize

# height, width: those of photos, one row more and less than a vector has, strips, the least
SHAPES = [
    (240, 320),
    (320, 240),
    (500, 375),
    (260, 250),
    (17, 15),
    (33, 300),
    (300, 33),
    (16, 16),
    (4, 4),
    (5, 190),
    (1, 1),
]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No other test resizes by the kernel."""
    monkeypatch.setattr(resize, "_folder", None)
    yield
    resize._kernel.cache_clear()


def noise(height: int, width: int, channels: int) -> np.ndarray:
    """Half of it noise, half black and white: sums beyond 0 and 255 on all edges."""
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[: height // 2] = 255 * rng.integers(0, 2, (height // 2, width, channels), dtype=np.uint8)
    return pixels


def by_pillow(pixels: np.ndarray, box: tuple[int, int, int, int], side: int, interpolation: str) -> np.ndarray:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    resized = np.asarray(image.resize((side, side), Image.Resampling[interpolation.upper()], box=box))
    return resized[..., None] if pixels.shape[2] == 1 else resized


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_pixels_are_those_of_pillow(kernels: Path, height: int, width: int, channels: int, interpolation: str) -> None:
    use_fast_resize(kernels)
    pixels = noise(height, width, channels)
    square = min(height, width)
    left, top = (width - square) // 2, (height - square) // 2
    boxes = [(left, top, left + square, top + square), (0, 0, width, height)]
    if square > 4:
        boxes.append((1, 2, square - 1, square))
    for box in boxes:
        for side in (1, 15, 16, 32, 147, 223, 350):
            resized = resize_square(pixels, box, side, interpolation)
            assert resized is not None
            np.testing.assert_array_equal(resized, by_pillow(pixels, box, side, interpolation))


def test_pixels_that_do_not_lie_side_by_side_are_read_rightly(kernels: Path) -> None:
    use_fast_resize(kernels)
    turned = noise(60, 80, 3).transpose(1, 0, 2)[:, ::-1]
    resized = resize_square(turned, (0, 0, 60, 60), 20, "bicubic")
    assert resized is not None
    np.testing.assert_array_equal(resized, by_pillow(np.ascontiguousarray(turned), (0, 0, 60, 60), 20, "bicubic"))


def test_nothing_is_resized_before_it_was_asked_for_nor_by_other_filters(kernels: Path) -> None:
    pixels = noise(60, 80, 3)
    assert resize_square(pixels, (0, 0, 60, 60), 20, "bicubic") is None
    use_fast_resize(kernels)
    assert resize_square(pixels, (0, 0, 60, 60), 20, "lanczos") is None
    assert resize_square(pixels, (0, 0, 60, 60), 20, "bicubic") is not None


def test_without_a_compiler_pillow_resizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library.cache_clear()
    monkeypatch.setenv("CC", "/nowhere/cc")
    use_fast_resize(tmp_path)
    assert resize_square(noise(60, 80, 3), (0, 0, 60, 60), 20, "bicubic") is None
    preprocess = Preprocess(size=20, store_size=20)
    pixels = noise(60, 80, 3)
    np.testing.assert_array_equal(preprocess.store(pixels), by_pillow(pixels, (10, 0, 70, 60), 20, "bicubic"))


def test_a_kernel_with_other_pixels_than_those_of_pillow_is_not_used(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_off(*arguments: object) -> np.ndarray:
        out = right(*arguments)  # type: ignore[arg-type]
        out[0, 0, 0] ^= 1
        return out

    right = resize._resize
    monkeypatch.setattr(resize, "_resize", one_off)
    use_fast_resize(kernels)
    assert resize_square(noise(60, 80, 3), (0, 0, 60, 60), 20, "bicubic") is None


def test_processes_that_decode_photos_use_it(kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MIN_FILES_FOR_PROCESSES", 1)
    paths = []
    for index in range(6):
        # grey ones too, for a network that sees colours
        image = Image.fromarray(noise(100 + index, 160, 3)).convert("L" if index % 3 == 2 else "RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        paths.append(str(tmp_path / f"{index}.jpg"))
        Path(paths[-1]).write_bytes(buffer.getvalue())
    preprocess = Preprocess(size=32, store_size=36)
    allocate(tmp_path / "pixels.npy", (6, 36, 36, 3))
    folder = tmp_path / "kernels"
    decode_files(paths, preprocess, tmp_path / "pixels.npy", num_workers=2, kernels=folder)
    assert list(folder.glob("resize-*.so"))
    images = np.load(tmp_path / "pixels.npy")
    for index, path in enumerate(paths):
        # in this process Pillow resizes
        np.testing.assert_array_equal(images[index], preprocess.store(Image.open(path)))
