"""Prediction: the pixels of evaluation to the last bit, every path accounted for, no bad image fatal."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vivace import prediction
from vivace.batch.names import name_of_written
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.cli import main
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, DataError
from vivace.evaluation.evaluate import evaluate
from vivace.kernels import resize
from vivace.kernels.build import COMPILERS
from vivace.models.zoo import create_model
from vivace.prediction import Predictor, expand_paths, predict, without_repeats
from vivace.uncertainty.scores import Answers

COMPILER = any(map(shutil.which, COMPILERS))
CLASSES = ("blue", "green", "red", "violet", "white", "yellow")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=6),
        classes=CLASSES,
        preprocess=Preprocess(size=32, store_size=36),
    )
    return save_bundle(tmp_path / "bundle", create_model("simple_cnn", 6, size=32), info)


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    """An image that no turn or flip leaves as it is."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4 % 256, y * 6 % 256, (x + y) * 2 % 256], -1).astype(np.uint8))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_alpha() -> Image.Image:
    image = gradient()
    image.putalpha(Image.fromarray(np.mgrid[0:40, 0:60][1].astype(np.uint8) * 4))
    return image


def broken_exif(path: Path) -> None:
    gradient().save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")


KINDS: dict[str, Callable[[Path], None]] = {
    "plain.jpg": lambda path: gradient().save(path),
    "large.jpg": lambda path: gradient(900, 700).save(path),
    "turned.jpg": lambda path: gradient().save(path, exif=turned()),
    "broken-exif.jpg": broken_exif,
    "grey.jpg": lambda path: gradient().convert("L").save(path),
    "cmyk.jpg": lambda path: gradient().convert("CMYK").save(path),
    "alpha.png": lambda path: with_alpha().save(path),
    "grey-alpha.png": lambda path: with_alpha().convert("LA").save(path),
    "palette.gif": lambda path: gradient().save(path),
    "bits16.png": lambda path: Image.fromarray(np.mgrid[0:40, 0:60][1].astype(np.uint16) * 1000).save(path),
}


@pytest.mark.parametrize("many", [False, True], ids=["few images", "many, resized by a kernel"])
def test_predict_sees_the_pixels_of_evaluate_and_says_the_same_to_the_last_bit(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path, many: bool
) -> None:
    """EXIF, grey, CMYK, alpha, palette, 16 bits, and a JPEG large enough to be decoded at a lower resolution."""
    monkeypatch.setattr(resize, "_folder", None)
    if many:
        monkeypatch.setattr(prediction, "MANY_IMAGES", len(KINDS))
    folder = tmp_path / "data" / "red"
    folder.mkdir(parents=True)
    for name, save in KINDS.items():
        save(folder / name)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    original = Predictor._answered

    def record(self: Predictor, images_NHWC: np.ndarray, *, more: bool) -> Answers:
        answers = original(self, images_NHWC, more=more)
        seen.append((np.array(images_NHWC), answers.probs_NK))
        return answers

    monkeypatch.setattr(Predictor, "_answered", record)
    evaluate(bundle, folder.parent, device="cpu")
    result = predict(bundle, folder, topk=6, device="cpu")
    assert bool(list(own_cache.glob("kernels/resize-*.so"))) == (many and COMPILER)
    resize._kernel.cache_clear()
    (evaluated, evaluated_probs), (predicted, predicted_probs) = seen
    assert len(evaluated) == len(KINDS)
    np.testing.assert_array_equal(predicted, evaluated)
    np.testing.assert_array_equal(predicted_probs, evaluated_probs)
    for row, probs in zip(result.rows, evaluated_probs, strict=True):
        assert dict(row.topk) == dict(zip(CLASSES, probs.tolist(), strict=True))


def test_a_turned_image_is_predicted_as_it_is_seen(bundle: Bundle, tmp_path: Path) -> None:
    gradient().save(tmp_path / "turned.png", exif=turned())
    gradient().transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    gradient().save(tmp_path / "fallen.png")
    paths = [tmp_path / name for name in ("turned.png", "upright.png", "fallen.png")]
    turned_row, upright, fallen = predict(bundle, paths, device="cpu", batch_size=1).rows
    assert turned_row.topk == upright.topk
    assert turned_row.topk != fallen.topk


