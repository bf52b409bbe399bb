"""Programs in alternation: fresh processes, the order of blocks, ratios, and sides that fail. The sides are stubs."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from alternate import Contestant, Measured, alternate, ratio_of

# speaks the protocol with the real server; each call adds a line to a log
STUB = """
    import sys, time
    # a clock that goes on with each call alone: how fast the machine is does not count
    now = [0.0]
    time.perf_counter = lambda: now[0]
    sys.path.insert(0, {peers!r})
    import numpy as np
    from inference import Loaded, program

    def load(job):
        if job.form == "fails to load":
            raise ValueError("no such weights")
        if job.form == "dies":
            print("out of memory", file=sys.stderr)
            sys.exit(3)
        print("what a library prints")
        def classify(images):
            with open({log!r}, "a") as file:
                file.write(job.form + chr(10))
            now[0] += 0.004 if job.form == "slow" else 0.001
            # the class is the first pixel's value
            return np.eye(256)[np.rint((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).astype(int)]
        return Loaded(classify)

    program(lambda *_: None, load, ())
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("timed", 4), ("certify", 7)):
        np.save(exchange / f"{name}.npy", rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8))
    (exchange / "facts.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3}))
    peers = str(Path(__file__).parents[2] / "benchmarks" / "peers")
    script = tmp_path / "stub.py"
    script.write_text(textwrap.dedent(STUB).format(peers=peers, log=str(tmp_path / "calls.log")))
    return script


def contestant(stub: Path, form: str, batch: int = 2) -> Contestant:
    job = {"exchange": str(stub.parent / "exchange"), "model": "", "form": form, "batch": batch, "threads": 1}
    return Contestant(name=form, command=(sys.executable, str(stub), "serve"), job=job)


def test_every_start_is_a_process_of_its_own_and_the_order_turns_round(stub: Path) -> None:
    measured, failures = alternate(
        [contestant(stub, "fast"), contestant(stub, "slow")], starts=2, rounds=2, block_seconds=0.02
    )
    assert failures == {}
    for name in ("fast", "slow"):
        assert measured[name].medians_ms.shape == (2, 2)
        assert len(measured[name].cold_start_seconds) == 2
        assert measured[name].peak_memory_bytes > 10**6
    ratio, low, high = ratio_of(measured["slow"], measured["fast"])
    assert low is not None
    assert high is not None
    assert low <= ratio <= high
    assert 2 < ratio < 6
    calls = (stub.parent / "calls.log").read_text().split()
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    # both warm up, A B, B A; then the same in new processes, beginning with the other side
    assert turns == ["fast", "slow"] * 5


def test_a_side_that_fails_is_told_with_its_reason_and_the_others_go_on(stub: Path) -> None:
    sides = [contestant(stub, form) for form in ("fails to load", "fast", "dies")]
    measured, failures = alternate(sides, starts=2, rounds=1, block_seconds=0.01)
    assert list(measured) == ["fast"]
    assert failures == {
        "fails to load": "fails to load could not be timed: ValueError: no such weights",
        "dies": "dies could not be timed: its process died (out of memory).",
    }


def test_no_side_is_started_where_memory_runs_out(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([10**10, 10**9])
    monkeypatch.setattr("alternate.available_memory_bytes", lambda: next(left))
    measured, failures = alternate(
        [contestant(stub, "fast"), contestant(stub, "slow")], starts=1, rounds=1, block_seconds=0.01
    )
    assert list(measured) == ["fast"]
    assert failures["slow"].startswith("not started: less than 2 GB of memory were left beside 1 others")


def test_all_images_are_classified_whatever_the_batch(stub: Path) -> None:
    out = stub.parent / "classes.npy"
    alternate(
        [contestant(stub, "fast", batch=3)],
        starts=1,
        rounds=1,
        block_seconds=0.01,
        classify={"fast": {"split": "certify", "out": str(out)}},
    )
    images = np.load(stub.parent / "exchange" / "certify.npy")
    assert np.load(out).tolist() == images[:, 0, 0, 0].tolist()


def measured(starts_ms: list[list[float]]) -> Measured:
    return Measured(
        name="side",
        starts_ms=tuple(tuple((value,) * 3 for value in rounds) for rounds in starts_ms),
        cold_start_seconds=(1.0,) * len(starts_ms),
        peak_memory_bytes=1,
    )


def test_what_slows_a_round_cancels_and_processes_that_differ_widen_the_interval() -> None:
    base = [[10.0, 20.0, 10.0], [10.0, 10.0, 20.0], [20.0, 10.0, 10.0]]
    assert ratio_of(measured(base), measured([[v / 2 for v in row] for row in base])) == pytest.approx((2.0, 2.0, 2.0))
    steady = measured([[10.0] * 3] * 3)
    # one process of three is slower for good: that is in the interval, however many rounds there were
    ratio, low, high = ratio_of(steady, measured([[5.0] * 3, [5.0] * 3, [10.0] * 3]))
    assert ratio == pytest.approx(4 ** (1 / 3))
    assert low is not None
    assert high is not None
    assert low < 1 < 2 < high
    # of one start nothing is known about others
    assert ratio_of(measured(base[:1]), measured(base[:1])) == (1.0, None, None)


@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_interval_over_starts_holds_the_truth_in_95_of_100_cases(count: int) -> None:
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(2000):
        logs = 0.05 * rng.normal(size=(2, count, 1)) + 0.02 * rng.normal(size=(2, count, 3))
        before, after = (measured(side.tolist()) for side in np.exp(logs))
        _, low, high = ratio_of(before, after)
        assert low is not None
        assert high is not None
        held += low <= 1 <= high
    assert 0.93 <= held / 2000 <= 0.97
