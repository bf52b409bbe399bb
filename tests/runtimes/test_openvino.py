"""The runtime OpenVINO: batches of any size, signals after it, and no report of its use to its makers."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.bundle import Architecture, Bundle, BundleInfo, load_bundle, save_bundle
from vivace.compression.quantize import quantize_openvino
from vivace.data.preprocess import Preprocess
from vivace.exporting.export import export
from vivace.libraries.openvino import REPORTER, without_reports
from vivace.libraries.signal_stack import own_signal_stack, signal_stack
from vivace.models.zoo import create_model
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.openvino import size_for

pytest.importorskip("nncf")
# nothing leaves the machine in this test either: what is asked of the network is noted and refused, in forks too
WATCH = """
import multiprocessing, os, sys, time
multiprocessing.set_start_method("fork")
notes = os.open("asked", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.sendto", "urllib.Request"):
        os.write(notes, f"{event} {arguments[0]}\\n".encode())
        raise OSError("refused")
sys.addaudithook(watch)
"""
# reports are sent from a thread
TELL = """
time.sleep(2)
print(sorted(set(open("asked").read().splitlines())), sorted(os.listdir(os.path.expanduser("~"))))
os._exit(0)
"""
PLAIN = "import openvino"
OURS = """
from pathlib import Path
import numpy as np, torch
from vivace.exporting.export import export
from vivace.compression.quantize import quantize_openvino
from vivace.bundle import Architecture, BundleInfo, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.models.zoo import create_model

architecture = Architecture(name="fast_cnn", num_classes=3, arguments={"widths": [8], "depth": 1})
model = create_model("fast_cnn", 3, in_channels=3, size=32, **architecture.arguments)
info = BundleInfo(architecture=architecture, classes=("a", "b", "c"), preprocess=Preprocess(size=32, store_size=32))
exported = export(save_bundle(Path("bundle"), model, info), "openvino", Path("out"))
os.mkdir("int8")
quantize_openvino(exported.path, Path("int8"), np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
"""


def told(code: str, folder: Path) -> str:
    """What a process asked of the network, and what it left in the user's home."""
    home = folder / "home"
    home.mkdir()
    # machines that test are not reported on: this one must not look like one of them
    ours = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code + TELL],
        env={**ours, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_an_export_and_a_quantization_report_nothing_and_leave_nothing_in_the_home(tmp_path: Path) -> None:
    assert told(OURS, tmp_path) == "[] []"


def test_the_watch_would_see_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # this process of tests is told that it is not there
    monkeypatch.delitem(sys.modules, REPORTER, raising=False)
    if importlib.util.find_spec(REPORTER) is None:
        pytest.skip("openvino_telemetry is not installed")
    seen = told(PLAIN, tmp_path)
    assert "urllib.Request https://" in seen
    assert "'intel'" in seen


def test_what_others_import_is_what_they_would_have_had(monkeypatch: pytest.MonkeyPatch) -> None:
    # as it was, afterwards
    monkeypatch.setitem(sys.modules, REPORTER, sys)
    for before in (sys, None):
        sys.modules.pop(REPORTER, None)
        if before is not None:
            sys.modules[REPORTER] = before
        with without_reports(), pytest.raises(ImportError):
            __import__(REPORTER)
        assert sys.modules.pop(REPORTER, None) is before


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("bundle")
    architecture = Architecture(name="fast_cnn", num_classes=3, arguments={"widths": [8], "depth": 1})
    model = create_model("fast_cnn", 3, in_channels=3, size=32, **architecture.arguments)
    info = BundleInfo(architecture=architecture, classes=("a", "b", "c"), preprocess=Preprocess(size=32, store_size=32))
    return load_bundle(export(save_bundle(root / "plain", model, info), "openvino", root / "bundle").path)


def test_a_program_for_the_first_size_and_for_powers_of_two() -> None:
    assert size_for(48, {}) == 48
    assert size_for(48, {48: 0}) == 48
    # the last images of a pass are computed with the program of the others
    assert size_for(40, {48: 0}) == 48
    assert size_for(33, {48: 0, 64: 0}) == 48
    assert size_for(3, {48: 0}) == 4
    assert size_for(1, {48: 0}) == 1
    assert size_for(100, {48: 0}) == 128


def test_the_answer_does_not_depend_on_what_is_computed_beside_an_image(bundle: Bundle) -> None:
    classify = load_runtime("openvino", bundle, device=torch.device("cpu"), precision="fp32")
    images = pixels(9)
    whole = classify(images)
    assert whole.shape == (9, 3)
    for count in (1, 2, 3, 5, 7):
        np.testing.assert_allclose(classify(images[:count]), whole[:count], atol=1e-5)


def test_calls_from_several_threads_get_the_answers_to_their_own_images(bundle: Bundle) -> None:
    classify = load_runtime("openvino", bundle, device=torch.device("cpu"), precision="fp32")
    each = [pixels(1 + number % 3) for number in range(60)]
    expected = [classify(images) for images in each]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(classify, each))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("wrong", [pixels(2)[..., :1], pixels(2)[:, :16], pixels(2).astype(np.float32)])
def test_images_of_another_shape_or_type_are_never_taken_for_pixels(bundle: Bundle, wrong: np.ndarray) -> None:
    classify = load_runtime("openvino", bundle, device=torch.device("cpu"), precision="fp32")
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 32, 32, 3\]: got"):
        classify(wrong)


def test_signals_are_handled_on_the_stack_that_was_there_before(bundle: Bundle, tmp_path: Path) -> None:
    before = signal_stack(None)[0].pointer
    first = load_runtime("openvino", bundle, device=torch.device("cpu"), precision="fp32")
    first(pixels(2))
    quantize_openvino(bundle.folder, tmp_path, pixels(8))
    second = load_runtime("openvino", bundle, device=torch.device("cpu"), precision="fp32")
    second(pixels(3))
    # they end in the order in which they began
    del first
    del second
    assert signal_stack(None)[0].pointer == before
    caught: list[int] = []
    handler = signal.signal(signal.SIGUSR1, lambda number, _: caught.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert caught == [signal.SIGUSR1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_without_it_the_stack_is_another_one() -> None:
    import openvino

    before = signal_stack(None)[0].pointer
    with own_signal_stack():
        core = openvino.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")
        assert signal_stack(None)[0].pointer != before
    assert signal_stack(None)[0].pointer == before
