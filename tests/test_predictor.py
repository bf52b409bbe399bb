"""A predictor among processes and threads, and what it says of arguments that are none."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vivace
from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.cpus import at_most_cpus, num_cpus
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, DataError, VivaceError
from vivace.hardware import select_device
from vivace.models.weights import load_weights
from vivace.models.zoo import create_model
from vivace.predicted import FEW, ranking
from vivace.prediction import Predictor, predict

IMAGES = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=3),
        classes=("a", "b", "c"),
        preprocess=Preprocess(size=32, store_size=32),
    )
    return save_bundle(tmp_path / "run" / "bundle", create_model("simple_cnn", 3, size=32), info)


@pytest.fixture(params=["eager", "onnx", "openvino"])
def predictor(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Predictor:
    if request.param == "eager":
        return Predictor(bundle, device="cpu")
    pytest.importorskip("onnxruntime" if request.param == "onnx" else request.param)
    from vivace.exporting.export import export

    return Predictor(export(bundle, request.param, tmp_path / request.param).path, device="cpu")


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_pickled_predictor_answers_the_same(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pickle.dumps(predictor)
    # a folder named from here is found from anywhere
    monkeypatch.chdir("/")
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.probs(IMAGES), predictor.probs(IMAGES))
    assert (again.runtime, again.precision, again.batch_size) == (predictor.runtime, predictor.precision, 64)


def test_a_relative_folder_is_sent_as_an_absolute_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.folder.parent)
    sent = pickle.dumps(Predictor("bundle", device="cpu", threads=1, batch_size=2))
    monkeypatch.chdir("/")
    again = pickle.loads(sent)
    assert (again.threads, again.batch_size) == (1, 2)


def first_label(predictor: Predictor) -> float:
    return float(predictor.probs(IMAGES)[0, 0])


def test_it_works_in_a_spawned_process(bundle: Bundle) -> None:
    predictor = Predictor(bundle, device="cpu", threads=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_label, (predictor,)) == pytest.approx(first_label(predictor), abs=1e-6)


def test_a_forked_process_is_told_instead_of_waiting(predictor: Predictor) -> None:
    predictor.probs(IMAGES)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            predictor.probs(IMAGES)
            os.write(write, b"answered")
        except VivaceError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.waitpid(child, 0)
    os.close(read)
    assert "forked from it: threads are not forked" in said
    # the parent goes on
    assert predictor.probs(IMAGES).shape == (3, 3)


FORKED = """
import multiprocessing, sys
import numpy as np
import vivace
from vivace.errors import ConfigError
FOLDER, ASKED = sys.argv[1:]
IMAGES = np.zeros((3, 32, 32, 3), np.uint8)
def answers(_):
    import torch
    try:
        # asked for more threads, and a network on its own
        predictor = vivace.Predictor(FOLDER, device="cpu", threads=4)
        if ASKED == "eager":
            vivace.load(FOLDER).build_model()
            # above the size from which torch uses all its threads
            torch.ones(2_000_000).add(1)
        return predictor.probs(IMAGES).shape, torch.get_num_threads()
    except ConfigError as error:
        return str(error)
if __name__ == "__main__":
    vivace.Predictor(FOLDER, device="cpu").probs(IMAGES)
    import torch
    torch.set_num_threads(4)
    torch.ones(2_000_000).add(1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map(answers, [0]))
