"""Data of one's own: the same images give the same cache, whatever object holds them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import ToTensor

from own import Pairs, frame_rows, pairs_of, square_arrays
from vivace.data.caching.cache import Cache, open_cache
from vivace.data.caching.held import hold
from vivace.data.place import AnyData, Data
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source

MakeFolder = Callable[..., Path]
PREPROCESS = Preprocess(size=24, store_size=24)
CLASSES = ["blue", "green", "red"]


def cached(data: AnyData) -> Cache:
    return open_cache(open_source(data), PREPROCESS)


def assert_same_images(one: Cache, other: Cache) -> None:
    assert one.classes == other.classes
    assert one.splits.keys() == other.splits.keys()
    for name, split in one.splits.items():
        assert np.array_equal(split.images_NHWC[:], other.splits[name].images_NHWC[:])
        assert split.labels_N.tolist() == other.splits[name].labels_N.tolist()


def as_dataset(root: Path) -> Any:
    return Pairs(pairs_of(root), CLASSES)


def as_pandas(root: Path) -> Any:
    return pytest.importorskip("pandas").DataFrame(frame_rows(root))


def as_polars(root: Path) -> Any:
    return pytest.importorskip("polars").DataFrame(frame_rows(root))


def as_pandas_images(root: Path) -> Any:
    rows = [{**row, "image": image} for row, (image, _) in zip(frame_rows(root), pairs_of(root), strict=True)]
    return pytest.importorskip("pandas").DataFrame(rows).drop(columns="path")


def as_polars_bytes(root: Path) -> Any:
    rows = [{"image": Path(row["path"]).read_bytes(), "label": row["label"]} for row in frame_rows(root)]
    return pytest.importorskip("polars").DataFrame(rows)


def as_huggingface(root: Path, *, embedded: bool = False) -> Any:
    datasets = pytest.importorskip("datasets")
    rows = frame_rows(root)
    images = [{"bytes": Path(row["path"]).read_bytes(), "path": None} if embedded else row["path"] for row in rows]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    values = {"image": images, "label": [CLASSES.index(row["label"]) for row in rows]}
    return datasets.Dataset.from_dict(values, features=features)


def as_huggingface_bytes(root: Path) -> Any:
    return as_huggingface(root, embedded=True)


OBJECTS: dict[str, Callable[[Path], Any]] = {
    "ImageFolder": ImageFolder,
    "ImageFolder ToTensor": lambda root: ImageFolder(root, transform=ToTensor()),
    "Dataset": as_dataset,
    "pandas": as_pandas,
    "polars": as_polars,
    "pandas with images": as_pandas_images,
    "polars with bytes": as_polars_bytes,
    "Hugging Face": as_huggingface,
    "Hugging Face with bytes": as_huggingface_bytes,
}
# they keep the files, or their bytes
SAME_FILES = ("ImageFolder", "pandas", "polars", "polars with bytes", "Hugging Face", "Hugging Face with bytes")


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_gives_the_cache_of_its_files(make_folder: MakeFolder, kind: str) -> None:
    root = make_folder()
    files, own = cached(root), cached(OBJECTS[kind](root))
    assert_same_images(files, own)
    assert (files.fingerprint == own.fingerprint) == (kind in SAME_FILES)


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_dict_of_splits_gives_the_cache_of_a_folder_with_splits(make_folder: MakeFolder, kind: str) -> None:
    root = make_folder(splits=("train", "val"))
    make = OBJECTS[kind]
    own = cached({"train": make(root / "train"), "validation": make(root / "val")})
    assert_same_images(cached(root), own)


def test_a_frame_with_a_split_column_has_splits(make_folder: MakeFolder) -> None:
    pandas = pytest.importorskip("pandas")
    root = make_folder(splits=("train", "test"))
    rows = [{**row, "split": Path(row["path"]).parent.parent.name} for row in frame_rows(root)]
    assert cached(pandas.DataFrame(rows)).fingerprint == cached(root).fingerprint


def test_files_of_a_frame_are_relative_to_the_current_folder(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    root = make_folder()
    monkeypatch.chdir(root.parent)
    rows = [{**row, "path": os.path.relpath(row["path"])} for row in frame_rows(root)]
    assert cached(pandas.DataFrame(rows)).fingerprint == cached(root).fingerprint


def test_columns_of_a_frame_are_named_by_data(make_folder: MakeFolder) -> None:
    pandas = pytest.importorskip("pandas")
    root = make_folder()
    frame = pandas.DataFrame(frame_rows(root)).rename(columns={"path": "where", "label": "what"}).assign(id=7, y=1)
    own = cached(Data(frame, image_column="where", label_column="what"))
    assert own.fingerprint == cached(root).fingerprint


def test_a_data_set_dict_of_hugging_face_is_a_dict_of_splits(make_folder: MakeFolder) -> None:
    datasets = pytest.importorskip("datasets")
    root = make_folder(splits=("train", "test"))
    parts = datasets.DatasetDict({name: as_huggingface(root / name) for name in ("train", "test")})
    assert cached(parts).fingerprint == cached(root).fingerprint


def test_rows_that_hugging_face_selected_are_the_data(make_folder: MakeFolder) -> None:
    root = make_folder()
    whole = as_huggingface_bytes(root)
    own = cached(whole.select(range(len(whole) - 1, -1, -2)))
    assert len(own.splits["train"].names) == len(whole) // 2


def test_a_transform_of_hugging_face_is_not_used_and_a_note_says_so(make_folder: MakeFolder) -> None:
    root = make_folder()
    own = as_huggingface(root)
    own.set_transform(lambda batch: {"image": [None for _ in batch["image"]], "label": batch["label"]})
    source = open_source(own)
    assert [note for note in source.notes if "the transform of hf is not used" in note]
    assert open_cache(source, PREPROCESS).fingerprint == cached(root).fingerprint


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "channels first": lambda images: images.transpose(0, 3, 1, 2),
    "not contiguous": lambda images: np.asfortranarray(images),
    "float32": lambda images: images / np.float32(255),
    "float64": lambda images: images / 255,
    "float16": lambda images: (images / 255).astype(np.float16),
    "tensor": lambda images: torch.from_numpy(images).movedim(-1, 1),
    "float tensor": lambda images: torch.from_numpy(images).movedim(-1, 1) / 255,
    "half tensor": lambda images: (torch.from_numpy(images).movedim(-1, 1) / 255).half(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_give_the_same_cache_in_every_layout(make_folder: MakeFolder, layout: str) -> None:
    images, labels = square_arrays(pairs_of(make_folder()))
    assert cached((LAYOUTS[layout](images), labels)).fingerprint == cached((images, labels)).fingerprint


def test_arrays_a_tensor_data_set_and_pillow_images_are_the_same_data(make_folder: MakeFolder) -> None:
    images, labels = square_arrays(pairs_of(make_folder()))
    arrays = cached((images, labels.tolist()))
    tensors = TensorDataset(torch.from_numpy(images).movedim(-1, 1) / 255, torch.from_numpy(labels))
    pillow = Pairs([(Image.fromarray(image), label) for image, label in zip(images, labels, strict=True)])
    assert arrays.fingerprint == cached(tensors).fingerprint == cached(pillow).fingerprint
    assert arrays.classes == ("0", "1", "2")


def test_grey_arrays_are_a_grey_data_set(make_folder: MakeFolder) -> None:
    images, labels = square_arrays(pairs_of(make_folder()))
    grey = open_source((images[..., 0], labels))
    assert grey.channels == 1
    assert grey.splits["train"].arrays is not None
    assert np.array_equal(grey.splits["train"].arrays[:], images[..., :1])
    pillow = Pairs([(Image.fromarray(image), label) for image, label in zip(images[..., 0], labels, strict=True)])
    assert open_source(pillow).channels == 1


def test_a_memory_map_is_read_block_by_block_and_never_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (5000, 16, 16, 3)
    images = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    images[:] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    largest = 0
    original = np.ascontiguousarray

    def watching(values: Any, *arguments: Any, **options: Any) -> np.ndarray:
        nonlocal largest
        largest = max(largest, np.asarray(values).nbytes)
        return original(values, *arguments, **options)

    monkeypatch.setattr(np, "ascontiguousarray", watching)
    own = cached((images, np.arange(5000) % 5))
    assert len(own.splits["train"].names) == 5000
    assert largest <= images.nbytes // 4


def test_cifar10_of_torchvision_is_the_same_data_as_its_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data, dataset.targets = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), (np.arange(40) % 4).tolist()
    dataset.transform = dataset.target_transform = dataset.transforms = None
    dataset.classes = ["plane", "car", "bird", "cat"]
    source = open_source(dataset)
    assert (source.name, source.classes) == ("CIFAR10-dataset", ("plane", "car", "bird", "cat"))
    own, arrays = cached(dataset), cached((dataset.data, np.array(dataset.classes)[dataset.targets]))
    assert own.splits["train"].digests_N.tolist() == arrays.splits["train"].digests_N.tolist()


def test_subsets_and_concatenations_of_folders_are_read_as_files(make_folder: MakeFolder) -> None:
    root = make_folder()
    whole = ImageFolder(root)
    odd, even = Subset(whole, range(1, 24, 2)), Subset(whole, range(0, 24, 2))
    source = open_source(ConcatDataset([Subset(odd, [0, 2, 4, 5, 8, 10, 11]), even]))
    paths = source.splits["train"].paths
    chosen = [1, 5, 9, 11, 17, 21, 23, *range(0, 24, 2)]
    assert paths == tuple(whole.samples[index][0] for index in chosen)
    assert source.splits["train"].labels.tolist() == [whole.targets[index] for index in chosen]
    assert source.splits["train"].names[0] == "blue/001.png"


def test_a_subset_of_a_data_set_is_read_item_by_item_in_its_order(make_folder: MakeFolder) -> None:
    pairs = pairs_of(make_folder())
    chosen = [23, 0, 9, 1, 10, 22]
    own = cached(Subset(Pairs(pairs, CLASSES), chosen))  # type: ignore[arg-type]
    assert_same_images(own, cached(Pairs([pairs[index] for index in chosen], CLASSES)))


def test_classes_of_concatenated_data_sets_are_matched_by_name(make_folder: MakeFolder) -> None:
    pairs = pairs_of(make_folder())
    backwards = Pairs([(image, 2 - label) for image, label in pairs[12:]], CLASSES[::-1])
    joined = cached(ConcatDataset([Pairs(pairs[:12], CLASSES), backwards]))  # type: ignore[list-item]
    assert_same_images(joined, cached(Pairs(pairs, CLASSES)))


def test_a_class_derived_from_image_folder_may_do_anything_and_is_read_item_by_item(make_folder: MakeFolder) -> None:
    class Inverted(ImageFolder):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            image, label = super().__getitem__(index)
            return Image.eval(image, lambda value: 255 - value), label

    root = make_folder()
    files, own = cached(root).splits["train"], cached(Inverted(root)).splits["train"]
    assert open_source(Inverted(root)).splits["train"].items is not None
    assert np.abs(255 - own.images_NHWC[:].astype(int) - files.images_NHWC[:]).max() <= 1


def test_the_same_data_found_again_reuse_the_cache_and_changed_ones_do_not(make_folder: MakeFolder) -> None:
    pairs = pairs_of(make_folder())
    dataset = Pairs(pairs, CLASSES)
    first = cached(dataset)
    read_at_first = dataset.num_read
    made = (first.folder / "train.npy").stat().st_ino
    again = Pairs([(image.copy(), label) for image, label in pairs], CLASSES)
    assert cached(again).folder == first.folder
    assert (first.folder / "train.npy").stat().st_ino == made
    # once to know the contents, and a second time only to decode them
    assert again.num_read < read_at_first
    changed = list(pairs)
    changed[3] = (Image.eval(pairs[3][0], lambda value: value // 2), pairs[3][1])
    assert cached(Pairs(changed, CLASSES)).fingerprint != first.fingerprint
    # neither took the place of the other
    assert cached(dataset).fingerprint == first.fingerprint


def test_items_are_read_in_order_in_this_process(make_folder: MakeFolder) -> None:
    order: list[int] = []

    class Ordered(Pairs):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            assert type(index) is int
            order.append(index)
            return super().__getitem__(index)

    cached(Ordered(pairs_of(make_folder())))
    assert order[-48:] == [*range(24), *range(24)]


def test_progress_is_told_while_items_are_read(make_folder: MakeFolder) -> None:
    told: list[tuple[int, int]] = []
    open_source(Pairs(pairs_of(make_folder())), progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 24)
    assert told[-1] == (24, 24)


def test_a_program_gets_its_random_numbers_back(make_folder: MakeFolder) -> None:
    dataset = Pairs(pairs_of(make_folder()))
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(7)
    np.random.seed(7)
    open_source(dataset)
    assert (torch.rand(1).item(), np.random.rand()) == expected


@pytest.mark.parametrize("kind", ["Dataset", "arrays", "floats", "bytes"])
def test_held_images_go_to_other_processes_and_are_the_same_data(
    make_folder: MakeFolder, tmp_path: Path, kind: str
) -> None:
    root = make_folder()
    images, labels = square_arrays(pairs_of(root))
    data = {"Dataset": as_dataset(root), "arrays": (images, labels), "floats": (images / 255, labels)}.get(kind)
    source = open_source(as_polars_bytes(root) if data is None else data)
    held = pickle.loads(pickle.dumps(hold(source, tmp_path / "held")))
    one, other = open_cache(source, PREPROCESS), open_cache(open_source(held), PREPROCESS)
    assert one.folder == other.folder
    made = open_cache(held, Preprocess(size=20, store_size=20))
    assert_same_images(made, open_cache(source, Preprocess(size=20, store_size=20)))
    assert made.fingerprint == open_cache(source, Preprocess(size=20, store_size=20)).fingerprint


def test_data_show_their_name_and_never_their_contents(make_folder: MakeFolder) -> None:
    images, labels = square_arrays(pairs_of(make_folder()))
    data = Data((images, labels))
    assert repr(data) == "Data('numpy-arrays')"
    assert str(data) == "numpy-arrays"
    with pytest.raises(TypeError, match="not a path: got numpy-arrays"):
        os.fspath(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ((np.zeros(1), [0]), "numpy-arrays"),
        ((torch.zeros(1), [0]), "torch-tensors"),
        (Pairs([]), "Pairs-dataset"),
        (Subset(Pairs([]), []), "Pairs-dataset"),  # type: ignore[arg-type]
        ({"test": Pairs([]), "train": (np.zeros(1), [0])}, "numpy-arrays"),
    ],
)
def test_names_say_what_the_data_are(data: Any, name: str) -> None:
    assert str(Data(data)) == name


def test_an_image_folder_has_the_name_of_its_folder(make_folder: MakeFolder) -> None:
    root = make_folder("pets", splits=("train", "val"))
    assert str(Data(ImageFolder(root / "train"))) == "pets-dataset"
