"""The deployment folder: it runs without torch and without vivace, and finds out by itself when it is not whole."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from answers import last_answer
from colours import COLOURS, noisy_image
from factories import make_bundle
from vivace.bundle import Bundle, derive_bundle, load_bundle
from vivace.cli import main
from vivace.compression.quantize import quantize_onnx
from vivace.config import to_dict
from vivace.data.decoding import decode
from vivace.data.preprocess import Preprocess
from vivace.errors import ImageError, OutputPathError, ParityError
from vivace.exporting.deployment import folder as folder_module
from vivace.exporting.deployment.folder import PROGRAMS, TEMPLATES, copy_decoder
from vivace.exporting.export import export
from vivace.exporting.exporters import exporter_of
from vivace.files import canonical_json, sha256_of
from vivace.libraries.openvino import core
from vivace.prediction import Predictor
from vivace.runtimes.table import RUNTIMES, with_graph

# runs a program of the folder as `python PROGRAM` would, in a Python that has neither torch nor vivace
RUN = """
import runpy, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "vivace"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
program, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, program.rpartition("/")[0])
try:
    runpy.run_path(program, run_name="__main__")
finally:
    assert not {"torch", "vivace"} & set(sys.modules)
"""


# of a folder with thresholds, rightly
UNCERTAINTY = {
    "method": "lac",
    "penalty": 0.0,
    "free_ranks": 0,
    "coverage": 0.9,
    "set_thresholds": [[0.9, 0.7]],
    "risk": 0.05,
    "answered_from": [[0.05, None]],
    "ood": None,
}


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-I", "-c", RUN, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle, its data, and a deployment for each runtime, with the data's images as goldens."""
    root = tmp_path_factory.mktemp("deployment")
    seed = 0
    for label, colour in COLOURS.items():
        (root / "data" / "test" / label).mkdir(parents=True)
        for index in range(8):
            seed += 1
            image = noisy_image(colour, seed, (40 + index, 60 - 3 * index))
            image.save(root / "data" / "test" / label / (f"{index}.jpg" if index % 2 else f"{index}.png"))
    bundle = make_bundle(root / "bundle", widths=[8, 16], depth=1)
    for runtime in with_graph():
        source = bundle if runtime == "onnx" else export(bundle, runtime, root / "graph").path
        export(source, "deploy", root / runtime, data=root / "data", cache_dir=root / "cache")
    return {name: root / name for name in ("bundle", "data", "graph", *with_graph())}


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made["onnx"], tmp_path / "copied")