def test_topk_is_sorted_and_cut(bundle: Bundle, tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    whole = predict(bundle, tmp_path / "a.png", topk=99, device="cpu").rows[0]
    probabilities = [probability for _, probability in whole.topk]
    assert sorted(name for name, _ in whole.topk) == list(CLASSES)
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-6)
    best = predict(bundle, tmp_path / "a.png", topk=2, device="cpu").rows[0]
    assert best.topk == whole.topk[:2]
    assert (best.label, best.probability) == whole.topk[0]


def bad_images(folder: Path) -> dict[str, str]:
    """Files that can't be classified, name → problem."""
    buffer = io.BytesIO()
    gradient(200, 200).save(buffer, "JPEG")
    (folder / "b-truncated.jpg").write_bytes(buffer.getvalue()[:-300])
    (folder / "c-empty.jpg").write_bytes(b"")
    (folder / "d-text.jpg").write_text("no image at all")
    (folder / "e-script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage")
    Image.new("RGB", (1, 1)).save(folder / "f-tiny.png")
    Image.new("RGB", (1000, 10)).save(folder / "g-strip.png")
    return {
        "b-truncated.jpg": "truncated",
        "c-empty.jpg": "empty",
        "d-text.jpg": "not_an_image",
        "e-script.png": "format_not_allowed",
        "f-tiny.png": "too_small",
        "g-strip.png": "extreme_aspect",
    }


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_bad_images_are_reported_and_do_not_stop_the_others(bundle: Bundle, tmp_path: Path, batch_size: int) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    gradient().save(folder / "a-good.png")
    problems = bad_images(folder)
    gradient().save(folder / "z-good.png")
    steps: list[tuple[int, int]] = []
    result = predict(
        bundle, folder, batch_size=batch_size, device="cpu", progress=lambda done, total: steps.append((done, total))
    )
    assert [Path(row.path).name for row in result.rows] == ["a-good.png", "z-good.png"]
    assert {Path(failure.path).name: failure.problem for failure in result.failures} == problems
    for failure in result.failures:
        assert failure.path in failure.message
    assert steps[-1] == (8, 8)
    assert result.images_per_second == pytest.approx(2 / result.seconds)


