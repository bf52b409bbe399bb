"""What is refused of data of one's own: each with its cause, the value received, and how to fix it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor

import vivace
from own import Pairs, frame_rows, pairs_of, square_arrays
from vivace.data.caching.cache import open_cache
from vivace.data.place import Data
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError

MakeFolder = Callable[..., Path]
PREPROCESS = Preprocess(size=16, store_size=16)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


class WithoutLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return IMAGES[0], 0


def pairs(image: Any = IMAGES[0], label: Any = 0) -> Pairs:
    return Pairs([(image, label)] * 12)


KINDS: dict[str, tuple[Any, str]] = {
    "a list": ([(IMAGES[0], 0)], r"data is a list: got one of 1\. Give arrays"),
    "a generator": ((pair for pair in [1]), r"can be read only once: got generator\. Give a map-style Dataset"),
    "an iterator": (iter([]), r"can be read only once: got list_iterator"),
    "a loader": (DataLoader(WithoutLength(), batch_size=2), r"is a DataLoader: got one\. .* `loader\.dataset`"),
    "an iterable data set": (
        Streamed(),
        r"no length and no order: got the IterableDataset Streamed\.",
    ),
    "a data set without a length": (WithoutLength(), r"no length: got WithoutLength, which lacks __len__\. Add it"),
    "images alone": (
        IMAGES,
        r"without labels: got an array \[12, 8, 8, 3\]\. Give both: `\(",
    ),
    "a tensor alone": (torch.zeros(3, 4), r"come without labels: got an array \[3, 4\]"),
    "three arrays": ((IMAGES, LABELS, LABELS), r"arrays are \(images, labels\): got a tuple of 3"),
    "a number": (5, r"neither a path nor a name: got int\. Give a folder"),
    "None": (None, r"neither a path nor a name: got NoneType"),
    "bytes": (b"photos", r"neither a path nor a name: got bytes"),
    "a set": ({1}, r"neither a path nor a name: got set"),
    "an empty dict": ({}, r"a dict of splits is needed: got an empty dict\. Give keys among"),
    "a dict of a batch": ({"image": IMAGES, "label": LABELS}, r"a dict of splits is needed: got keys 'image', 'label'"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_no_data_is_refused_before_anything_is_read(kind: str) -> None:
    value, message = KINDS[kind]
    with pytest.raises(DataError, match=message):
        Data(value)


def test_all_verbs_refuse_it_in_the_same_words(tmp_path: Path) -> None:
    for verb in (vivace.train, vivace.audit):
        with pytest.raises(DataError, match="data is a list: got one of 0"):
            verb([])


OPENED: dict[str, tuple[Any, str]] = {
    "different numbers": ((IMAGES, LABELS[:11]), r"differ in number: got 12 and 11\. Give a label for each image"),
    "no images": ((IMAGES[:0], LABELS[:0]), r"the arrays are empty: got images \[0, 8, 8, 3\]"),
    "no pixels": ((IMAGES[:, :0], LABELS), r"the images have no pixels: got \[12, 0, 8, 3\]"),
    "rows of pixels": ((IMAGES.reshape(12, 192), LABELS), r"not of an image's shape: got uint8 \[12, 192\]\. Give"),
    "squares in rows": ((IMAGES[..., 0].reshape(12, 64), LABELS), r"if each row is an image, reshape them to 8 × 8"),
    "eight channels": ((np.zeros((12, 8, 8, 8), np.uint8), LABELS), r"got uint8 \[12, 8, 8, 8\]\. .* can't be told"),
    "no channels": ((np.zeros((12, 8, 8, 0), np.uint8), LABELS), r"the images have no pixels: got \[12, 8, 8, 0\]"),
    "NaN in five channels": (
        (np.where(np.arange(12)[:, None, None, None] == 4, np.nan, np.zeros((12, 8, 8, 5))), LABELS),
        r"image 4: the image has 320 values that are NaN or infinite",
    ),
    "another dtype": (Data((IMAGES, LABELS), pixels="uint16"), r"not uint16, as `pixels` asks: got uint8"),
    "int64": ((IMAGES.astype(np.int64), LABELS), r"got int64 .*images\.astype\(numpy\.uint8\)"),
    "objects": ((np.array([IMAGES[0], IMAGES[1, :4]], dtype=object), [0, 1]), r"different shapes .* array of objects"),
    "ragged lists": (([IMAGES[0]], [0]), r"the images are no array: got a list\. Give \(images, labels\) as arrays"),
    "two data sets": ((pairs(), pairs()), r"the images are no array: got a Pairs\. .* \{\"train\": …, \"val\": …\}"),
    "floats to 255": ((IMAGES.astype(np.float32), LABELS), r"image 0: the floats are not from 0 to 1"),
    "normalized": ((IMAGES / np.float32(64) - 2, LABELS), r"image 0: the image looks normalized: got"),
    "NaN in images": ((np.full((12, 8, 8), np.nan), LABELS), r"image 0: the image has 64 values that are NaN"),
    "NaN in one image": (
        (np.where(np.arange(12)[:, None, None, None] == 7, np.nan, IMAGES / np.float32(255)), LABELS),
        r"image 7: the image has 192 values that are NaN",
    ),
    "a view of one value that no memory holds": (
        (np.broadcast_to(np.uint8(3), (12, 60_000, 60_000)), LABELS),
        r"the images have over 2,000,000,000 pixels: got \[12, 60000, 60000\]",
    ),
    "float labels": ((IMAGES, LABELS + 0.0), r"label 0: the label is a float: got 0\.0\. .* labels\.astype\(int\)"),
    "NaN labels": ((IMAGES, np.where(LABELS == 1, np.nan, LABELS)), r"label 0: the label is a float|is NaN"),
    "one-hot labels": ((IMAGES, np.eye(3)[LABELS]), r"labels has a single 1: got \[12, 3\]\. .* labels\.argmax\(1\)"),
    "negative labels": ((IMAGES, LABELS - 1), r"a label is out of range: got -1 of item 0\. Give labels from 0 on"),
    "empty names": ((IMAGES, [""] * 12), r"label 0: the label is empty: got ''"),
    "labels of objects": ((IMAGES, [None] * 12), r"label 0: .* neither a whole number nor a text: got None"),
    "one class": ((IMAGES, [0] * 12), r"there is only one class: '0'"),
    "an empty data set": (Pairs([]), r"the data set is empty: got Pairs-dataset with 0 items"),
    "items of a dict": (Pairs([(1, 2)]), r""),
    "float label": (pairs(label=1.0), r"item 0 of Pairs-dataset: the label is a float: got 1\.0"),
    "NaN label": (pairs(label=float("nan")), r"item 0 of Pairs-dataset: the label is NaN: got nan"),
    "one-hot label": (pairs(label=torch.eye(3)[0]), r"has a single 1: got \[12, 3\]\. .* labels\.argmax\(1\)"),
    "a list as a label": (pairs(label=[1]), r"there is only one class: '1'"),
    "label out of range": (
        Pairs([(IMAGES[index], index % 4) for index in range(12)], ["a", "b", "c"]),
        r"a label is out of range: got 3 of item 3\. Give labels from 0 to 2, its 3 classes",
    ),
    "name that is no class": (
        Pairs([(IMAGES[index], "abd"[index % 3]) for index in range(12)], ["a", "b", "c"]),
        r"label 'd' of item 2 is none of its classes\..* They are a, b, c",
    ),
    "numbers and names": (
        Pairs([(IMAGES[index], [0, "one"][index % 2]) for index in range(12)]),
        r"some labels are numbers, some are text: got 0 and 'one'",
    ),
    "classes of the same name": (Pairs([(IMAGES[0], 0)], ["a", "a"]), r"two classes have the same name: got a"),
    "eight channels in items": (
        pairs(np.zeros((8, 8, 8), np.uint8)),
        r"no image of Pairs-dataset can be used; item 0: not of an image's shape: got uint8 \[8, 8, 8\]\. Give",
    ),
    "no channels in items": (pairs(np.zeros((8, 8, 0), np.uint8)), r"item 0: the array is empty: \[8, 8, 0\]"),
    "32 bits of Pillow": (pairs(Image.new("I", (8, 8))), r"more than 8 bits: got mode I\. Give its file"),
    "channels last in a tensor": (pairs(torch.zeros(8, 8, 3)), r"not an image: torch\.float32 \[8, 8, 3\]\. Give \[C"),
    "no image": (pairs(None), r"not an image: got None\. Give an image of Pillow, an array or a tensor"),
    "an object": (pairs(object()), r"not an image: got a object"),
    "an unknown split": ({"train": (IMAGES, LABELS), "extra": (IMAGES, LABELS)}, r"split is unknown: got 'extra'\."),
    "two of a split": ({"val": (IMAGES, LABELS), "valid": (IMAGES, LABELS)}, r"two of the splits are val: got val"),
    "a path in a dict": ({"train": "photos"}, r"the split train is a path: got 'photos'\. Give objects alone"),
    "no training images": ({"test": (IMAGES, LABELS)}, r"no training images in numpy-arrays, only test"),
    "no class in common": (
        {"train": (IMAGES, ["a", "b"] * 6), "val": (IMAGES, ["c", "d"] * 6)},
        r"train and val have no class in common: train has a, b; val has c, d",
    ),
}  # fmt: skip
del OPENED["items of a dict"]


@pytest.mark.parametrize("case", OPENED)
def test_what_can_not_be_used_is_refused_with_how_to_fix_it(case: str) -> None:
    value, message = OPENED[case]
    with pytest.raises(DataError, match=message):
        open_source(value)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({"image": IMAGES[0], "label": 0}, "a dict with image, label"),
        ((IMAGES[0], 0, "more"), "a tuple of 3"),
        (None, "None"),
        (IMAGES[0], "a ndarray"),
    ],
)
def test_an_item_that_is_no_pair_is_refused(item: Any, told: str) -> None:
    class Wrong(Pairs):
        def __getitem__(self, index: int) -> Any:
            return item

    with pytest.raises(DataError, match=rf"item 0 of Wrong-dataset is no pair: got {told}\. Return \(image, label\)"):
        open_source(Wrong([(0, 0)] * 4))


def test_columns_are_refused_where_there_are_none() -> None:
    with pytest.raises(DataError, match=r"only a manifest or a frame has .* got `image_column` 'x' for 'numpy-"):
        open_source(Data((IMAGES, LABELS), image_column="x"))


def test_a_random_transform_is_refused_with_the_reason_and_the_fix(make_folder: MakeFolder) -> None:
    dataset = ImageFolder(make_folder(), transform=RandomHorizontalFlip())
    with pytest.raises(DataError, match=r"from read to read: item \d+ of colours-dataset .* `dataset.transform ="):
        open_source(dataset)
    dataset.transform = None
    assert len(open_source(dataset).splits["train"]) == 24


@pytest.mark.parametrize("source", [random.random, np.random.rand, lambda: torch.rand(1).item()])
def test_any_global_generator_is_noticed(source: Callable[[], float]) -> None:
    dataset = Pairs(
        [(image, label) for image, label in zip(IMAGES, LABELS, strict=True)],
        transform=lambda image: np.roll(image, int(source() * 8), axis=1),
    )
    with pytest.raises(DataError, match="change from read to read"):
        open_source(dataset)


def test_a_rare_random_transform_is_noticed_when_the_images_are_decoded() -> None:
    dataset = Pairs([(image, label) for image, label in zip(IMAGES, LABELS, strict=True)])
    source = open_source(dataset)
    dataset.pairs[7] = (IMAGES[0], 1)
    with pytest.raises(DataError, match="change from read to read: item 7 of Pairs-dataset"):
        open_cache(source, PREPROCESS)


def test_normalized_images_are_refused_with_the_reason_and_the_fix(make_folder: MakeFolder) -> None:
    transform = Compose([ToTensor(), Normalize([0.5] * 3, [0.25] * 3)])
    with pytest.raises(DataError, match=r"item 0: the image looks normalized: got float32 from -.*without Normalize"):
        open_source(ImageFolder(make_folder(), transform=transform))


def test_floats_between_the_levels_are_rounded_and_a_note_says_so(make_folder: MakeFolder) -> None:
    images, labels = square_arrays(pairs_of(make_folder()))
    between = np.clip(images / 255 + 0.001, 0, 1)
    for data in ((between, labels), Pairs(list(zip(between, labels, strict=True)))):
        assert [note for note in open_source(data).notes if "rounded" in note]  # type: ignore[arg-type]
    assert not open_source((images / 255, labels)).notes


class Failing(Pairs):
    """Some items raise."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index in self.bad:
            raise OSError("the server does not answer")
        return super().__getitem__(index)


