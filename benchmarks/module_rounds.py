"""How far the timing of `vivace.accelerate(module, …)` can be trusted: equals, and unequals beside each program alone.

    python benchmarks/module_rounds.py --seconds 20

Equals: a program of a module of the zoo against a second one made of the same, in rounds of (baseline, candidate,
baseline) as the last timing of a search has them. Every run of FINAL_ROUNDS rounds in a row is judged: how often is a
program called faster than its equal? With --busy another process computes half of the time. Unequals: the speed-up of
OpenVINO in float32 by rounds, and by each program called alone for a second. Writes
benchmarks/results/false-verdicts/DATE-modules-HARDWARE.json, the rounds in it, and a table in Markdown.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from module_zoo import ZOO
from records import RESULTS, page, save, today
from vivace.acceleration.modules.batches import batch_of
from vivace.acceleration.modules.candidates import ModuleCandidate, Workshop
from vivace.acceleration.modules.subject import Subject
from vivace.acceleration.modules.timing import FINAL_ROUND_MS, FINAL_ROUNDS, SETTLE_MS, judge, rounds
from vivace.hardware import describe, limit_threads
from vivace.runtimes.table import RUNTIMES

CPU = torch.device("cpu")
# what equals are made of: (module of the zoo, runtime)
EQUALS = [
    *[("torchvision resnet18", "eager"), ("LSTM", "eager"), ("segmentation by IoU", "openvino")],
    ("labelled images", "inductor"),
]
UNEQUALS = ["torchvision resnet18", "LSTM", "segmentation by IoU", "timm mobilenetv4_conv_small"]
Call = Callable[[], object]


class Programs:
    """Programs of one module of the zoo, called with its first batch."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        module, data, _ = ZOO[name]()
        self._subject = Subject(module)
        first = batch_of(next(iter(data)), self._subject.signature, CPU)
        self._call = first.call
        with self._subject.ready():
            expected = self._subject.check(first)
        tensors = first.call.flatten()[0]
        self._workshop = Workshop(
            self._subject, [first.call], expected, [frozenset[int]()] * len(tensors), lambda: [tensors]
        )

    def plain(self) -> Call:
        """A copy of the module as it is."""
        module = copy.deepcopy(self._subject.module).eval()

        def plain() -> object:
            with torch.inference_mode():
                return module(*self._call.args, **self._call.kwargs)

        return plain

    def made(self, runtime: str) -> Call:
        """A new program in float32."""
        if runtime == "eager":
            return self.plain()
        variant = RUNTIMES[runtime].module_variants[0]
        with self._subject.ready():
            module = self._workshop.build(ModuleCandidate(runtime, variant))
        return partial(module, *self._call.args, **self._call.kwargs)


def disturb() -> None:
    """Compute and sleep in turn, half a second to two seconds each, for ever."""
    matrix = np.random.default_rng(0).normal(size=(500, 500))
    while True:
        until = time.monotonic() + random.uniform(0.5, 2)
        while time.monotonic() < until:
            matrix @ matrix
        time.sleep(random.uniform(0.5, 2))


def rounds_for(functions: Sequence[Call], seconds: float) -> np.ndarray:
    """Rounds as the last timing of a search has them, for so many seconds."""
    until = time.monotonic() + seconds
    return rounds(functions, CPU, num_rounds=10**6, round_ms=FINAL_ROUND_MS, stop=lambda: time.monotonic() > until)


def verdicts(times_R3: np.ndarray) -> dict[str, Any]:
    """Of all FINAL_ROUNDS rounds in a row: how often the candidate is called faster, or the timing noisy."""
    judged = [judge(times_R3[start : start + FINAL_ROUNDS]) for start in range(len(times_R3) - FINAL_ROUNDS + 1)]
    return {
        "windows": len(judged),
        "faster": sum(one.is_faster for one in judged),
        "noisy": sum(one.is_noisy and not one.is_faster for one in judged),
        "half_width": float(np.median([np.log(one.ratio[2] / one.ratio[1]) / 2 for one in judged])),  # type: ignore[operator]
    }


def equals(name: str, runtime: str, seconds: float, *, busy: bool) -> dict[str, Any]:
    """A program against its equal."""
    programs = Programs(name)
    baseline, candidate = programs.made(runtime), programs.made(runtime)
    disturbing = multiprocessing.get_context("spawn").Process(target=disturb, daemon=True) if busy else None
    if disturbing is not None:
        disturbing.start()
    try:
        times = rounds_for([baseline, candidate, baseline], seconds)
    finally:
        if disturbing is not None:
            disturbing.terminate()
    row = {"module": name, "runtime": runtime, "busy": busy, "ms": float(np.median(times[:, 0])), **verdicts(times)}
    return {**row, "times": np.round(times, 4).tolist()}


def alone_ms(function: Call, seconds: float = 1.0) -> float:
    """Median time of a call while nothing else is called, after half a second of it."""
    found: list[tuple[float, float]] = []
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < seconds + 0.5:
        function()
        found.append((now - began, time.perf_counter() - now))
    return 1e3 * float(np.median([taken for since, taken in found if since > 0.5] or [found[-1][1]]))


def unequals(name: str) -> dict[str, Any]:
    """The speed-up of OpenVINO in float32, by rounds and alone."""
    programs = Programs(name)
    plain, fast = programs.made("eager"), programs.made("openvino")
    judged = judge(rounds([plain, fast, plain], CPU, num_rounds=FINAL_ROUNDS, round_ms=FINAL_ROUND_MS))
    alone = [alone_ms(plain) / alone_ms(fast) for _ in range(3)]
    return {"module": name, "by_rounds": judged.ratio, "alone": alone}


def markdown(record: dict[str, Any]) -> str:
    table = [
        "| equals | machine | a call, ms | runs of rounds | called faster | noisy | half width |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["equals"]:
        count, machine = row["windows"], "busy" if row["busy"] else "quiet"
        faster = f"{row['faster']} ({100 * row['faster'] / count:.1f} %)"
        cells = [f"{row['module']}, {row['runtime']}", machine, f"{row['ms']:.2f}", str(count), faster]
        cells += [str(row["noisy"]), f"{100 * row['half_width']:.1f} %"]
        table.append(f"| {' | '.join(cells)} |")
    table += [
        "",
        "| OpenVINO in float32 against the module as it is | speed-up by rounds | each alone, three times |",
        "| --- | --- | --- |",
    ]
    for row in record["unequals"]:
        ratio, low, high = row["by_rounds"]
        alone = ", ".join(f"{value:.2f}" for value in row["alone"])
        table.append(f"| {row['module']} | {ratio:.2f} [{low:.2f}, {high:.2f}] | {alone} |")
    conditions = (
        f"; {FINAL_ROUNDS} rounds of {FINAL_ROUND_MS:g} ms, {SETTLE_MS:g} ms of calls before each where another "
        "program ran; the runs of rounds overlap"
    )
    return page(record, "False verdicts on modules", conditions, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="of rounds, for each pair of equals")
    args = parser.parse_args()
    limit_threads()
    record: dict[str, Any] = {
        "date": today(),
        "command": f"python benchmarks/module_rounds.py {shlex.join(sys.argv[1:])}".strip(),
        "unequals": [unequals(name) for name in UNEQUALS],
        "equals": [
            equals(name, runtime, args.seconds, busy=busy) for busy in (False, True) for name, runtime in EQUALS
        ],
        "environment": describe(),
    }
    save(record, "false-verdicts", "modules", markdown, RESULTS)


if __name__ == "__main__":
    main()
