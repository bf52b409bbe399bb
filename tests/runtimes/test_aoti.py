"""AOTInductor: compiled once for a machine, loaded ever after, and never believed for something else."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, KernelError
from vivace.exporting.parity import TOLERANCE
from vivace.models.zoo import create_model
from vivace.prediction import Predictor
from vivace.runtimes import aoti
from vivace.runtimes.loading import load_runtime
from vivace.trust import trusted_folder

CPU = torch.device("cpu")
LATER = """
import sys
import numpy as np, torch
from vivace.bundle import load_bundle
from vivace.runtimes.loading import load_runtime
torch.set_num_threads(int(sys.argv[4]))
classify = load_runtime("aoti", load_bundle(sys.argv[1]), device=torch.device("cpu"), precision="fp32")
np.save(sys.argv[3], classify(np.load(sys.argv[2])))
print(sorted({"torch._inductor.compile_fx", "torch._dynamo", "timm"} & set(sys.modules)))
"""


def make_bundle(folder: Path, *, seed: int = 0, mean: float = 0.4) -> Bundle:
    torch.manual_seed(seed)
    model = create_model("simple_cnn", 4, in_channels=1, size=32)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=4, in_channels=1),
        classes=("a", "b", "c", "d"),
        preprocess=Preprocess(size=32, store_size=32, channels=1, mean=(mean,), std=(0.2,)),
        runtime="aoti",
    )
    return save_bundle(folder, model, info)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def pixels(num_images: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, 1), dtype=np.uint8)


def libraries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("aoti/*") if path.suffix != ".lock")


@pytest.fixture
def plain_headers() -> Iterator[None]:
    """To compile headers beforehand takes 15 s and saves 2 s of each network: here is one."""
    from torch._inductor import config

    with config.patch({"aot_inductor.precompile_headers": False}):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("plain_headers")
def test_it_answers_as_pytorch_and_later_processes_load_what_the_first_compiled(
    bundle: Bundle, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify = load_runtime("aoti", bundle, device=CPU, precision="fp32")
    plain = load_runtime("eager", bundle, device=CPU, precision="fp32")
    for count in (1, 2, 7):
        # as near as a certificate asks for
        np.testing.assert_allclose(classify(pixels(count)), plain(pixels(count)), atol=TOLERANCE["fp32"])
    # an answer is the caller's: the next call does not change it
    first = classify(pixels(3))
    kept = first.copy()
    classify(pixels(7)[::-1])
    np.testing.assert_array_equal(first, kept)
    assert libraries(own_cache) == [aoti.library_folder(bundle, "fp32")]

    def no_compiler(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(aoti, "compile_package", no_compiler)
    np.testing.assert_array_equal(Predictor(bundle).probs(pixels(3)), kept)
    np.save(tmp_path / "images.npy", pixels(3))
    files = [str(bundle.folder), str(tmp_path / "images.npy"), str(tmp_path / "probs.npy")]
    later = subprocess.run(
        [sys.executable, "-c", LATER, *files, str(torch.get_num_threads())], capture_output=True, text=True, check=True
    )
    np.testing.assert_array_equal(np.load(tmp_path / "probs.npy"), kept)
    # what somebody else laid out in its place is not loaded
    library = aoti.library_folder(bundle, "fp32") / "model.so"
    assert library.stat().st_mode & 0o777 == 0o600
    # another file: the one that is loaded stays mapped
    library.unlink()
    library.write_bytes(b"something else")
    with pytest.raises(BundleError, match="compiled again"):
        load_runtime("aoti", bundle, device=CPU, precision="fp32")
    # neither the compiler nor the network in Python: that is what makes it start soon
    assert later.stdout.strip() == "[]"
    # no file beside the bundle's own: it carries nothing that could run
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "bundle.json",
        "model.safetensors",
        "sbom.cdx.json",
    ]


def test_the_library_of_something_else_is_not_taken(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = aoti.library_folder(bundle, "fp32")
    assert aoti.library_folder(make_bundle(tmp_path / "same"), "fp32") == own
    others = [
        aoti.library_folder(bundle, "bf16"),
        aoti.library_folder(make_bundle(tmp_path / "weights", seed=1), "fp32"),
        aoti.library_folder(make_bundle(tmp_path / "pixels", mean=0.5), "fp32"),
    ]
    for name, value in (("cpu_name", lambda: "another"), ("_sources", lambda: "changed")):
        with monkeypatch.context() as patch:
            patch.setattr(aoti, name, value)
            others.append(aoti.library_folder(bundle, "fp32"))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        others.append(aoti.library_folder(bundle, "fp32"))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 99)
        others.append(aoti.library_folder(bundle, "fp32"))
    assert len({own, *others}) == len(others) + 1


def test_a_compiler_that_fails_is_told_and_leaves_nothing(
    bundle: Bundle, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(program: object, *, package_path: str, **_: object) -> None:
        Path(package_path).write_bytes(b"half of it")
        raise RuntimeError("g++: no such file\nand a long trace")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(KernelError, match=r"aoti can't compile simple_cnn: g\+\+: no such file\. Install a C\+\+ comp"):
        load_runtime("aoti", bundle, device=CPU, precision="fp32")
    assert libraries(own_cache) == []


def test_a_cache_that_cannot_be_written_is_told_with_the_mend(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VIVACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(KernelError, match=r"compiled network can't be kept: .*Set VIVACE_CACHE to another folder"):
        load_runtime("aoti", bundle, device=CPU, precision="fp32")


@pytest.fixture
def open_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that others may enter: below pytest's own folders, which are shut, all would be safe."""
    with tempfile.TemporaryDirectory(prefix="vivace-test-") as made:
        Path(made).chmod(0o755)
        cache = Path(os.path.realpath(made), "cache")
        cache.mkdir()
        monkeypatch.setenv("VIVACE_CACHE", str(cache))
        yield cache


