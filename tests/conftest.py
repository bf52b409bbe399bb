"""Shared fixtures: a cache of its own for every test, and small image folders that can be learnt."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from colours import colour_folder
from warm import warm_program

if TYPE_CHECKING:
    from vivace.bundle import Bundle

# a processor for each of pytest-xdist's workers, before a library counts them: threads of several tests that wait for
# each other's processors are slower than one test after the other
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[int(worker.removeprefix("gw")) % len(cpus)]})

# whichever test imports OpenVINO first: with its reporter, each conversion would fork this process, which is large, and
# wait for a network. vivace imports it without; that this holds is shown in processes of their own
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

ARCHIVES = {"cifar10": "cifar10-jpeg.tar.xz", "flowers": "flowers.tar"}


# how many tests were left for `make long`
LEFT = pytest.StashKey[int]()


# after those that -m and -k leave out
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    # a shell starts what it runs in the background deaf to Ctrl-C, and tests that raise it would wait for ever
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `long` are left out, but where -m names them or the command line names tests.

    Files with slow tests come first: begun last, one of them would run alone while the other processors wait.
    """
    if "long" not in config.option.markexpr and not any("::" in name for name in config.args):
        left = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left)
        config.stash[LEFT] = len(left)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # see own_garbage: what is frozen would be a leak to libraries that count their objects at the end
    gc.unfreeze()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = session.config.stash.get(LEFT, 0)


# each process of pytest-xdist collects all tests
@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT, 0):
        terminalreporter.write_line(f"left for `make long`: {left} tests that take minutes")


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders for caches, all in one: mktemp would read the names of all that were there before each time."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the cache of the person who runs it."""
    cache = next(caches)
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("VIVACE_CACHE", str(cache))
    monkeypatch.setenv("TORCH_HOME", str(cache / "torch"))
    # a bug is to be seen as one
    monkeypatch.setenv("VIVACE_TRACEBACK", "1")
    return cache


@pytest.fixture(autouse=True, scope="module")
def own_garbage() -> Iterator[None]:
    """What a library does wrong when its objects die shows in the module that made them."""
    yield
    gc.collect()
    # what is left lives on, as libraries do: to look through all of it again after each module takes half a second
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def logs_restored() -> Iterator[None]:
    """Whoever quietens all logs for ever fails itself, and not the module that misses them later."""
    yield
    # libraries do this one: absl gives the root its own level
    logging.root.setLevel(logging.WARNING)
    left = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    assert left == logging.NOTSET


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder("name", per_class=8, splits=("train", "val")): a folder of three colours as classes."""

    def make(name: str = "colours", **options: Any) -> Path:
        return colour_folder(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int]], tuple[Bundle, Path]]:
    """trained_once((8, 16)): a bundle of these widths, and its data: 40 images a class to train on, as many to test."""
    data = colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=40, splits=("train", "test"))
    made: dict[tuple[int, int], Bundle] = {}

    def trained(widths: tuple[int, int]) -> tuple[Bundle, Path]:
        from vivace.bundle import load_bundle
        from vivace.training.train import train

        if widths not in made:
            arguments = {"widths": list(widths), "depth": 1}
            result = train(
                data,
                epochs=4,
                overrides={"batch_size": 16, "precision": "fp32", "calibrate": False, "model.arguments": arguments},
                run=tmp_path_factory.mktemp("runs") / "run",
                tune=False,
                quiet=True,
            )
            made[widths] = load_bundle(result.bundle)
        return made[widths], data

    return trained


@pytest.fixture
def trained(trained_once: Callable[..., Any]) -> tuple[Bundle, Path]:
    """A bundle, and its data: 40 images a class to train on, as many to test on."""
    bundle, data = trained_once((8, 16))
    return bundle, data


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder for the front of PATH: its `vivace` does what the real one does, and starts at once."""
    with warm_program() as folder:
        yield folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with cifar10/ and flowers/; unpacked from archives beside the checkout when it is not there yet.

    The test is skipped, and says so, where there are neither.
    """
    checkout = Path(__file__).parents[1]
    root = checkout / "data"
    for name, archive in ARCHIVES.items():
        if (root / name / "train").is_dir():
            continue
        path = checkout.parent / "shared" / "data" / archive
        if not path.is_file():
            pytest.skip(f"the real data set {name} is neither under data/ nor in {path}")
        _unpack(path, root / name)
    return root


def _unpack(archive: Path, folder: Path) -> None:
    """Beside first, then renamed: an interrupted test run leaves no half of a data set."""
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary:
        with tarfile.open(archive) as file:
            file.extractall(temporary, filter="data")
        # some archives hold the folder itself, some what is in it
        inside = Path(temporary, folder.name)
        try:
            (inside if inside.is_dir() else Path(temporary, "")).rename(folder)
        except OSError:
            # another of the processes that run the tests side by side was faster
            if not (folder / "train").is_dir():
                raise
        Path(temporary).mkdir(exist_ok=True)