def test_files_that_are_not_there_or_can_not_be_are_reported(bundle: Bundle, tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    result = predict(bundle, [tmp_path / "a.png", tmp_path / "gone.png", "zero\0byte.png"], device="cpu")
    assert len(result.rows) == 1
    assert [failure.problem for failure in result.failures] == ["unreadable", "unreadable"]


def test_only_bad_images_give_no_rows(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    result = predict(bundle, tmp_path / "a.jpg", device="cpu")
    assert (result.rows, len(result.failures), result.images_per_second) == ((), 1, 0)


def test_batches_change_nothing_but_rounding(bundle: Bundle) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    whole = Predictor(bundle, device="cpu").probs(images)
    np.testing.assert_allclose(Predictor(bundle, device="cpu", batch_size=4).probs(images), whole, atol=1e-6)
    assert Predictor(bundle, device="cpu").probs(images[:0]).shape == (0, 6)


def test_a_predictor_serves_many_calls(bundle: Bundle, tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    predictor = Predictor(bundle.folder, device="cpu")
    assert predict(predictor, tmp_path / "a.png").rows == predict(bundle, tmp_path / "a.png", device="cpu").rows
    with pytest.raises(ConfigError, match="device would be ignored: got 'cpu' and a predictor"):
        predict(predictor, tmp_path / "a.png", device="cpu")
    with pytest.raises(ConfigError, match="precision would be ignored: got 'bf16' and a predictor"):
        predict(predictor, tmp_path / "a.png", precision="bf16")


def test_precision_follows_the_bundle_where_the_device_has_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Bundle(bundle.folder, bundle.info.__class__(**{**vars(bundle.info), "precision": "bf16"}))
    monkeypatch.setattr("vivace.predictor.supported_precisions", lambda device: ("fp32", "bf16"))
    assert Predictor(measured, device="cpu").precision == "bf16"
    monkeypatch.setattr("vivace.predictor.supported_precisions", lambda device: ("fp32",))
    assert Predictor(measured, device="cpu").precision == "fp32"
    assert Predictor(measured, device="cpu", precision="bf16").precision == "bf16"


def test_options_that_make_no_sense_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size is out of range: got 0\. Give a whole number of 1 or more"):
        Predictor(bundle, batch_size=0)
    with pytest.raises(ConfigError, match=r"precision is unknown: got 'fp61'\. Did you mean 'fp16'"):
        Predictor(bundle, precision="fp61")
    with pytest.raises(ConfigError, match=r"topk is out of range: got 0"):
        predict(bundle, tmp_path, topk=0)


def test_images_of_another_shape_are_refused(bundle: Bundle) -> None:
    predictor = Predictor(bundle, device="cpu")
    with pytest.raises(DataError, match=r"images must be a uint8 array \[N, 32, 32, 3\]: got uint8 \[2, 36, 36, 3\]"):
        predictor.probs(np.zeros((2, 36, 36, 3), np.uint8))
    with pytest.raises(DataError, match=r"got float32 \[2, 32, 32, 3\]\. Use bundle\.preprocess\.load"):
        predictor.probs(np.zeros((2, 32, 32, 3), np.float32))


def test_a_network_that_overflows_is_not_believed(bundle: Bundle) -> None:
    predictor = Predictor(bundle, device="cpu")
    predictor._classify = lambda images_NHWC: np.full((len(images_NHWC), 6), np.nan, np.float32)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(BundleError, match=r"not finite: .* overflows in fp32\. Train again"):
        predictor.probs(images)
    predictor.precision = "fp16"
    with pytest.raises(BundleError, match=r"overflows in fp16\. Use precision fp32"):
        predictor.probs(images)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Image files, and what is none, below the current folder; their content does not matter here."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "in/b.png",
        "in/a.JPG",
        "in/deep/c.webp",
        "in/notes.txt",
        "in/.hidden.png",
        "in/.git/d.png",
        "e[1].png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_folders_globs_and_files_are_found(tree: Path) -> None:
    inside = ["in/a.JPG", "in/b.png", "in/deep/c.webp"]
    assert expand_paths(["in"]) == inside
    assert expand_paths([Path("in"), "e[1].png"]) == [*inside, "e[1].png"]
    assert expand_paths(["in/*.png"]) == ["in/b.png"]
    assert expand_paths(["in/**/*.webp"]) == ["in/deep/c.webp"]
    # as the shell would hand over what the pattern matches: a file whatever it is, a folder's images
    assert expand_paths(["in/*"]) == ["in/a.JPG", "in/b.png", "in/deep/c.webp", "in/notes.txt"]
    assert expand_paths(["in/notes.txt", "gone.png"]) == ["in/notes.txt", "gone.png"]


def test_a_pipe_in_a_folder_is_not_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "in" / "pipe.png")
    (tree / "in" / "broken.png").symlink_to("nowhere")
    (tree / "in" / "deep" / "up").symlink_to(tree / "in")
    assert expand_paths(["in"]) == ["in/a.JPG", "in/b.png", "in/broken.png", "in/deep/c.webp"]
    assert expand_paths(["in/*.png"]) == ["in/b.png"]


def test_a_list_comes_from_stdin_by_lines_or_zero_bytes(tree: Path) -> None:
    lines = io.BytesIO(b"x.png\r\n\ny z.png\nin\ncaf\xe9.png\n*.png\n")
    found = expand_paths(["-"], stdin=lines)
    assert found == ["x.png", "y z.png", "in/a.JPG", "in/b.png", "in/deep/c.webp", os.fsdecode(b"caf\xe9.png"), "*.png"]
    assert expand_paths(["-"], stdin=io.BytesIO(b"two\nlines.png\0b.png\0")) == ["two\nlines.png", "b.png"]


def test_of_files_that_are_named_again_the_first_name_is_kept(tree: Path) -> None:
    files = expand_paths(["in/b.png", "in", "./in/a.JPG", str(tree / "in" / "b.png"), "gone.png", "gone.png"])
    assert without_repeats(files) == ["in/b.png", "in/a.JPG", "in/deep/c.webp", "gone.png"]


@pytest.mark.parametrize("given", ["empty", "none/*.png", "-"])
def test_nothing_found_is_an_error_that_names_the_path(tree: Path, given: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        expand_paths(["in", given], stdin=io.BytesIO(b"\n"))
    assert str(caught.value).startswith(f"there are no images in {given!r}. Give files, folders, globs")


def test_an_empty_list_is_an_error(tree: Path) -> None:
    with pytest.raises(DataError, match="no images are named: got an empty list"):
        expand_paths([])


def test_a_folder_that_can_not_be_read_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.scandir

    def deny(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(
        DataError, match=r"the folder can't be read: in/deep \(Permission denied\)\. Check its permissions"
    ):
        expand_paths(["in"])


@pytest.fixture
def undecodable(tmp_path: Path) -> str:
    """An image and a broken file in a folder, both with names that are no UTF-8."""
    folder = tmp_path / "names"
    folder.mkdir()
    name = os.path.join(folder, os.fsdecode(b"caf\xe9\n.png"))  # noqa: PTH118
    try:
        gradient().save(name)
    except OSError:
        pytest.skip("this file system takes no such names")
    Path(folder, os.fsdecode(b"b\xe4d.png")).write_bytes(b"")
    return name


def test_names_that_are_no_utf8_survive_on_stdout(
    bundle: Bundle, undecodable: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = os.path.dirname(undecodable)  # noqa: PTH120
    assert main(["predict", str(bundle.folder), folder, "--device", "cpu", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert "caf\\udce9" in out
    assert "b\\udce4d.png (empty)" in err
    assert main(["predict", str(bundle.folder), folder, "--device", "cpu", "--quiet", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert printed["predictions"][0]["path"] == undecodable
    assert printed["failures"][0]["problem"] == "empty"


def test_names_that_are_no_utf8_survive_in_a_table(bundle: Bundle, undecodable: str, tmp_path: Path) -> None:
    folder, table = os.path.dirname(undecodable), tmp_path / "out.csv"  # noqa: PTH120
    assert main(["predict", str(bundle.folder), folder, "--device", "cpu", "--quiet", "--out", str(table)]) == 0
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    assert [row["path"] for row in rows] == [f"{folder}/b\\xe4d.png", f"{folder}/caf\\xe9\n.png"]
    assert name_of_written(rows[1]["path"]) == undecodable
    assert [row["error"] for row in rows] == ["empty", ""]


def test_a_list_on_real_stdin_is_read_as_bytes(
    bundle: Bundle, undecodable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(undecodable) + b"\0"), encoding="ascii"))
    assert [row.path for row in predict(bundle, "-", device="cpu").rows] == [undecodable]


def test_what_is_passed_over_in_a_folder_is_said(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "@eaDir").mkdir(parents=True)
    for name in ("a.png", "@eaDir/thumb.png", "b.png"):
        gradient().save(folder / name)
    (folder / "b.png").rename(folder / "IMG_0001")
    (folder / "notes.txt").write_text("x")
    assert main(["predict", str(bundle.folder), str(folder), "--device", "cpu", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(folder / "IMG_0001"), str(folder / "a.png")]
    assert "warning: skipped 1 of 3 files: 1 .txt; skipped folders of the system" in err
    assert "@eaDir" in err


def test_overwrite_replaces_a_table_and_says_so(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gradient().save(tmp_path / "a.png")
    out = tmp_path / "list.csv"
    out.write_text("mine\n")
    command = ["predict", str(bundle.folder), str(tmp_path / "a.png"), "--device", "cpu", "--quiet", "--out", str(out)]
    assert main(command) == 2
    assert out.read_text() == "mine\n"
    assert main([*command, "--overwrite"]) == 0
    assert out.read_text().startswith("path,error")
    assert f"warning: replaced: {out}\n" in capfd.readouterr().err


def test_overwrite_replaces_nothing_that_is_read(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    image, linked, listing = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "list.csv"
    gradient().save(image, format="png")
    os.link(image, linked)
    listing.write_text(f"{tmp_path / 'a.csv'}\n")
    monkeypatch.chdir(tmp_path)
    for out, paths in (("a.csv", [str(image)]), ("a.csv", [str(tmp_path)]), ("b.csv", ["a.*"]), ("list.csv", ["-"])):
        before = Path(out).read_bytes()
        with listing.open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert main(["predict", str(bundle.folder), *paths, "--quiet", "--out", out, "--overwrite"]) == 2
        assert f"OutputPathError: --out is what is read: {out} and " in capfd.readouterr().err
        assert Path(out).read_bytes() == before


def test_the_exit_status_tells_that_nothing_was_classified(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    for more in ([], ["--json"]):
        assert main(["predict", str(bundle.folder), str(tmp_path / "x.png"), "--device", "cpu", "--quiet", *more]) == 1
    assert "not classified" in capfd.readouterr().err
