"""One image as a program has it becomes what its file becomes; the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vivace.data.objects.labels import class_names, label_of, names_of
from vivace.data.objects.pixels import content_of
from vivace.data.preprocess import Preprocess
from vivace.errors import DataError, ImageError

PREPROCESS = Preprocess(size=20, store_size=20)
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 24, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def stored(data: Any) -> np.ndarray:
    if isinstance(data, bytes):
        with PREPROCESS.decoding(data) as (_, picture):
            return PREPROCESS.store(picture)
    return PREPROCESS.store(data if data.shape[2] in (1, 3) else Image.fromarray(data))


def transparent(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(PIXELS[..., 0]))
    return image


SAVED: dict[str, Image.Image] = {
    "RGB": PICTURE,
    "L": PICTURE.convert("L"),
    "1": PICTURE.convert("1"),
    "P": PICTURE.convert("P"),
    "RGBA": transparent(PICTURE.copy()),
    "LA": transparent(PICTURE.convert("L")),
    "CMYK": PICTURE.convert("CMYK"),
}


@pytest.mark.parametrize("mode", SAVED)
def test_an_image_of_pillow_becomes_what_its_file_becomes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    SAVED[mode].save(path)
    expected = stored(path.read_bytes())
    with Image.open(path) as opened:
        assert opened.mode == mode
        assert np.array_equal(stored(content_of(opened).data), expected)
    assert np.array_equal(stored(content_of(str(path)).data), expected)
    assert np.array_equal(stored(content_of({"bytes": None, "path": str(path)}).data), expected)
    assert content_of(path.read_bytes()).data == path.read_bytes()


def test_a_transparent_colour_of_a_palette_is_laid_on_white(tmp_path: Path) -> None:
    palette = PICTURE.convert("P")
    palette.save(tmp_path / "a.png", transparency=int(np.bincount(np.asarray(palette).reshape(-1)).argmax()))
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(stored(content_of(opened).data), stored((tmp_path / "a.png").read_bytes()))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_is_turned_upright_even_after_it_was_converted(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(tmp_path / "a.png", exif=exif)
    expected = stored((tmp_path / "a.png").read_bytes())
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(stored(content_of(opened.convert("RGB")).data), expected)
        # what the program has turned itself is not turned again
        assert np.array_equal(stored(content_of(ImageOps.exif_transpose(opened)).data), expected)


ARRAYS: dict[str, Any] = {
    "channels last": PIXELS,
    "channels first": PIXELS.transpose(2, 0, 1),
    "a view": np.asfortranarray(PIXELS),
    "float32": PIXELS / np.float32(255),
    "float64": PIXELS / 255,
    "float16": (PIXELS / 255).astype(np.float16),
    "tensor": torch.from_numpy(PIXELS).movedim(-1, 0),
    "float tensor": torch.from_numpy(PIXELS).movedim(-1, 0) / 255,
    "double tensor": torch.from_numpy(PIXELS).movedim(-1, 0).double() / 255,
    "half tensor": (torch.from_numpy(PIXELS).movedim(-1, 0) / 255).half(),
    "with a gradient": (torch.from_numpy(PIXELS).movedim(-1, 0) / 255).requires_grad_(),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_and_tensors_give_their_8_bits_back_exactly(kind: str) -> None:
    data, exact, *_ = content_of(ARRAYS[kind])
    assert exact
    assert isinstance(data, np.ndarray)
    assert data.flags["C_CONTIGUOUS"]
    assert np.array_equal(data, PIXELS)


def test_every_level_survives_as_a_float_and_what_lies_between_is_told() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (np.float16, np.float32, np.float64):
        data, exact, *_ = content_of((levels / 255).astype(dtype))
        assert exact
        assert np.array_equal(np.asarray(data)[..., 0], levels)
    assert not content_of(np.full((4, 4), 0.5, np.float32)).exact
    assert not content_of(np.full((4, 4), 0.5, np.float16)).exact


def test_grey_and_black_and_white_have_one_channel() -> None:
    for image in (PIXELS[..., 0], PIXELS[..., :1], torch.from_numpy(PIXELS[..., 0].copy()), PIXELS[..., 0] > 99):
        data = content_of(image).data
        assert isinstance(data, np.ndarray)
        assert data.shape == (30, 24, 1)
    assert set(np.unique(np.asarray(content_of(PIXELS[..., 0] > 99).data))) == {0, 255}


REFUSED: dict[str, tuple[Any, str]] = {
    "as many channels as pixels": (np.zeros((8, 8, 8), np.uint8), r"got uint8 \[8, 8, 8\]\. .* can't be told"),
    "too many in a tensor": (torch.zeros(8, 8, 8), r"not an image: torch\.float32 \[8, 8, 8\]\. Give \[C, H, W\]"),
    "a batch": (np.zeros((1, 8, 8, 3), np.uint8), r"not of an image's shape: got uint8 \[1, 8, 8, 3\]\. Give \[H, W\]"),
    "a row": (np.zeros(64, np.uint8), r"if each row is an image, reshape them to 8 × 8"),
    "nothing": (np.zeros((0, 8), np.uint8), r"the array is empty: \[0, 8\]"),
    "32 bits": (np.zeros((8, 8), np.uint32), r"neither uint8, uint16 nor floats: got uint32\. .* numpy\.uint16"),
    "int64": (
        np.zeros((8, 8), np.int64),
        r"got int64\. If its values are 0 to 255, give image\.astype\(",
    ),
    "complex": (np.zeros((8, 8), complex), r"neither uint8, uint16 nor floats: got complex128"),
    "objects": (np.array([[None]]), r"neither uint8, uint16 nor floats: got object"),
    "normalized": (
        torch.full((3, 8, 8), -1.5),
        r"looks normalized: got float32 from -1\.5 to -1\.5\.",
    ),
    "to 255": (np.full((8, 8), 200.0), r"not from 0 to 1: got float64 from 200 to 200\. If they are from 0 to 255"),
    "NaN": (np.full((8, 8), np.nan), r"has 64 values that are NaN or infinite"),
    "infinite": (np.full((8, 8), np.inf), r"has 64 values that are NaN or infinite"),
    "sparse": (torch.zeros(3, 8, 8).to_sparse(), r"values can't be read: torch\.float32 \[3, 8, 8\]"),
    "without values": (torch.zeros(3, 8, 8, device="meta"), r"values can't be read: .* on meta"),
    "32 bits of Pillow": (Image.new("F", (8, 8)), r"more than 8 bits: got mode F"),
    "a list": ([[0, 1]], r"not an image: got a list"),
    "no file": ("nowhere.png", r"nowhere\.png"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_of_8_bits_is_refused_with_how_to_fix_it(kind: str) -> None:
    value, message = REFUSED[kind]
    with pytest.raises(ImageError, match=message):
        content_of(value)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, 3),
        (np.int8(3), 3),
        (np.uint64(3), 3),
        (True, 1),
        (torch.tensor(3), 3),
        (torch.tensor([3]), 3),
        (np.array([3]), 3),
        (" cat ", "cat"),
        (np.str_("cat"), "cat"),
        ("e\u0301", "é"),
    ],
)
def test_labels_of_python_numpy_and_torch_are_understood(value: Any, label: int | str) -> None:
    found = label_of(value, "item 0")
    assert found == label
    assert type(found) is type(label)


def test_classes_are_named_by_the_attribute_or_by_their_numbers() -> None:
    assert names_of([2, 0], ("a", "b", "c"), "data") == ["c", "a"]
    assert names_of(["c", "a"], ("a", "b", "c"), "data") == ["c", "a"]
    assert names_of([10, 2], None, "data") == ["10", "2"]
    assert class_names([("tench", "Tinca"), ("goldfish",)], []) == ("tench", "goldfish")
    assert class_names(np.array(["a", "b"]), []) == ("a", "b")
    assert class_names([0, 1], []) == ("0", "1")


@pytest.mark.parametrize("classes", [5, "abc", {"a": 0}, [None], [], [["a"], []]])
def test_an_attribute_that_names_no_classes_is_ignored_and_a_note_says_so(classes: Any) -> None:
    notes: list[str] = []
    assert class_names(classes, notes) is None
    assert len(notes) == 1
    assert "the attribute classes is no list of names and was ignored" in notes[0]


def test_a_misspelt_label_is_told_with_the_nearest_class() -> None:
    with pytest.raises(DataError, match=r"label 'tullip' of item 1 is none of its classes\. Did you mean 'tulip'\?"):
        names_of(["rose", "tullip"], ("rose", "tulip"), "data")