def many(num_images: int = 60) -> list[tuple[Any, int]]:
    rng = np.random.default_rng(1)
    return [(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), index % 3) for index in range(num_images)]


def test_items_that_raise_are_left_out_and_listed() -> None:
    dataset = Failing(many())
    dataset.bad = (10, 41)
    cache = open_cache(open_source(dataset), PREPROCESS)
    assert cache.audit.num_images == 60
    assert cache.audit.quarantined == {"train:train/000010", "train:train/000041"}
    assert "item 10 of Failing-dataset can't be read: OSError: the server" in cache.audit.of("quarantine")[0].message
    assert cache.audit.reasons() == "2 raised"
    assert len(cache.splits["train"].names) == 58


def test_images_of_another_kind_among_good_ones_are_left_out_and_listed() -> None:
    pairs = many()
    pairs[5] = (np.zeros((12, 12, 5), np.uint8), 2)
    cache = open_cache(open_source(Pairs(pairs)), PREPROCESS)
    (finding,) = cache.audit.of("quarantine")
    assert (finding.kind, finding.names) == ("not_an_image", ("train:train/000005",))


def test_more_than_a_twentieth_of_bad_items_is_refused() -> None:
    dataset = Failing(many())
    dataset.bad = (1, 2, 3, 4)
    with pytest.raises(DataError, match=r"4 of 60 images of Failing-dataset can't be used .*OSError: the server"):
        open_cache(open_source(dataset), PREPROCESS)
    assert len(open_cache(open_source(dataset), PREPROCESS, on_bad_image="skip").splits["train"].names) == 56