def test_what_was_laid_out_where_the_library_belongs_is_compiled_anew(
    bundle: Bundle, open_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cache, made = open_cache, list[Path]()

    def make(bundle: Bundle, precision: str, folder: Path) -> None:
        made.append(folder)
        raise KernelError("stop here")

    monkeypatch.setattr(aoti, "_make", make)
    folder = aoti.library_folder(bundle, "fp32")
    assert folder.parent == own_cache / "aoti"
    folder.mkdir()
    (folder / "model.so").write_bytes(b"evil")
    with pytest.raises(KernelError, match="stop here"):
        load_runtime("aoti", bundle, device=CPU, precision="fp32")
    assert "is compiled anew: it can't be checked" in capsys.readouterr().err
    # where others may write, another place is taken
    own_cache.chmod(0o777)
    trusted_folder.cache_clear()
    with pytest.raises(KernelError, match="stop here"):
        load_runtime("aoti", bundle, device=CPU, precision="fp32")
    trusted_folder.cache_clear()
    assert made[0] == folder
    assert not made[1].is_relative_to(own_cache)


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp16"), ("cuda", "fp32")])
def test_what_it_cannot_run_is_refused(bundle: Bundle, device: str, precision: str) -> None:
    with pytest.raises(ConfigError, match=rf"aoti runs on a CPU in fp32, bf16 or int8: got {device} and {precision}"):
        load_runtime("aoti", bundle, device=torch.device(device), precision=precision)


def test_a_precision_that_this_machine_lacks_is_not_taken_from_the_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:

    asked: list[str] = []
    monkeypatch.setattr("vivace.predictor.supported_precisions", lambda device: ("fp32",))
    monkeypatch.setattr("vivace.predictor.load_runtime", lambda *_, precision, **__: asked.append(precision))
    for precision in ("bf16", "int8"):
        info = dataclasses.replace(bundle.info, precision=precision)
        Predictor(dataclasses.replace(bundle, info=info))
    assert asked == ["fp32", "int8"]
