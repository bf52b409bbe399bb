"""Timing in fresh processes: alternation, equals that come out equal, intervals that hold, and sides that fail."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vivace.bundle import Architecture, Bundle, BundleInfo, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError, ImageError, OutOfTime
from vivace.exporting.export import export
from vivace.models.zoo import create_model
from vivace.statistics.intervals import STUDENT
from vivace.timing import process as process_module
from vivace.timing.interleaved import Side, SideFailure, Timings, ratio_of, time_sides
from vivace.timing.preprocessing import time_preprocessing

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def make(folder: Path, widths: list[int]) -> Bundle:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"widths": widths, "depth": 1}
    info = BundleInfo(
        architecture=Architecture(name="fast_cnn", num_classes=3, arguments=arguments),
        classes=("a", "b", "c"),
        preprocess=Preprocess(size=32, store_size=32),
    )
    return save_bundle(folder, create_model("fast_cnn", 3, in_channels=3, size=32, **arguments), info)


def side(name: str, bundle: Bundle, runtime: str = "eager") -> Side:
    return Side(name=name, bundle=bundle.folder, runtime=runtime, precision="fp32")


def test_the_smaller_network_is_the_faster_one_and_equals_are_equal(tmp_path: Path) -> None:
    small, large = make(tmp_path / "small", [8]), make(tmp_path / "large", [256, 256])
    sides = [side("large", large), side("again", large), side("small", small)]
    timings = time_sides(sides, IMAGES, batch_size=2, threads=1, rounds=6, block_seconds=0.05)
    assert [one.name for one in timings] == ["large", "again", "small"]
    assert {len(one.blocks_ms) for one in timings} == {6}
    first, again, fast = timings
    assert ratio_of(first, fast)[0] > 1.5
    assert ratio_of(first, fast)[1:] == (None, None)
    # whatever else runs beside the tests
    assert 0.4 < ratio_of(first, again)[0] < 2.5
    for one in timings:
        assert 0 < one.p50_ms <= one.percentile(90) <= one.percentile(99)
        assert one.cold_start_seconds > 0.1
        # torch alone has more than this, and this process, which has done other things, is not counted
        assert 50e6 < one.peak_memory_bytes < 8e9


def timed(name: str, blocks: list[list[float]], processes: tuple[int, ...] = ()) -> Timings:
    return Timings(
        name=name,
        blocks_ms=tuple(map(tuple, blocks)),
        processes=processes,
        cold_start_seconds=1.0,
        peak_memory_bytes=1,
        batch_size=4,
    )


def test_the_ratio_is_of_block_medians_and_a_slow_round_cancels() -> None:
    # one call of each block was interrupted, and everything was slow in the third round
    before = timed("before", [[4, 4, 90], [4, 4, 90], [8, 8, 8], [4, 4, 4]])
    after = timed("after", [[2, 2, 90], [2, 2, 2], [4, 4, 90], [2, 2, 2]])
    assert before.medians_ms == (4, 4, 8, 4)
    assert before.processes == (0, 0, 0, 0)
    assert ratio_of(before, after) == (2.0, None, None)


def test_throughput_counts_every_call_of_a_block_and_one_noisy_block_does_not_decide() -> None:
    # 8 images in 8 ms, 8 images in 8 ms, and a block in which something else ran
    assert timed("a", [[2, 6], [4, 4], [100, 300]]).images_per_second == 1000


def test_the_interval_is_over_processes_and_not_over_their_blocks() -> None:
    processes = (0, 0, 1, 1, 2, 2)
    before = timed("before", [[4.0]] * 6, processes)
    # every block of a process says the same, and no two processes do
    after = timed("after", [[2.0], [2.0], [2.1], [2.1], [1.9], [1.9]], processes)
    ratio, low, high = ratio_of(before, after)
    logs = np.log([4 / 2, 4 / 2.1, 4 / 1.9])
    assert ratio == pytest.approx(np.exp(logs.mean()))
    assert np.log(high / low) / 2 == pytest.approx(4.303 * logs.std(ddof=1) / 3**0.5)
    with pytest.raises(ValueError, match="not timed together"):
        ratio_of(before, timed("other", [[4.0]] * 6))


def test_the_table_of_student_is_right() -> None:
    stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(STUDENT, stats.t.ppf(0.975, np.arange(1, len(STUDENT) + 1)), atol=5e-4)


@pytest.mark.parametrize(("spread", "noise", "tails"), [(0.015, 0.01, 1), (0.015, 0.01, 3), (0.003, 0.02, 1)])
def test_of_equals_hardly_one_in_a_hundred_is_called_two_percent_faster(
    spread: float, noise: float, tails: float
) -> None:
    """spread, noise: of the logarithms of a process's speed and of a block's; tails: a tenth lie so much farther."""
    rng = np.random.default_rng(0)
    processes = tuple(number for number in range(5) for _ in range(3))

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) * np.where(rng.random(shape) < 0.1, tails, 1)

    intervals = []
    for _ in range(1500):
        drift = np.cumsum(0.01 * normal(15))
        logs = spread * normal(2, 5)[:, processes] + noise * normal(2, 15) + drift
        first, second = (timed("", [[value] for value in row], processes) for row in np.exp(logs))
        intervals.append(ratio_of(first, second)[1:])
    low, high = np.transpose(intervals)
    false = ((low > 1.02) | (high < 1 / 1.02)).mean()
    assert false <= 0.005
    # chance alone moves a share of 0.95 by 0.006
    assert 0.93 <= ((low <= 1) & (high >= 1)).mean() <= 0.98


def test_each_side_has_several_processes_and_only_the_first_starts_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make(tmp_path / "small", [8])
    runs = export(small, "onnx", tmp_path / "onnx").path
    alive: list[tuple[str, int]] = []
    plain = process_module.TimedProcess.run_block

    def run_block(process: process_module.TimedProcess) -> None:
        plain(process)
        alive.append((process.side.name, process._process.pid))

    monkeypatch.setattr(process_module.TimedProcess, "run_block", run_block)
    variants = [Side(name=name, bundle=runs, runtime="onnx", precision="fp32") for name in ("a", "b")]
    kept = tmp_path / "compiled"
    first, second = time_sides(variants, IMAGES, rounds=5, processes=2, block_seconds=0.01, compiled=kept)
    assert first.processes == second.processes == (0, 0, 0, 1, 1)
    # in alternation, and the order turns round
    assert [name for name, _ in alive] == list("abbaab" + "baab")
    pids = [pid for _, pid in alive]
    assert [len(set(pids)), len(set(pids[:6])), len(set(pids[6:]))] == [4, 2, 2]
    assert len({len(block) for block in first.blocks_ms}) == 1
    # of the same variant one process alone started cold
    (told,) = kept.glob("*/cold.json")
    assert first.cold_start_seconds == second.cold_start_seconds == json.loads(told.read_text())["seconds"]
    again = time_sides(variants[:1], IMAGES, rounds=1, block_seconds=0.01, compiled=kept)
    assert again[0].cold_start_seconds == first.cold_start_seconds


def test_a_graph_is_timed_without_torch(tmp_path: Path) -> None:
    bundle = make(tmp_path / "small", [8])
    sides = [side("eager", bundle)]
    for runtime in ("onnx", "openvino"):
        exported = export(bundle, runtime, tmp_path / runtime).path
        sides.append(Side(name=runtime, bundle=exported, runtime=runtime, precision="fp32"))
    eager, *graphs = time_sides(sides, IMAGES, rounds=1, block_seconds=0.01)
    for graph in graphs:
        assert graph.peak_memory_bytes < eager.peak_memory_bytes
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from vivace.timing.worker import _Session; "
        f"job = dict(bundle={str(tmp_path / 'onnx')!r}, runtime='onnx', precision='fp32', threads=None, batch_size=1, "
        f"images={str(tmp_path / 'images.npy')!r}); "
        "print(_Session(job).answer({'do': 'load'})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("processes", "blocks", "expected"),
    [(1, 5, (0, 0)), (1, 1, None), (3, 5, (0, 0)), (3, 9, (0, 0, 1, 1)), (3, 99, (0, 0, 1, 1, 2, 2))],
)
def test_at_the_deadline_timing_ends_and_whole_rounds_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, blocks: int, expected: tuple[int, ...] | None
) -> None:
    """blocks: so many are run in all, of two sides, before the time is over."""
    runs = export(make(tmp_path / "small", [8]), "onnx", tmp_path / "onnx").path
    variants = [Side(name=name, bundle=runs, runtime="onnx", precision="fp32") for name in ("a", "b")]
    plain, ran, started = process_module.TimedProcess.run_block, [], []
    begin = process_module.TimedProcess.begin_load

    def run_block(process: process_module.TimedProcess) -> None:
        if len(ran) == blocks:
            raise OutOfTime("out of time")
        ran.append(process.side.name)
        plain(process)

    def begin_load(process: process_module.TimedProcess) -> None:
        started.append(process._process)
        begin(process)

    monkeypatch.setattr(process_module.TimedProcess, "run_block", run_block)
    monkeypatch.setattr(process_module.TimedProcess, "begin_load", begin_load)
    timings = time_sides(variants, IMAGES, rounds=2 * processes, processes=processes, block_seconds=0.01)
    assert [one.processes for one in timings] == ([] if expected is None else [expected] * 2)
    assert all(len(one.blocks_ms) == len(one.processes) for one in timings)
    assert all(process.poll() is not None for process in started)


def test_a_side_that_is_not_loaded_in_time_is_left_out_and_after_the_deadline_none_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = export(make(tmp_path / "small", [8]), "onnx", tmp_path / "onnx").path
    variants = [Side(name=name, bundle=runs, runtime="onnx", precision="fp32") for name in ("slow", "b")]
    plain = process_module.TimedProcess.end_load

    def end_load(process: process_module.TimedProcess) -> float:
        if process.side.name == "slow":
            process.deadline = time.monotonic()
        return plain(process)

    monkeypatch.setattr(process_module.TimedProcess, "end_load", end_load)
    told: list[tuple[str, str]] = []

    def failed(side: Side, error: Exception) -> None:
        assert isinstance(error, OutOfTime)
        told.append((side.name, str(error)))

    (timed,) = time_sides(variants, IMAGES, rounds=2, block_seconds=0.01, on_failure=failed)
    assert (timed.name, timed.processes) == ("b", (0, 0))
    assert told == [("slow", "abandoned: out of time while it was loaded")]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started after the deadline")

    monkeypatch.setattr(process_module.subprocess, "Popen", never)
    assert time_sides(variants, IMAGES, rounds=2, deadline=time.monotonic() - 1, on_failure=failed) == []
    assert told[1:] == [("slow", "not timed: out of time"), ("b", "not timed: out of time")]


def test_a_side_that_fails_is_left_out_and_told_or_raised(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", [8])
    # it holds no graph for this runtime
    broken = side("broken", whole, "onnx")
    told: list[str] = []
    timings = time_sides(
        [broken, side("whole", whole)],
        IMAGES,
        rounds=1,
        block_seconds=0.01,
        on_failure=lambda failed, error: told.append(f"{failed.name}: {error}"),
    )
    assert [one.name for one in timings] == ["whole"]
    assert len(told) == 1
    assert "broken could not be timed: ConfigError: the bundle holds no graph for onnx" in told[0]
    with pytest.raises(SideFailure, match="broken could not be timed"):
        time_sides([broken], IMAGES, rounds=1)


def fake_runtime(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """A runtime "fake" in the children, whose module is `code`."""
    folder.mkdir()
    (folder / "fake_runtime.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    row = "Runtime(name='fake', label='fake', module='fake_runtime', takes_network=False, precisions=('fp32',))"
    served = f"from vivace.runtimes.table import RUNTIMES, Runtime; RUNTIMES['fake'] = {row}; "
    monkeypatch.setattr(process_module, "PROGRAM", process_module.PROGRAM.replace("serve()", served + "serve()"))


def test_a_side_that_dies_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "PROGRAM", "import sys; sys.exit('no such library')")
    with pytest.raises(SideFailure, match=r"its process died \(no such library\)"):
        time_sides([side("a", make(tmp_path / "a", [8]))], IMAGES, rounds=1)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        ("SIGILL", r"a could not be timed: it needs an instruction that this processor lacks \(SIGILL\)"),
        ("SIGKILL", r"its process died \(SIGKILL, about to\)"),
    ],
)
def test_a_signal_that_ends_a_side_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: str, message: str
) -> None:
    kills = f"import os, signal, sys; print('about to', file=sys.stderr); os.kill(os.getpid(), signal.{signal})"
    fake_runtime(monkeypatch, tmp_path / "fake", kills)
    with pytest.raises(SideFailure, match=message):
        time_sides([side("a", make(tmp_path / "a", [8]), "fake")], IMAGES, rounds=1)


FAKE = """
import subprocess, sys, time
import numpy as np