"""


@pytest.mark.parametrize("runtime", ["eager", "onnx", "openvino"])
def test_a_forked_worker_makes_its_own_on_one_thread_or_is_told_to_be_spawned(
    bundle: Bundle, tmp_path: Path, runtime: str
) -> None:
    folder = bundle.folder
    if runtime != "eager":
        pytest.importorskip("onnxruntime" if runtime == "onnx" else runtime)
        from vivace.exporting.export import export

        folder = export(bundle, runtime, tmp_path / runtime).path
    command = [sys.executable, "-c", FORKED, str(folder), runtime]
    # the hang this is about has no other end
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    if runtime == "openvino":
        assert "it was forked from one that had loaded openvino, and threads are not forked." in done.stdout
        assert "Start workers with spawn" in done.stdout
    else:
        assert done.stdout == "[((3, 3), 1)]\n"


@pytest.mark.parametrize("runtime", ["inductor", "aoti"])
def test_compiled_programs_are_refused_in_a_forked_process(
    bundle: Bundle, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vivace.cpus._left_behind", {"torch"})
    with pytest.raises(ConfigError, match=rf"^{runtime} can't run in process \d+: it was forked .* with spawn"):
        Predictor(bundle, device="cpu", runtime=runtime)


def test_a_gpu_that_the_parent_used_is_refused_in_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"^`device='cuda'` can't be used: this process was forked .* with spawn"):
        select_device("cuda")


def test_threads_are_those_asked_for(bundle: Bundle) -> None:
    Predictor(bundle, device="cpu", threads=1)
    assert torch.get_num_threads() == 1
    with at_most_cpus(1):
        assert num_cpus() == 1
        with at_most_cpus(None):
            assert num_cpus() == 1


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_other_runtimes_get_the_threads_too(
    bundle: Bundle, tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime" if runtime == "onnx" else runtime)
    from importlib import import_module

    from vivace.exporting.export import export

    folder = export(bundle, runtime, tmp_path / runtime).path
    module = import_module(f"vivace.runtimes.{runtime}")
    monkeypatch.setattr("vivace.cpus.os.sched_getaffinity", lambda _: set(range(8)))
    seen: list[int] = []
    monkeypatch.setattr(module, "num_cpus", lambda: seen.append(num_cpus()) or 1)
    Predictor(folder, device="cpu", threads=1).probs(IMAGES)
    assert set(seen) == {1}


@pytest.mark.parametrize(
    "images",
    [
        [[1]],
        [],
        None,
        5,
        "x.png",
        IMAGES.tolist(),
        IMAGES[0],
        IMAGES.astype(np.float32),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.array(5, np.uint8),
        np.zeros((1, 32, 32, 3), object),
        torch.from_numpy(IMAGES),
    ],
)
def test_other_images_are_refused_in_one_line(bundle: Bundle, images: Any) -> None:
    predictor = Predictor(bundle, device="cpu")
    with pytest.raises(DataError, match=r"images must be a uint8 array \[N, 32, 32, 3\]: got"):
        predictor.probs(images)


CALLS: dict[str, Callable[[Any, Bundle], Any]] = {
    "Predictor": lambda value, bundle: Predictor(value),
    "load": lambda value, bundle: vivace.load(value),
    "predict": lambda value, bundle: predict(value, ["x.png"]),
    "predict paths": lambda value, bundle: predict(bundle, value),
    "predict a path": lambda value, bundle: predict(bundle, [value]),
    "evaluate": lambda value, bundle: vivace.evaluate(value, "digits"),
    "evaluate data": lambda value, bundle: vivace.evaluate(bundle, value),
    "train": lambda value, bundle: vivace.train(value),
    "train recipe": lambda value, bundle: vivace.train("digits", value),
    "accelerate": lambda value, bundle: vivace.accelerate(value, "digits", out=bundle.folder.parent / "out"),
    "export_state_dict": lambda value, bundle: vivace.load(value),
    "batch_size": lambda value, bundle: Predictor(bundle, batch_size="1" if value == 5 else value),
    "topk": lambda value, bundle: predict(bundle, "x.png", topk="1" if value == 5 else value),
}


@pytest.mark.parametrize("value", [None, 5, nn.Linear(1, 1)], ids=["None", "int", "module"])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_argument_is_refused_with_what_is(call: str, value: Any, bundle: Bundle) -> None:
    with pytest.raises((BundleError, ConfigError, DataError), match=r"Give |Leave it out") as caught:
        CALLS[call](value, bundle)
    assert "\n" not in str(caught.value)


def test_a_module_is_told_how_it_becomes_a_bundle(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"`out` is for bundles: a module takes metric, example"):
        vivace.accelerate(nn.Linear(1, 1), "digits", out=bundle.folder.parent / "out")
    with pytest.raises(BundleError, match=r"got Linear\. .*vivace accelerate timm/NAME DATA --weights FILE"):
        vivace.load(nn.Linear(1, 1))


@pytest.mark.parametrize("place", ["bundle", "run", "file"])
def test_weights_are_taken_from_a_bundle_or_a_run(bundle: Bundle, place: str) -> None:
    path = {"bundle": bundle.folder, "run": bundle.folder.parent, "file": bundle.folder / "model.safetensors"}[place]
    model = create_model("simple_cnn", 3, size=32).eval()
    assert load_weights(model, path) == []
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), bundle.build_model()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    "option",
    [
        {"runtime": []},
        {"runtime": None},
        {"device": None},
        {"device": []},
        {"device": 10**5000},
        {"batch_size": 10**30},
        {"threads": 10**5000},
        {"precision": []},
    ],
)
def test_options_beyond_all_bounds_are_refused_in_one_line(bundle: Bundle, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"(unknown|out of range): got "):
        Predictor(bundle, **option)


@pytest.mark.parametrize("change", ["overwritten", "a link", "a pipe", "gone"])
def test_a_bundle_that_was_changed_after_it_was_opened_is_not_used(change: str, bundle: Bundle, tmp_path: Path) -> None:
    opened = vivace.load(bundle.folder)
    weights = bundle.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    weights.unlink()
    if change == "overwritten":
        content[-5] ^= 1
        weights.write_bytes(content)
    elif change == "a link":
        (tmp_path / "copy").write_bytes(content)
        weights.symlink_to(tmp_path / "copy")
    elif change == "a pipe":
        os.mkfifo(weights)
    expected = {"overwritten": "SHA-256 differs", "a pipe": "not a regular file", "gone": "lacks a file"}
    with pytest.raises(BundleError, match=expected.get(change, "is a link")):
        opened(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize("count", [3, FEW, FEW + 1])
def test_classes_are_ranked_as_by_a_stable_sort_however_many_there_are(count: int) -> None:
    probs_K = np.random.default_rng(0).integers(0, 5, count).astype(np.float32)
    assert ranking(probs_K) == np.argsort(-probs_K, kind="stable").tolist()
