"""OpenVINO and NNCF report their use to their makers by default; imported by vivace they don't."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
from vivace.acceleration.export import export
from vivace.acceleration.quantize import quantize_openvino
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


def test_the_watch_would_see_a_report(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    seen = told(PLAIN, tmp_path)
    assert "urllib.Request https://" in seen
    assert "'intel'" in seen


def test_what_others_import_is_what_they_would_have_had() -> None:
    from vivace.runtimes.openvino import REPORTER, without_reports

    for before in (sys, None):
        sys.modules.pop(REPORTER, None)
        if before is not None:
            sys.modules[REPORTER] = before
        with without_reports(), pytest.raises(ImportError):
            __import__(REPORTER)
        assert sys.modules.pop(REPORTER, None) is before