def test_a_data_set_that_always_raises_is_refused_at_once() -> None:
    dataset = Failing(many())
    dataset.bad = tuple(range(60))
    with pytest.raises(DataError, match="no image of Failing-dataset can be used; item 0: OSError: the server"):
        open_source(dataset)


def test_an_attribute_classes_that_raises_is_ignored_and_a_note_says_so() -> None:
    class Odd(Pairs):
        @property
        def classes(self) -> Any:
            raise KeyError("names")

    source = open_source(Odd(many()))
    assert source.classes == ("0", "1", "2")
    assert source.notes == ("the attribute classes can't be read and was ignored: KeyError: 'names'",)


def test_a_length_that_raises_is_told() -> None:
    class Odd(Pairs):
        def __len__(self) -> int:
            raise RuntimeError("not loaded")

    with pytest.raises(DataError, match=r"no length: len\(\) of Odd-dataset raised RuntimeError: not loaded\. Give"):
        open_source(Odd(many()))


def test_an_index_out_of_a_subset_is_told() -> None:
    with pytest.raises(DataError, match=r"the indices of a Subset are wrong: .* in Pairs-dataset"):
        open_source(Subset(Pairs(many()), [0, 60]))  # type: ignore[arg-type]


def test_rows_of_a_frame_without_a_file_or_class_are_left_out_and_listed(make_folder: MakeFolder) -> None:
    pandas = pytest.importorskip("pandas")
    rows = frame_rows(make_folder(per_class=20))
    rows[3]["path"], rows[30]["label"] = "nowhere/x.png", None
    cache = open_cache(open_source(pandas.DataFrame(rows)), PREPROCESS)
    assert sorted(finding.kind for finding in cache.audit.of("quarantine")) == ["missing_file", "missing_label"]
    assert "pandas-frame, row 3: there is no such file" in cache.audit.of("quarantine")[0].message


