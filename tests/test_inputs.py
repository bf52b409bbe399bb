"""A predictor accepts every kind of image with the same pixels, and errors name the image's index."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vivace
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, DataError, ImageError
from vivace.exporting.export import export
from vivace.models.zoo import create_model
from vivace.prediction import predict
from vivace.predictor import Predictor
from vivace.runtimes import openvino

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (40, 60, 1), dtype=np.uint8)
CLASSES = ("a", "b", "c")


def made_bundle(folder: Path) -> Bundle:
    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=3),
        classes=CLASSES,
        preprocess=Preprocess(size=32, store_size=36),
    )
    return save_bundle(folder, create_model("simple_cnn", 3, size=32), info)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """runtime → a bundle of the same network."""
    place = tmp_path_factory.mktemp("bundles")
    bundle = made_bundle(place / "eager")
    return {
        "eager": bundle.folder,
        **{runtime: export(bundle, runtime, place / runtime).path for runtime in ("onnx", "openvino")},
    }


@pytest.fixture
def predictor(folders: dict[str, Path]) -> Predictor:
    return Predictor(folders["eager"], device="cpu", batch_size=2)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def palette() -> Image.Image:
    image = Image.fromarray(RGB).quantize(16)
    image.info["transparency"] = 3
    return image


def turned_jpeg(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(RGB), folder / "turned.jpg", exif=exif)


def as_it_is(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


# name → (the file that is written, what an array of it is)
Case = tuple[Callable[[Path], Path], Callable[[Image.Image], np.ndarray]]
MODES: dict[str, Case] = {
    "L": (lambda folder: saved(Image.fromarray(RGB[..., 0]), folder / "x.png"), as_it_is),
    "RGB": (lambda folder: saved(Image.fromarray(RGB), folder / "x.png"), as_it_is),
    "RGB jpeg": (lambda folder: saved(Image.fromarray(RGB), folder / "x.jpg"), as_it_is),
    "L jpeg": (lambda folder: saved(Image.fromarray(RGB[..., 0]), folder / "x.jpg"), as_it_is),
    "RGBA": (lambda folder: saved(Image.fromarray(np.dstack([RGB, ALPHA])), folder / "x.png"), as_it_is),
    "LA": (lambda folder: saved(Image.fromarray(np.dstack([RGB[..., :1], ALPHA])), folder / "x.png"), as_it_is),
    "P": (
        lambda folder: saved(palette(), folder / "x.png", transparency=3),
        lambda image: np.asarray(image.convert("RGBA")),
    ),
    "1": (lambda folder: saved(Image.fromarray(RGB[..., 0] > 99), folder / "x.png"), as_it_is),
    "I;16": (
        lambda folder: saved(Image.fromarray(RGB[..., 0].astype(np.uint16) * 9), folder / "x.png"),
        as_it_is,
    ),
    "F": (lambda folder: saved(Image.fromarray(RGB[..., 0] / np.float32(255)), folder / "x.tif"), as_it_is),
    "CMYK": (
        lambda folder: saved(Image.fromarray(RGB).convert("CMYK"), folder / "x.jpg"),
        lambda image: np.asarray(image.convert("RGB")),
    ),
    "turned": (turned_jpeg, lambda image: np.asarray(image.transpose(Image.Transpose.ROTATE_270))),
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_picture_has_the_same_pixels_whatever_holds_it(mode: str, channels: int, tmp_path: Path) -> None:
    write, array_of = MODES[mode]
    path = write(tmp_path)
    preprocess = Preprocess(size=32, store_size=36, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    expected = preprocess.load(path)
    assert expected.shape == (32, 32, channels)
    assert expected.std() > 5
    with Image.open(path) as image:
        opened = preprocess.load(image)
    with Image.open(path) as image:
        array = array_of(image)
        decoded = image.copy()
    if mode == "L" and channels == 3:
        np.testing.assert_array_equal(preprocess.load(array[..., None]), expected)
    held = {"bytes": path.read_bytes(), "decoded": decoded, "path as text": str(path), "array": array}
    for name, source in held.items():
        np.testing.assert_array_equal(preprocess.load(source), expected, err_msg=name)
    np.testing.assert_array_equal(opened, expected)
    np.testing.assert_array_equal(preprocess.load(tensor_of(array)), expected)


def tensor_of(array_HWC: np.ndarray) -> torch.Tensor:
    """[C, H, W], as in torchvision."""
    return torch.from_numpy(np.array(array_HWC if array_HWC.ndim == 3 else array_HWC[..., None])).movedim(-1, -3)


def png_of_sixteen_bits(values_HWC: np.ndarray) -> bytes:
    """A PNG file with 16 bits per channel and colours, which Pillow can't write."""
    height, width, channels = values_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("top", [100, 4095, 4096, 65535])