def sign_again(folder: Path) -> None:
    """As somebody would who changes files on purpose: every hash of model.json is made right."""
    manifest = json.loads((folder / "model.json").read_bytes())
    manifest.pop("sha256")
    for name, facts in manifest["files"].items():
        facts["sha256"] = sha256_of(folder / name)
    manifest["sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (folder / "model.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("runtime", with_graph())
def test_the_folder_tests_itself_without_torch_and_without_vivace(made: dict[str, Path], runtime: str) -> None:
    done = run(made[runtime] / "selftest.py")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    # the files, 16 images, the end
    assert len(lines) == 18
    assert all(line.startswith("ok") for line in lines)
    assert lines[-1] == f"ok: {runtime} fp32, 16 of 16 goldens, 0 damaged"


@pytest.mark.parametrize("runtime", with_graph())
def test_the_command_line_answers_as_pytorch_does(made: dict[str, Path], runtime: str) -> None:
    images = sorted((made["data"] / "test").rglob("*.*"))
    done = run(made[runtime] / "classifier.py", *images, "--json", "--topk", 2)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    bundle = load_bundle(made["bundle"])
    probs_NK = Predictor(bundle, precision="fp32").probs(np.stack([bundle.preprocess.load(path) for path in images]))
    assert [row["path"] for row in said["predictions"]] == [str(path) for path in images]
    for row, probs_K in zip(said["predictions"], probs_NK, strict=True):
        first, second = np.argsort(-probs_K, kind="stable")[:2]
        assert [entry["label"] for entry in row["topk"]] == [bundle.classes[first], bundle.classes[second]]
        assert row["label"] == bundle.classes[first]
        assert row["probability"] == pytest.approx(probs_K[first], abs=1e-5)


def test_goldens_are_files_of_the_data_of_every_class(made: dict[str, Path]) -> None:
    golden = json.loads((made["onnx"] / "golden" / "golden.json").read_bytes())
    labels = [image["label"] for image in golden["images"]]
    assert sorted(labels.count(label) for label in COLOURS) == [5, 5, 6]
    assert golden["tolerance"] == {"deployed": 1e-3, "pytorch": 1e-3}
    preprocess = load_bundle(made["bundle"]).preprocess
    for image in golden["images"]:
        data = (made["onnx"] / "golden" / image["file"]).read_bytes()
        assert data == (made["data"] / "test" / image["source"].removeprefix("test/")).read_bytes()
        pixels = (made["onnx"] / "golden" / image["pixels"]).read_bytes()
        assert pixels == preprocess.load(data).tobytes()
        probs = np.frombuffer((made["onnx"] / "golden" / image["probs"]).read_bytes(), "<f4")
        np.testing.assert_array_equal(probs, np.array(image["deployed"], np.float32))
    # they tell images apart: a graph that always gave the same answer would not pass
    assert np.ptp([image["pytorch"][0] for image in golden["images"]]) > 0.01


def test_without_data_goldens_are_generated(made: dict[str, Path], tmp_path: Path) -> None:
    exported = export(made["bundle"], "deploy", tmp_path / "out")
    assert exported.parity is not None
    assert (exported.parity.images, exported.num_bytes > 10_000) == ("generated", True)
    assert run(tmp_path / "out" / "selftest.py").returncode == 0
    assert "generated, since no data was given" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["model.onnx", "classifier.py", "golden/golden.json", "golden/03.u8", "golden/03.f32", "classes.txt"]
)
def test_a_changed_file_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    # at the end: programs still run, and a graph still loads
    data[-1:] = b"\n\n" if name.endswith((".py", ".json", ".txt")) else bytes([data[-1] ^ 1])
    (copied / name).write_bytes(data)
    done = run(copied / "selftest.py")
    assert done.returncode == 1 if name != "model.onnx" else done.returncode in (1, 2)
    assert f"{name} is damaged: its SHA-256 is not the recorded one" in done.stdout