def test_a_frame_without_images_or_rows_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=r"pandas-frame: no column holds the image files: got weight, label"):
        open_source(pandas.DataFrame({"weight": [1.0], "label": ["a"]}))
    with pytest.raises(DataError, match="the frame is empty: got pandas-frame with 0 rows"):
        open_source(pandas.DataFrame({"path": [], "label": []}))


def test_a_lazy_frame_and_a_series_are_refused() -> None:
    polars = pytest.importorskip("polars")
    with pytest.raises(DataError, match=r"the frame is lazy: got a LazyFrame\. Give frame\.collect\(\)"):
        Data(polars.LazyFrame({"path": []}))
    with pytest.raises(DataError, match="a frame with two columns is needed"):
        Data(polars.Series([1]))


def test_streamed_data_of_hugging_face_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    streamed = datasets.Dataset.from_dict({"image": ["a"], "label": [0]}).to_iterable_dataset()
    with pytest.raises(DataError, match=r"the data set is streamed: got IterableDataset\. Load it without"):
        Data(streamed)


def test_test_images_of_hugging_face_without_a_class_are_skipped(make_folder: MakeFolder) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def part(labels: list[int]) -> Any:
        images = [Image.fromarray(image) for image in IMAGES[: len(labels)]]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    source = open_source({"train": part([0, 1, 0, 1]), "test": part([-1, -1])})
    assert list(source.splits) == ["train"]
    assert "skipped 2 test images without a class" in source.notes