def load(bundle, *, device, precision):
    {load}
    calls = [0]

    def classify(images_NHWC):
        calls[0] += 1
        {call}
        return np.zeros((len(images_NHWC), 3), np.float32)

    return classify
"""


@pytest.mark.parametrize(
    ("load", "call"),
    [
        # with a process of its own, as a compiler has
        ("open('PID', 'w').write(str(subprocess.Popen(['sleep', '987']).pid)); time.sleep(9999)", ""),
        # the first calls are the warm-up
        ("", "time.sleep(9999 if calls[0] > 40 else 0.002)"),
    ],
    ids=["loading", "classifying"],
)
def test_a_side_that_gives_no_answer_is_ended_and_told_of_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str, call: str
) -> None:
    monkeypatch.setattr(process_module, "LOAD_SECONDS", 60.0 if call else 20.0)
    monkeypatch.setattr(process_module, "BLOCK_SECONDS", 1.0)
    pid = str(tmp_path / "fake" / "pid")
    fake_runtime(
        monkeypatch, tmp_path / "fake", FAKE.format(load=load or "pass", call=call or "pass").replace("PID", pid)
    )
    bundle = make(tmp_path / "a", [8])
    runs = export(bundle, "onnx", tmp_path / "onnx").path
    told: list[str] = []
    # that it comes to an end is the point: the side that is stuck would take hours
    timings = time_sides(
        [side("stuck", bundle, "fake"), Side(name="well", bundle=runs, runtime="onnx", precision="fp32")],
        IMAGES,
        rounds=12,
        processes=2,
        block_seconds=0.02,
        on_failure=lambda failed, error: told.append(str(error)),
    )
    assert [(one.name, len(one.blocks_ms)) for one in timings] == [("well", 12)]
    assert len(told) == 1
    assert "stuck could not be timed: no answer within" in told[0]
    started = tmp_path / "fake" / "pid"
    assert started.exists() == (call == "")
    if started.exists():
        assert ended(int(started.read_text()))


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only not yet seen to by the system."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except FileNotFoundError:
        return True


def test_too_few_images_for_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 6 for batches of 7"):
        time_sides([side("a", make(tmp_path / "a", [8]))], IMAGES, batch_size=7)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SideFailure])
def test_no_process_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]) -> None:
    started: list[process_module.TimedProcess] = []
    plain: Callable[..., None] = process_module.TimedProcess.__init__

    def remembered(process: process_module.TimedProcess, *arguments: object) -> None:
        plain(process, *arguments)
        started.append(process)

    def stopped(process: process_module.TimedProcess) -> None:
        raise stop

    monkeypatch.setattr(process_module.TimedProcess, "__init__", remembered)
    monkeypatch.setattr(process_module.TimedProcess, "run_block", stopped)
    with pytest.raises(stop):
        time_sides([side("a", make(tmp_path / "a", [8]))], IMAGES, rounds=1, block_seconds=0.01)
    assert [process._process.poll() is not None for process in started] == [True]


def test_preprocessing_is_timed_by_itself(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    path = tmp_path / "large.jpg"
    path.write_bytes(buffer.getvalue())
    Image.fromarray(pixels[:32, :32]).save(tmp_path / "small.jpg")
    preprocess = Preprocess(size=32, store_size=32)
    large = time_preprocessing(preprocess, [path, buffer.getvalue()], passes=3)
    small = time_preprocessing(preprocess, [tmp_path / "small.jpg"], passes=3)
    assert np.shape(large.samples_ms) == (3, 2)
    assert 0 < small.p50_ms < large.p50_ms
    with pytest.raises(ImageError):
        time_preprocessing(preprocess, [b"no image"])
    with pytest.raises(ConfigError, match="got an empty list"):
        time_preprocessing(preprocess, [])