def test_a_damaged_graph_is_not_loaded(copied: Path, made: dict[str, Path]) -> None:
    shutil.copyfile(copied / "classes.txt", copied / "model.onnx")
    done = run(copied / "classifier.py", copied / "golden" / "00-blue.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "model.onnx is damaged: its SHA-256 is not the recorded one. Restore it from a copy." in done.stderr


def test_a_graph_that_the_runtime_refuses_is_told(copied: Path) -> None:
    shutil.copyfile(copied / "classes.txt", copied / "model.onnx")
    sign_again(copied)
    done = run(copied / "classifier.py", copied / "golden" / "00-blue.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: the graph can't be run here: " in done.stderr
    assert "deploy the float32 variant" in done.stderr


def test_a_changed_manifest_is_refused(copied: Path) -> None:
    text = (copied / "model.json").read_text()
    (copied / "model.json").write_text(text.replace('"green"', '"greenish"'))
    for program in (copied / "selftest.py", copied / "classifier.py"):
        done = run(program, "image.png")
        assert done.returncode == 2
        assert "model.json was changed after it was written" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("settings", {"settings": {"CACHE_DIR": "{}/written"}}),
        ("settings", {"settings": []}),
        ("files", {"files": {"model.onnx": {"sha256": "0" * 64}, "/dev/zero": {"sha256": "0" * 64}}}),
        ("files", {"files": {"model.onnx": {"sha256": "0" * 64}, "../x": {"sha256": "0" * 64}}}),
        ("files", {"files": {"model.onnx": []}}),
        ("files", {"files": {}}),
        ("classes", {"classes": "abc"}),
        ("classes", {"classes": ["a", "a", "a"]}),
        ("classes", {"classes": [1, 2, 3]}),
        ("classes", {"classes": 5}),
        ("precision", {"precision": "\x1b[31mEVIL"}),
        ("preprocess", {"preprocess": {"size": 24, "store_size": 100_000}}),
        ("preprocess", {"preprocess": {"size": "x"}}),
        ("preprocess", {"preprocess": {"interpolation": []}}),
        ("preprocess", {"preprocess": {"channels": True}}),
        ("preprocess", {"preprocess": []}),
        ("uncertainty", {"uncertainty": []}),
        ("uncertainty", {"uncertainty": UNCERTAINTY | {"method": "own"}}),
        ("uncertainty", {"uncertainty": UNCERTAINTY | {"set_thresholds": [[0.9, 1e300]]}}),
        ("uncertainty", {"uncertainty": UNCERTAINTY | {"answered_from": [[0.05]]}}),
        ("uncertainty", {"uncertainty": UNCERTAINTY | {"coverage": None}}),
        ("uncertainty", {"uncertainty": UNCERTAINTY | {"ood": {"score": "entropy", "threshold": "1"}}}),
    ],
)
def test_a_sealed_manifest_is_not_trusted_in_any_field(copied: Path, what: str, change: dict[str, Any]) -> None:
    manifest = json.loads((copied / "model.json").read_bytes())
    manifest.pop("sha256")
    for key, value in change.items():
        merges = isinstance(value, dict) and key == "preprocess"
        manifest[key] = {**manifest[key], **value} if merges else value
    manifest["sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (copied / "model.json").write_text(json.dumps(manifest))
    for program in (copied / "selftest.py", copied / "classifier.py"):
        done = run(program, copied / "golden" / "00-blue.png")
        assert done.returncode == 2
        said = done.stdout + done.stderr
        assert f"model.json is wrong in {what}. Do not use the folder" in said
        assert "Traceback" not in said
        assert "\x1b" not in said


@pytest.mark.parametrize("image", [{"pixels": 5}, {"file": "../../x"}, {"deployed": [0.5]}, {"pytorch": "x"}])
def test_sealed_goldens_are_not_trusted_in_any_field(copied: Path, image: dict[str, Any]) -> None:
    goldens = json.loads((copied / "golden" / "golden.json").read_bytes())
    goldens["images"][0].update(image)
    (copied / "golden" / "golden.json").write_text(json.dumps(goldens))
    sign_again(copied)
    done = run(copied / "selftest.py")
    assert (done.returncode, done.stderr) == (2, "")
    assert "golden.json is wrong. Do not use the folder" in done.stdout


def test_answers_that_are_no_probabilities_are_told(copied: Path) -> None:
    manifest = json.loads((copied / "model.json").read_bytes())
    manifest.pop("sha256")
    # fewer names than the graph has answers
    manifest["classes"] = manifest["classes"][:2]
    manifest["sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (copied / "model.json").write_text(json.dumps(manifest))
    done = run(copied / "classifier.py", copied / "golden" / "00-blue.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: the answers are no probabilities of 2 classes: " in done.stderr


def test_another_graph_is_found_by_its_answers(copied: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", widths=[8, 16], depth=2)
    exporter_of("onnx").write_graph(other, copied)
    sign_again(copied)
    done = run(copied / "selftest.py")
    assert done.returncode == 1
    assert "FAILED 00-blue.png" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("FAILED: onnx fp32, ")


def test_the_program_reads_no_weights_from_another_file(copied: Path) -> None:
    import onnx

    model = onnx.load(copied / "model.onnx")
    onnx.save(model, copied / "model.onnx", save_as_external_data=True, location="secret.bin", size_threshold=0)
    assert (copied / "secret.bin").stat().st_size
    sign_again(copied)
    done = run(copied / "classifier.py", copied / "golden" / "00-blue.png")
    assert done.returncode == 2
    assert "the graph can't be run here" in done.stderr


def test_another_way_to_resize_is_found_by_its_pixels(copied: Path) -> None:
    text = (copied / "pixels.py").read_text()
    assert 'preprocess["interpolation"]' in text
    (copied / "pixels.py").write_text(text.replace('preprocess["interpolation"]', '"nearest"'))
    sign_again(copied)
    done = run(copied / "selftest.py")
    assert done.returncode == 1
    assert "PIXELS DIFFER by up to" in done.stdout


@pytest.mark.parametrize("earlier", [False, True])
def test_a_folder_that_fails_its_own_test_is_not_left(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    out = tmp_path / "out"
    if earlier:
        shutil.copytree(made["onnx"], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    templates = shutil.copytree(TEMPLATES, tmp_path / "templates")
    text = (templates / "pixels.py").read_text()
    (templates / "pixels.py").write_text(text.replace('preprocess["interpolation"]', '"nearest"'))
    monkeypatch.setattr(folder_module, "TEMPLATES", templates)
    # 40 px to 32: generated images have the size already
    with pytest.raises(ParityError, match=r"the folder fails its own test: FAILED 0\d-.*PIXELS DIFFER"):
        export(made["graph"], "deploy", out, data=made["data"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))


def test_an_image_that_cannot_be_used_is_told_and_the_others_go_on(made: dict[str, Path], tmp_path: Path) -> None:
    good = made["onnx"] / "golden" / "00-blue.png"
    (tmp_path / "note.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "bomb.png").write_bytes(bomb(11_000, 10_000))
    names = ["note.png", "cut.png", "bomb.png", "absent.png"]
    done = run(made["onnx"] / "classifier.py", good, *(tmp_path / name for name in names), "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0
    assert [row["path"] for row in said["predictions"]] == [str(good)]
    assert [row["problem"] for row in said["failures"]] == ["not_an_image", "truncated", "bomb", "unreadable"]
    assert "too many pixels" in said["failures"][2]["message"]
    assert "is 11000 × 10000, the limit is 100,000,000. Make it smaller, or" in said["failures"][2]["message"]


def test_nothing_classified_ends_with_1_and_a_folder_is_no_image(made: dict[str, Path], tmp_path: Path) -> None:
    done = run(made["onnx"] / "classifier.py", tmp_path)
    assert done.returncode == 1
    assert f"this is a folder: {tmp_path}. Give image files." in done.stderr
    assert "emove" not in done.stderr


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of many pixels in a few bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 1 << 20) + b"IDAT" + zlib.compress(bytes(1000))


def test_options_that_mean_nothing_are_refused(made: dict[str, Path]) -> None:
    done = run(made["onnx"] / "classifier.py", "x.png", "--topk", 0)
    assert done.returncode == 2
    assert "--topk and --threads must be 1 or more: got 0 and None" in done.stderr


def test_openvino_is_imported_without_its_converter_and_its_reports(made: dict[str, Path]) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import classifier; classifier.Classifier();"
        "assert not {'openvino_telemetry', 'openvino.tools.ovc', 'torch'} & set(sys.modules);"
        # whoever wants the converter still has it
        "import openvino.tools.ovc; assert callable(openvino.tools.ovc.convert_model)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, made["openvino"]], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_graph_goes_in_as_it_is_in_int8_too(made: dict[str, Path], tmp_path: Path) -> None:
    bundle = load_bundle(made["bundle"])
    exporter_of("onnx").write_graph(bundle, tmp_path)
    images_NHWC = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)

    def add(into: Path) -> Any:
        quantize_onnx(tmp_path, into, images_NHWC)
        return dataclasses.replace(bundle.info, runtime="onnx", precision="int8")

    int8 = derive_bundle(bundle, tmp_path / "int8", add)
    exported = export(int8, "deploy", tmp_path / "out")
    # generated images tell nothing of ranges that were taken from others
    assert exported.parity is None
    out = exported.path
    assert (out / "model.onnx").read_bytes() == (int8.folder / "model.onnx").read_bytes()
    assert json.loads((out / "model.json").read_bytes())["precision"] == "int8"
    golden = json.loads((out / "golden" / "golden.json").read_bytes())
    assert golden["tolerance"] == {"deployed": 0.1, "pytorch": None}
    assert golden["images"][0]["deployed"] != golden["images"][0]["pytorch"]
    assert "ok: onnx int8, 16 of 16 goldens" in run(out / "selftest.py").stdout


def test_only_a_deployment_is_replaced(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(
        OutputPathError, match=r"`out` holds something other than a bundle or a deployment: .*mine has 'th"
    ):
        export(made["graph"], "deploy", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    # what was changed in an older one is somebody's work
    shutil.copytree(made["onnx"], tmp_path / "changed")
    (tmp_path / "changed" / "README.md").write_text("mine")
    with pytest.raises(OutputPathError, match=r"a deployment that vivace wrote, but .*README.md was changed since"):
        export(made["graph"], "deploy", tmp_path / "changed")
    shutil.copytree(made["onnx"], tmp_path / "older")
    export(made["graph"], "deploy", tmp_path / "older")
    assert not (tmp_path / "older" / "model.onnx").exists()


def test_the_verb_writes_a_folder(made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(made["graph"]), "--to", "deploy", "--out", str(out), str(made["data"])]
    assert main(arguments) == 0
    assert f"wrote {out}, a deployment of fast_cnn with 3 classes" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    said = last_answer(capsys.readouterr().out)
    assert (said["target"], said["parity"]["num_images"]) == ("deploy", 24)
    text = (out / "README.md").read_text()
    assert "$" not in text
    # examples are for ONNX Runtime
    assert "cmake" not in text
    assert not (out / "cpp").exists()


def test_everything_that_is_copied_lies_in_the_package() -> None:
    rows = [row.deployment for row in RUNTIMES.values() if row.deployment is not None]
    added = [name for row in rows for name in (*row.examples, *row.readmes)]
    assert "README-examples.md" in added
    for name in (*PROGRAMS, *added, "README.md", "README-reliance.md"):
        assert (TEMPLATES / name).is_file()
    root = Path(__file__).parents[2]
    found = subprocess.run(["git", "check-ignore", "-q", "--no-index", str(TEMPLATES)], cwd=root, check=False)
    # hatchling leaves out what git ignores
    assert found.returncode != 0
    assert TEMPLATES.is_relative_to(root / "src" / "vivace")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_javascript_is_well_formed() -> None:
    subprocess.run(["node", "--check", TEMPLATES / "js" / "classify.mjs"], check=True)
    assert json.loads((TEMPLATES / "js" / "package.json").read_text())["type"] == "module"


# --- the loader's pixels against those of training


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """pixels.py of a deployment, with the decoder beside it."""
    folder = tmp_path_factory.mktemp("loader")
    copy_decoder(folder)
    spec = importlib.util.spec_from_file_location("deployed_pixels", TEMPLATES / "pixels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == "image_decoder"]:
            del sys.modules[name]


def picture(mode: str = "RGB", size: tuple[int, int] = (61, 47)) -> Image.Image:
    """Smooth, noisy, and the same from no two sides."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    noise = np.random.default_rng(0).integers(0, 60, (size[1], size[0], 3))
    waves = np.stack([columns * 3, rows * 4, columns + rows], axis=-1) % 196
    return Image.fromarray((waves + noise).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, kind: str) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encoded(picture(), kind, exif=tags)


def with_alpha(mode: str = "RGBA") -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(picture("L").rotate(180))
    return image.convert(mode)


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.asarray(picture("L")).astype(np.uint16) * 257) ^ 0x55)


def twelve_bit() -> Image.Image:
    return Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 16)


def floating() -> Image.Image:
    values = np.linspace(-50, 300, 1200, dtype=np.float32).reshape(30, 40)
    values[3, 4] = np.nan
    return Image.fromarray(values)


AWKWARD: dict[str, Callable[[], bytes]] = {
    **{f"turned-jpeg-{n}": lambda n=n: turned(n, "JPEG") for n in range(1, 9)},  # type: ignore[misc]
    **{f"turned-png-{n}": lambda n=n: turned(n, "PNG") for n in (3, 5, 6)},  # type: ignore[misc]
    "turned-tiff": lambda: turned(8, "TIFF"),
    "corrupt-exif": lambda: encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"),
    "jpeg": lambda: encoded(picture(), "JPEG"),
    "jpeg-444": lambda: encoded(picture(), "JPEG", quality=100, subsampling=0),
    "jpeg-progressive": lambda: encoded(picture(), "JPEG", progressive=True),
    "jpeg-grey": lambda: encoded(picture("L"), "JPEG"),
    "jpeg-cmyk": lambda: encoded(picture("CMYK"), "JPEG"),
    "jpeg-large": lambda: encoded(picture(size=(413, 297)), "JPEG"),
    "jpeg-large-cmyk": lambda: encoded(picture("CMYK", (300, 280)), "JPEG"),
    "jpeg-narrow": lambda: encoded(picture(size=(200, 5)), "JPEG"),
    "grey": lambda: encoded(picture("L"), "PNG"),
    "grey-alpha": lambda: encoded(with_alpha("LA"), "PNG"),
    "rgba": lambda: encoded(with_alpha(), "PNG"),
    "1-bit": lambda: encoded(picture("1"), "PNG"),
    "palette": lambda: encoded(picture("P"), "PNG"),
    "palette-transparent": lambda: encoded(picture("P"), "PNG", transparency=3),
    "palette-alpha": lambda: encoded(picture("P"), "PNG", transparency=bytes(range(256))),
    "colour-key": lambda: encoded(picture(), "PNG", transparency=(0, 0, 0)),
    "16-bit": lambda: encoded(sixteen_bit(), "PNG"),
    "16-bit-tiff": lambda: encoded(sixteen_bit(), "TIFF"),
    "float-tiff": lambda: encoded(floating(), "TIFF"),
    "lab-tiff": lambda: encoded(Image.fromarray(np.asarray(picture()), "LAB"), "TIFF"),
    "webp": lambda: encoded(with_alpha(), "WEBP", lossless=True),
    "gif": lambda: encoded(picture(), "GIF"),
    "bmp": lambda: encoded(picture(), "BMP"),
    "ppm": lambda: encoded(picture(), "PPM"),
    "stored-already": lambda: encoded(picture(size=(28, 28)), "PNG"),
    "stored-height": lambda: encoded(picture(size=(41, 28)), "PNG"),
    "tiny": lambda: encoded(picture(size=(9, 7)), "PNG"),
    "12-bit-tiff": lambda: encoded(twelve_bit(), "TIFF"),
    "12-bit-tiff-turned": lambda: encoded(twelve_bit(), "TIFF", tiffinfo={0x0112: 6, 281: 4095}),
    "float-0-to-1": lambda: encoded(Image.fromarray(np.asarray(picture("L")) / np.float32(255)), "TIFF"),
    "32-bit-tiff": lambda: encoded(Image.fromarray(np.asarray(picture("L")).astype(np.int32) * 70_000), "TIFF"),
    "pgm-12-bit": lambda: b"P5 61 47 4095\n" + np.asarray(twelve_bit()).astype(">u2").tobytes(),
    "avif": lambda: encoded(picture(), "AVIF", quality=90),
    "xmp": lambda: encoded(picture(), "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "xmp-large": lambda: encoded(picture(size=(413, 297)), "JPEG", xmp=b"<tiff:Orientation>8</tiff:Orientation>"),
}


@pytest.mark.parametrize("simplejpeg", [True, False])
@pytest.mark.parametrize("name", AWKWARD)
def test_pixels_are_those_of_training_to_the_last_bit(
    loader: ModuleType, name: str, simplejpeg: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not simplejpeg:
        monkeypatch.setattr(sys.modules["image_decoder.jpeg"], "simplejpeg", None)
    data = AWKWARD[name]()
    (tmp_path / "image").write_bytes(data)
    for fit, channels, interpolation in itertools.product(
        ("crop", "squash", "pad"), (1, 3), ("nearest", "bilinear", "bicubic", "lanczos")
    ):
        preprocess = Preprocess(
            size=24,
            store_size=28,
            fit=fit,  # type: ignore[arg-type]
            channels=channels,  # type: ignore[arg-type]
            interpolation=interpolation,  # type: ignore[arg-type]
            mean=(0.5,) * channels,
            std=(0.2,) * channels,
        )
        expected = preprocess.load(data)
        for source in (data, tmp_path / "image", str(tmp_path / "image")):
            found = loader.load_pixels(source, preprocess.to_dict())
            assert (found.dtype, found.shape) == (np.uint8, (24, 24, channels))
            np.testing.assert_array_equal(found, expected)


REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no image",
    "cut-png": lambda: encoded(picture(), "PNG")[:300],
    "cut-jpeg": lambda: encoded(picture(), "JPEG")[:-200],
    "cut-jpeg-exif": lambda: turned(6, "JPEG")[:-200],
    "bomb": bomb,
    "smaller-bomb": lambda: bomb(11_000, 10_000),
    "small": lambda: encoded(picture(size=(40, 3)), "PNG"),
    "small-jpeg": lambda: encoded(picture(size=(3, 40)), "JPEG"),
    "strip": lambda: encoded(picture(size=(200, 4)), "PNG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_is_refused_for_the_same_reason(loader: ModuleType, name: str) -> None:
    data, preprocess = REFUSED[name](), Preprocess(size=24, store_size=28)
    with pytest.raises(ImageError) as expected:
        preprocess.load(data)
    with pytest.raises(loader.ImageError) as found:
        loader.load_pixels(data, preprocess.to_dict())
    assert found.value.problem == expected.value.problem


def test_no_pipe_is_waited_for_and_no_document_is_opened(loader: ModuleType, tmp_path: Path) -> None:
    import os

    preprocess = Preprocess(size=24, store_size=28).to_dict()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, problem in (("pipe.jpg", "unreadable"), ("drawing.png", "format_not_allowed"), ("", "unreadable")):
        with pytest.raises(loader.ImageError) as found:
            loader.load_pixels(tmp_path / name, preprocess)
        assert found.value.problem == problem


def test_the_cap_of_pixels_is_that_of_the_bundle(loader: ModuleType) -> None:
    assert loader.MAX_PIXELS == decode.MAX_PIXELS
    data = encoded(picture(size=(200, 150)), "PNG")
    capped = Preprocess(size=24, store_size=28, max_pixels=29_999)
    with pytest.raises(loader.ImageError, match="too many pixels: the image is 200 × 150, the limit is 29,999"):
        loader.load_pixels(data, capped.to_dict())
    assert loader.load_pixels(data, dataclasses.replace(capped, max_pixels=30_000).to_dict()).shape == (24, 24, 3)


def test_a_program_that_lets_half_images_pass_does_not_change_ours(
    loader: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(loader.ImageError, match="damaged"):
        loader.load_pixels(encoded(picture(), "PNG")[:300], Preprocess(size=24, store_size=28).to_dict())
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_bundle_is_not_touched(made: dict[str, Path]) -> None:
    bundle: Bundle = load_bundle(made["bundle"])
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "bundle.json",
        "model.safetensors",
        "sbom.cdx.json",
    ]


def test_a_relative_folder_passes_its_own_test_and_the_names_are_those_of_the_graph(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exported = export(os.path.relpath(made["graph"]), "deploy", "shipped")
    assert exported.path == Path("shipped")
    # no hidden file is left, and what Python makes of a program that was run is no reason to refuse another export
    assert [path.name for path in tmp_path.iterdir()] == ["shipped"]
    assert subprocess.run([sys.executable, "shipped/selftest.py"], check=False, capture_output=True).returncode == 0
    export(made["graph"], "deploy", "shipped")
    for runtime in with_graph():
        manifest = json.loads((made[runtime] / "model.json").read_bytes())
        assert (manifest["input"]["name"], manifest["output"]["name"]) == ("images", "probs")
    graph = core().read_model(made["openvino"] / "model.xml")
    assert (graph.input().names, graph.output().names) == ({"images"}, {"probs"})


def test_a_model_file_without_its_folder_still_knows_its_classes(made: dict[str, Path], tmp_path: Path) -> None:
    import onnxruntime

    bundle = load_bundle(made["bundle"])
    shutil.copyfile(made["onnx"] / "model.onnx", tmp_path / "alone.onnx")
    props = onnxruntime.InferenceSession(tmp_path / "alone.onnx").get_modelmeta().custom_metadata_map
    for name in ("model.xml", "model.bin"):
        shutil.copyfile(made["openvino"] / name, tmp_path / name)
    graph = core().read_model(tmp_path / "model.xml")
    for told in (
        props,
        {key: str(graph.get_rt_info(["vivace", key]).astype(str)) for key in ("classes", "preprocess")},
    ):
        assert json.loads(told["classes"]) == list(bundle.classes)
        assert json.loads(told["preprocess"]) == to_dict(bundle.preprocess)
