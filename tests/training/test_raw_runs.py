"""Runs on images that are kept as they are: what only one channel or the low bits tell is learnt; exports agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killed, die_after
from same_weights import assert_same_weights

import vivace
from conftest import TINY
from tiffs import tiff_bytes
from vivace.config import override
from vivace.data.config import AugmentConfig
from vivace.errors import ConfigError, DataError, ImageError
from vivace.training.result import TrainResult

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 300)
# where the images of the two classes differ
LEFT = np.arange(16) < 8


def five_channels() -> np.ndarray:
    """uint8 [300, 16, 16, 5]: noise; in channel 4 the left half is brighter than the right, or darker."""
    images = RNG.integers(0, 256, (300, 16, 16, 5), dtype=np.uint8)
    signs = np.where(LABELS[:, None, None] == 1, 1, -1) * np.where(LEFT, 1, -1)
    images[..., 4] = (RNG.normal(128, 25, (300, 16, 16)) + 40 * signs).clip(0, 255)
    return images


def low_bits() -> np.ndarray:
    """uint16 [300, 16, 16]: the same high byte in all pixels; the classes differ in the low one."""
    values = RNG.integers(0, 100, (300, 16, 16)) + 100 * (LEFT & (LABELS[:, None, None] == 1))
    return (0x4000 + values).astype(np.uint16)


def run_on(data: Any, run: Path, **options: Any) -> TrainResult:
    recipe = {} if options.get("resume") else {"recipe": override(TINY, {"epochs": 5, "augment": AugmentConfig()})}
    return vivace.train(data, run=run, tune=False, quiet=True, **{**recipe, **options})


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, np.ndarray]:
    images = five_channels()
    return run_on((images, LABELS), tmp_path_factory.mktemp("five") / "run"), images


def test_what_only_the_fifth_channel_tells_is_learnt(five: tuple[TrainResult, np.ndarray]) -> None:
    result, images = five
    assert result.val_top1 > 0.95
    assert any("5 channels of uint8, the last axis: they are kept as they are" in line for line in result.warnings)
    bundle = vivace.load(result.bundle)
    assert (bundle.preprocess.channels, bundle.preprocess.pixels, bundle.preprocess.dtype) == (5, "uint8", "uint8")
    # the fifth channel alone decides: without it, it is a guess
    predictor = vivace.Predictor(bundle)
    answers = [row.label for row in predictor(images)]
    assert np.mean(np.array(answers) == LABELS.astype(str)) > 0.95
    swapped = images.copy()
    swapped[..., 4] = swapped[:, :, ::-1, 4]
    mirrored = np.array([row.label for row in predictor(swapped)])
    assert np.mean(mirrored == LABELS.astype(str)) < 0.1


def test_arrays_tensors_and_files_are_classified_alike(five: tuple[TrainResult, np.ndarray], tmp_path: Path) -> None:
    result, images = five
    predictor = vivace.Predictor(result.bundle)
    expected = [row.probability for row in predictor(images[:4])]
    np.save(tmp_path / "0.npy", images[0])
    (tmp_path / "0.tif").write_bytes(tiff_bytes(images[0], deflate=True))
    single = [images[0], images[0].transpose(2, 0, 1), torch.from_numpy(images[0]).movedim(-1, 0), tmp_path / "0.npy"]
    for form in (*single, tmp_path / "0.tif", (tmp_path / "0.tif").read_bytes()):
        assert predictor(form).probability == pytest.approx(expected[0], abs=1e-6)
    for batch in (images[:4].transpose(0, 3, 1, 2), torch.from_numpy(images[:4]).movedim(-1, 1), list(images[:4])):
        assert [row.probability for row in predictor(batch)] == pytest.approx(expected, abs=1e-6)
    found = vivace.predict(result.bundle, [tmp_path / "0.npy", tmp_path / "0.tif"])
    assert [row.probability for row in found.rows] == pytest.approx([expected[0]] * 2, abs=1e-6)


def test_evaluation_draws_and_counts_the_same(five: tuple[TrainResult, np.ndarray], tmp_path: Path) -> None:
    result, images = five
    wrong = np.where(np.arange(300) < 12, 1 - LABELS, LABELS)
    evaluation = vivace.evaluate(result.bundle, {"test": (images, wrong)}, split="test")
    assert evaluation.mistakes
    assert evaluation.images_NHWC.shape[1:] == (16, 16, 5)
    pytest.importorskip("matplotlib")
    from vivace.reporting.figures import mistakes

    rows = [{"image": image, "label": "0", "predicted": "1", "probability": 1.0} for image in evaluation.images_NHWC]
    mistakes(rows, tmp_path / "mistakes.png")
    with pytest.raises(DataError, match=r"has 4 channels of uint8, and 5 channels of uint8 are asked for"):
        vivace.evaluate(result.bundle, (images[..., :4], LABELS))


@pytest.mark.parametrize("kind", ["five", "sixteen"])
def test_a_report_shows_them(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    result, images = request.getfixturevalue(kind)
    assert not any("report" in line for line in result.warnings)
    wrong = np.where(np.arange(300) < 40, 1 - LABELS, LABELS)
    vivace.report(result.bundle, {"test": (images // 2, wrong)}, out=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("data:image/webp") > 3


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, np.ndarray]:
    images = low_bits()
    return run_on((images, LABELS), tmp_path_factory.mktemp("sixteen") / "run"), images


def test_what_only_the_low_bits_of_16_tell_is_learnt(sixteen: tuple[TrainResult, np.ndarray]) -> None:
    result, images = sixteen
    assert result.val_top1 > 0.95
    # as 8 bits all images are one
    assert len(np.unique(images >> 8)) == 1
    bundle = vivace.load(result.bundle)
    assert (bundle.preprocess.pixels, bundle.preprocess.dtype) == ("uint16", "float32")
    assert bundle(images[0]).label == str(LABELS[0])
    with pytest.raises(ImageError, match=r"got uint8 \[16, 16, 1\], they are uint16 with 1 channel"):
        bundle((images[0] >> 8).astype(np.uint8))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", ["five", "sixteen"])
def test_exports_agree_with_pytorch(kind: str, target: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if target == "onnx" else "openvino")
    result, images = request.getfixturevalue(kind)
    exported = vivace.export(result.bundle, to=target, out=tmp_path / "out", data=(images, LABELS))
    assert exported.parity is not None
    assert exported.parity.holds
    assert exported.parity.images == "numpy-arrays"
    found = vivace.Predictor(tmp_path / "out")(images[:8])
    expected = vivace.Predictor(result.bundle)(images[:8])
    assert [a.probability for a in found] == pytest.approx([b.probability for b in expected], abs=1e-3)


@pytest.mark.parametrize("kind", ["five", "sixteen"])
def test_a_deployed_folder_answers_without_torch(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result, images = request.getfixturevalue(kind)
    # its own self-test is run when it is made
    vivace.export(result.bundle, to="deploy", out=tmp_path / "shipped", data=(images, LABELS))
    np.save(tmp_path / "image.npy", images[0])
    (tmp_path / "image.tif").write_bytes(tiff_bytes(images[0].reshape(16, 16, -1)))
    code = (
        "import sys, numpy; from classifier import Classifier, ImageError; model = Classifier()\n"
        "array = numpy.load('../image.npy')\n"
        "for source in ('../image.npy', '../image.tif', array): print(*model.classify(source)[0])\n"
        "try: model.classify(array[:, :, None] * 1.0)\n"
        "except ImageError as error: print(error)\n"
        "assert not {'torch', 'vivace'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "shipped", capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    expected = vivace.Predictor(result.bundle)(images[0])
    for line in lines[:3]:
        label, probability = line.split()
        assert label == expected.label
        assert float(probability) == pytest.approx(expected.probability, abs=1e-3)
    assert "is not as the training images were" in lines[3]
    assert not (tmp_path / "shipped" / "cpp").exists()


def test_floats_on_a_scale_of_their_own_are_learnt_and_the_recipe_keeps_it(tmp_path: Path) -> None:
    images = (low_bits() - 16384.0) * 1e-6 - 3
    data = vivace.Data((images, LABELS), pixels="float32")
    result = run_on(data, tmp_path / "run")
    assert result.val_top1 > 0.95
    preprocess = vivace.load(result.bundle).preprocess
    assert preprocess.mean[0] == pytest.approx(images.mean(), rel=1e-4)
    # said once: neither evaluation nor a resumed run need it again
    assert vivace.evaluate(result.bundle, {"test": (images, LABELS)}).metrics.top1 > 0.95
    assert run_on((images, LABELS), tmp_path / "run", resume=True, epochs=6).epochs == 6


@pytest.mark.parametrize("augmented", [False, True])
def test_a_killed_run_is_resumed_bitwise(augmented: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = five_channels()[:24].astype(np.uint16) * 3, LABELS[:24]
    options = {"recipe": override(TINY, {"augment.cutout": 4} if augmented else {"augment": AugmentConfig()})}
    unbroken = run_on((images, labels), tmp_path / "unbroken", **options)
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        with pytest.raises(Killed):
            run_on((images, labels), tmp_path / "killed", **options)
    assert_same_weights(unbroken, run_on((images.copy(), labels), tmp_path / "killed", resume=True))


def test_augmentations_of_colours_are_left_out_in_one_line(tmp_path: Path) -> None:
    images, labels = five_channels()[:24], LABELS[:24]
    changes = {"augment.trivial_augment": True, "augment.color_jitter": 0.4, "epochs": 1}
    result = run_on((images, labels), tmp_path / "run", recipe=override(TINY, changes))
    (line,) = [line for line in result.warnings if line.startswith("left out augment.")]
    assert line.startswith("left out augment.trivial_augment and augment.color_jitter: of 5 channels of uint8 only")


def test_an_augmentation_of_the_users_sees_the_values(tmp_path: Path) -> None:
    images, labels = low_bits()[:24], LABELS[:24]
    seen = []

    def brighter(images_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append((images_BCHW.dtype, float(images_BCHW.min())))
        return images_BCHW + 10

    run_on((images, labels), tmp_path / "run", augment=brighter, epochs=1)
    assert {dtype for dtype, _ in seen} == {torch.float32}
    assert min(low for _, low in seen) >= 16300
    with pytest.raises(ConfigError, match="NaN, Inf"):
        run_on((images, labels), tmp_path / "nan", augment=lambda images: images / 0, epochs=1)


def test_a_folder_of_tiffs_is_trained_and_predicted(tmp_path: Path) -> None:
    images = five_channels()
    for number, (image, label) in enumerate(zip(images, LABELS, strict=True)):
        place = tmp_path / "bands" / "ab"[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.tif").write_bytes(tiff_bytes(image, deflate=number % 2 == 0, separate=number % 3 == 0))
    result = run_on(tmp_path / "bands", tmp_path / "run")
    assert result.val_top1 > 0.95
    found = vivace.predict(result.bundle, tmp_path / "bands" / "a")
    assert not found.failures
    assert np.mean([row.label == "a" for row in found.rows]) > 0.95


def test_pretrained_weights_are_spread_over_the_channels_in_one_line(tmp_path: Path) -> None:
    from vivace.models.pretrained import available_without_download

    if available_without_download("timm/tf_efficientnet_lite0") is None:
        pytest.skip("no packaged weights")
    images, labels = five_channels()[:40], LABELS[:40]
    options: dict[str, Any] = {"recipe": "finetune", "size": 32, "epochs": 0}
    result = run_on((images, labels), tmp_path / "run", **options)
    assert any(
        "the images have 5 channels of uint8, and their first layer is spread over 5 channels" in line
        for line in result.warnings
    )
    weight = next(
        tensor for name, tensor in vivace.load(result.bundle).build_model().state_dict().items() if tensor.ndim == 4
    )
    assert weight.shape[1] == 5
    # what it answers to grey light in all channels is what it answered to grey
    assert weight.abs().sum() > 0