@pytest.mark.parametrize("alpha_top", [3000, 65535])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_become_eight_as_those_of_a_file(channels: int, top: int, alpha_top: int) -> None:
    values_HWC = RNG.integers(0, top, (40, 60, channels), dtype=np.uint16, endpoint=True)
    values_HWC[0, 0, 0] = top
    if channels in (2, 4):
        values_HWC[..., -1] = RNG.integers(0, alpha_top, (40, 60), dtype=np.uint16, endpoint=True)
    preprocess = Preprocess(size=32, store_size=36)
    expected = preprocess.load(png_of_sixteen_bits(values_HWC))
    np.testing.assert_array_equal(preprocess.load(values_HWC), expected)
    np.testing.assert_array_equal(preprocess.load(values_HWC.astype(">u2")), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_rounded_to_the_nearest_of_256(dtype: type) -> None:
    preprocess = Preprocess(size=16, store_size=16)
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.stack([values] * 3, -1)
    np.testing.assert_array_equal(preprocess.load((values / 255).astype(dtype)), expected)
    np.testing.assert_array_equal(preprocess.load(torch.from_numpy((values / 255).astype(dtype))[None]), expected)


def test_tensors_with_a_gradient_or_of_bfloat16_are_images_too(predictor: Predictor) -> None:
    floats = torch.from_numpy(RGB).movedim(-1, 0) / 255
    expected = predictor(RGB)
    assert predictor(floats.requires_grad_()) == expected
    assert predictor(floats.detach().bfloat16()).probability == pytest.approx(expected.probability, abs=0.01)


def test_memory_in_any_order_is_read_as_it_is_seen(predictor: Predictor) -> None:
    mirrored = np.ascontiguousarray(RGB[:, ::-1])
    for array in (RGB[:, ::-1], np.asfortranarray(mirrored)):
        assert predictor(array) == predictor(mirrored)


def test_one_image_has_one_prediction_and_many_have_a_list(predictor: Predictor, tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "x.png")
    (expected,) = predict(predictor, path).rows
    assert predictor(path) == predictor(str(path)) == expected
    assert expected.path == str(path)
    several = [path, path.read_bytes(), Image.fromarray(RGB), RGB, torch.from_numpy(RGB).movedim(-1, 0)]
    for given in (several, tuple(several), iter(several), (image for image in several)):
        found = predictor(given)
        assert [row.path for row in found] == [str(path), "image 1", "image 2", "image 3", "image 4"]
        for row in found:
            assert dict(row.topk) == pytest.approx(dict(expected.topk), abs=1e-6)
    assert predictor(RGB).path == "image 0"


def test_a_batch_is_its_images(predictor: Predictor) -> None:
    images_NHWC = RNG.integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    expected = predictor(list(images_NHWC))
    assert len(expected) == 5
    assert [row.path for row in expected] == [f"image {index}" for index in range(5)]
    assert predictor(images_NHWC) == predictor(torch.from_numpy(images_NHWC).movedim(-1, 1)) == expected
    assert predictor(images_NHWC[..., :1]) == predictor([image[..., 0] for image in images_NHWC])


@pytest.mark.parametrize("nothing", [[], (), iter([]), np.zeros((0, 9, 9, 3), np.uint8), torch.zeros(0, 3, 9, 9)])
def test_nothing_has_no_predictions(predictor: Predictor, nothing: Any) -> None:
    assert predictor(nothing) == []


def test_topk_is_a_number_of_classes(predictor: Predictor) -> None:
    assert len(predictor(RGB, topk=2).topk) == 2
    assert len(predictor([RGB], topk=9)[0].topk) == 3
    with pytest.raises(ConfigError, match="topk is out of range: got 0"):
        predictor(RGB, topk=0)


REFUSED: dict[str, tuple[Any, str]] = {
    "None": (None, "not an image: got None. Give a path"),
    "number": (5, "not an image: got an object of type int. Give a path"),
    "mapping": ({"image": RGB}, r"got an object of type dict. Give list\(mapping.values\(\)\)"),
    "file": (io.BytesIO(b"x"), r"got an object of type BytesIO. Give its bytes: file.read\(\)"),
    "bytearray": (bytearray(b"x"), r"got an object of type bytearray. Give bytes\(...\) of it"),
    "module": (torch.nn.Linear(1, 1), "not an image: got an object of type Linear. Give a path"),
    "no file": ("nowhere.png", "the file can't be read: nowhere.png"),
    "zero byte": ("a\0b", "the file name is invalid: "),
    "empty text": ("", "the file can't be read: "),
    "empty bytes": (b"", "the file is empty: the image"),
    "bytes of text": (b"hello", "the file is not an image: the image"),
    "floats to 255": (
        RGB.astype(np.float32),
        r"the array is not an image: float32 \[40, 60, 3\] from 0 to 255. Give fl",
    ),
    "normalised": (RGB / 255 - 0.5, r"float64 .* from -0.5 to 0.5. Give floats from 0 to 1, before normalization"),
    "not a number": (np.full((9, 9), np.nan), "from nan to nan. Give floats from 0 to 1"),
    "whole numbers": (RGB.astype(np.int64), r"int64 \[40, 60, 3\]. Give uint8 \[H, W\]"),
    "complex": (RGB.astype(np.complex64), "complex64"),
    "names in an array": (np.array(["a.png"]), r"the array is not an image: <U5 \[1\]"),
    "objects": (np.array([RGB, None], object), r"the array is not an image: object \[2\]"),
    "channels first": (RGB.transpose(2, 0, 1), r"as by numpy.moveaxis\(array, 0, -1\)"),
    "batch, channels first": (RGB.transpose(2, 0, 1)[None], r"as by numpy.moveaxis\(array, 1, -1\)"),
    "five dimensions": (RGB[None, None], r"uint8 \[1, 1, 40, 60, 3\]"),
    "no pixels": (np.zeros((0, 9, 3), np.uint8), "the array is empty"),
    "no dimensions": (np.uint8(5), "not an image: got an object of type uint8"),
    "too small": (RGB[:3], "the image is too small: the image is 60 × 3"),
    "strip": (np.zeros((4, 300, 3), np.uint8), "the image is too elongated: the image is 300 × 4"),
    "small picture": (Image.new("RGB", (2, 2)), "the image is too small: the image is 2 × 2"),
    "tensor, channels last": (
        torch.from_numpy(RGB),
        r"tensor is not an image: torch.uint8 \[40, 60, 3\]. .*movedim\(-1",
    ),
    "tensor of a matrix": (torch.zeros(9, 9), r"the tensor is not an image: torch.float32 \[9, 9\]. Give \[C, H, W\]"),
    "whole tensor": (torch.zeros(3, 9, 9, dtype=torch.int64), r"the array is not an image: int64 \[9, 9, 3\]"),
    "tensor to 255": (torch.full((3, 9, 9), 255.0), r"from 255 to 255. Give floats from 0 to 1"),
    "tensor without values": (torch.zeros(3, 9, 9, device="meta"), "the tensor's values can't be read: .* on meta"),
    "sparse tensor": (torch.zeros(3, 9, 9).to_sparse(), "the tensor's values can't be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_an_image_is_refused_and_in_a_list_its_place_is_named(predictor: Predictor, case: str) -> None:
    value, said = REFUSED[case]
    with pytest.raises(DataError, match=said) as caught:
        predictor(value)
    for images in ([RGB, RGB, RGB, value], iter([RGB, RGB, RGB, value])):
        if case == "batch, channels first":
            said = "the array is not an image"
        with pytest.raises(DataError, match=r"^image 3: ") as placed:
            predictor(images)
        assert isinstance(placed.value, ImageError) == isinstance(caught.value, ImageError) or case.startswith("batch")
    for error in (caught.value, placed.value):
        assert "\n" not in str(error)
        assert len(str(error)) <= 500


def test_lists_in_lists_and_batches_in_lists_are_refused(predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"^image 1: not an image: got an object of type list"):
        predictor([RGB, [RGB]])
    with pytest.raises(ImageError, match=r"^image 0: the array is not an image: uint8 \[1, 40, 60, 3\]"):
        predictor([RGB[None]])
    with pytest.raises(ImageError, match=r"^image 0: the array is not an image: uint8 \[1, 40, 60, 3\]"):
        predictor([torch.from_numpy(RGB[None]).movedim(-1, 1)])


def test_a_damaged_file_and_a_closed_one_are_named_by_their_place(predictor: Predictor, tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "x.png")
    (tmp_path / "half.png").write_bytes(path.read_bytes()[:2000])
    closed = Image.open(path)
    closed.close()
    with Image.open(tmp_path / "half.png") as opened:
        for bad in (tmp_path / "half.png", opened, closed):
            with pytest.raises(ImageError, match=r"^image 1: the image is damaged: ") as caught:
                predictor([path, bad])
            assert caught.value.problem == "truncated"
    # and predict continues
    result = predict(predictor, [path, tmp_path / "half.png"])
    assert (len(result.rows), len(result.failures)) == (1, 1)


def test_an_iterator_is_read_a_few_batches_ahead_and_its_errors_are_its_own(predictor: Predictor) -> None:
    read, answered = [0], [0]
    ahead: list[int] = []
    probs = predictor._classify

    def counting(images_NHWC: np.ndarray) -> np.ndarray:
        ahead.append(read[0] - answered[0])
        answered[0] += len(images_NHWC)
        return probs(images_NHWC)

    def images(count: int) -> Iterator[np.ndarray]:
        for index in range(count):
            read[0] += 1
            yield np.full((9, 9), index, np.uint8)
        if count == 7:
            raise OSError("the camera is gone")

    predictor._classify = counting
    assert len(predictor(images(20))) == 20
    assert max(ahead) <= 3 * predictor.batch_size
    with pytest.raises(OSError, match="the camera is gone"):
        predictor(images(7))


def test_an_iterator_may_use_its_memory_again_and_close_its_files(predictor: Predictor, tmp_path: Path) -> None:
    frames = RNG.integers(0, 256, (7, 36, 36, 3), dtype=np.uint8)
    paths = [saved(Image.fromarray(frame), tmp_path / f"{index}.png") for index, frame in enumerate(frames)]

    def camera() -> Iterator[np.ndarray]:
        # of the stored size, so it would not be copied by resizing
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer
        buffer[:] = 0

    def opened() -> Iterator[Image.Image]:
        for path in paths:
            with Image.open(path) as image:
                yield image

    expected = [row.topk for row in predictor(list(frames))]
    assert [row.topk for row in predictor(camera())] == expected
    assert [row.topk for row in predictor(opened())] == expected


def test_one_opened_image_many_times_in_a_list_is_decoded_once_at_a_time(tmp_path: Path) -> None:
    preprocess = Preprocess(size=32, store_size=36)
    path = saved(Image.fromarray(RNG.integers(0, 256, (400, 500, 3), dtype=np.uint8)), tmp_path / "x.png")
    expected = preprocess.load(path)
    for _ in range(5):
        image = Image.open(path)
        with ThreadPoolExecutor(8) as pool:
            for pixels in pool.map(preprocess.load, [image] * 16):
                np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("runtime", ["eager", "onnx", "openvino"])
def test_eight_threads_get_the_predictions_of_one(folders: dict[str, Path], runtime: str) -> None:
    predictor = Predictor(folders[runtime], device="cpu", batch_size=4)
    batches = [RNG.integers(0, 256, (count, 40, 60, 3), dtype=np.uint8) for count in (1, 3, 2, 4, 1, 7, 5, 3)] * 4
    expected = [predictor(batch) for batch in batches]
    fresh = Predictor(folders[runtime], device="cpu", batch_size=4)
    # all at once, so that all request what the first call creates
    start = threading.Barrier(8)

    def ask(thread: int) -> list[list[Any]]:
        start.wait()
        return [fresh(batch) for batch in batches[thread::8]]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for thread, found in enumerate(answers):
        for rows, wanted in zip(found, expected[thread::8], strict=True):
            for row, one in zip(rows, wanted, strict=True):
                # a program for a batch of another size may sum in another order
                assert dict(row.topk) == pytest.approx(dict(one.topk), abs=1e-6)


def test_threads_that_ask_first_together_compile_a_program_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    original = openvino.compile_graph

    def slow(graph: Any, precision: str, *, batch_size: int) -> Any:
        compiled.append(batch_size)
        time.sleep(0.2)
        return original(graph, precision, batch_size=batch_size)

    monkeypatch.setattr(openvino, "compile_graph", slow)
    predictor = Predictor(folders["openvino"], device="cpu")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(predictor, [RGB] * 8))
    assert compiled == [1]
    assert answers == [answers[0]] * 8


HEAVY = ("torch", "torchvision", "timm", "matplotlib", "sklearn", "pandas")
# modules that take longer to import than an image to classify, and are not needed for it
NEEDLESS = ("typeguard", "asyncio", "openvino.tools", "concurrent.futures", "rich", "importlib.metadata")
COMMAND = "from vivace.cli import main; assert main(['predict', FOLDER, IMAGE]) == 0"
PYTHON = "import vivace; print(vivace.Predictor(FOLDER)(IMAGE).label)"


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("code", [COMMAND, PYTHON], ids=["command", "python"])
def test_a_graph_is_run_without_torch(folders: dict[str, Path], runtime: str, code: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("where there is a GPU, torch computes on it")
    path = saved(Image.fromarray(RGB), tmp_path / "x.jpg")
    unwanted = HEAVY if runtime == "onnx" else HEAVY + NEEDLESS
    code = (
        f"import sys; FOLDER, IMAGE = sys.argv[1:]; {code}; sys.exit(str([m for m in {unwanted} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folders[runtime], path], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert any(name in done.stdout for name in CLASSES)


def test_without_torch_the_device_is_still_reported_and_wrong_ones_refused(folders: dict[str, Path]) -> None:
    assert Predictor(folders["onnx"], device="cpu").device == torch.device("cpu")
    with pytest.raises(ConfigError, match="`device` is unknown: got 'gpu'"):
        Predictor(folders["onnx"], device="gpu")
    with pytest.raises(BundleError):
        vivace.Predictor(folders["onnx"].parent / "nowhere")


def test_the_converter_that_was_left_out_comes_when_it_is_called(folders: dict[str, Path]) -> None:
    code = (
        "import sys, vivace; vivace.Predictor(sys.argv[1]); import openvino, torch;"
        "model = openvino.convert_model(torch.nn.ReLU(), example_input=torch.zeros(1, 3));"
        "assert openvino.convert_model.__module__.startswith('openvino.tools.ovc'); sys.exit(len(model.inputs) - 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, folders["openvino"]], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_call_is_exported(predictor: Predictor) -> None:
    assert vivace.Predictor is Predictor
    assert isinstance(predictor(RGB), vivace.Prediction)


HUGE: dict[str, tuple[Callable[[], Any], str]] = {
    "broadcast": (lambda: np.broadcast_to(np.uint8(1), (10**6, 10**6, 3)), "too many pixels"),
    "broadcast floats": (lambda: [np.broadcast_to(np.float32(1), (60_000, 60_000))], "image 0: too many pixels"),
    "empty images": (lambda: np.zeros((20_000_000, 0, 3, 3), np.uint8), "the images are empty"),
    "empty tensors": (lambda: torch.zeros(20_000_000, 3, 0, 3), "the images are empty"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]), "tensor is nested"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", HUGE)
def test_what_stands_for_more_than_it_holds_is_refused_before_it_is_copied(predictor: Predictor, case: str) -> None:
    make, message = HUGE[case]
    with pytest.raises(ImageError, match=message):
        predictor(make())
