"""Whole commands, interleaved by seconds: their times on a machine whose speed changes from minute to minute.

    python benchmarks/turns.py data/cifar10 airbench-plain vivace-fast-98 --rounds 2 --turn 5

In a round all programs are started, and one of them runs at a time: the others are stopped (SIGSTOP) until their turn;
they train on CPUs, never on a GPU. Whatever slows the machine for a minute then slows all of them alike, unlike runs
one after the other, as in train.py. The seconds in which a program was running count, from the start of its process to
its end; its own clock is useless, as it goes on while the program is stopped. The cache of decoded images is cold in
every round. Writes benchmarks/results/turns/DATE-DATA-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender
from environments import ENVIRONMENTS, EnvironmentFailed, ensure_environment, python_of
from records import RESULTS, page, save, today, with_interval
from vivace.hardware import describe
from vivace.statistics.intervals import paired_ratio

__all__ = ["Player", "take_turns"]


class Player:
    """A command in a process group of its own, which runs only while it is its turn."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.seconds = 0.0
        """Seconds for which it has been running."""
        self._command, self._environment = command, environment
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, seconds: float) -> bool:
        """Let it run for so long, or to its end. Returns whether it has ended.

        Raises RuntimeError with the end of its output where it failed.
        """
        began = time.perf_counter()
        if self._process is None:
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._process = subprocess.Popen(
                    self._command, stdout=out, stderr=err, env=self._environment, start_new_session=True
                )
        else:
            os.killpg(self._process.pid, signal.SIGCONT)
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGSTOP)
            self.seconds += time.perf_counter() - began
            return False
        self.seconds += time.perf_counter() - began
        if status:
            raise RuntimeError(f"{self.name} ended with status {status}:\n{self._err.read_text()[-2000:]}")
        return True

    def last_line(self) -> dict[str, Any]:
        """The JSON object that it printed at the end."""
        line: dict[str, Any] = json.loads(self._out.read_text().strip().splitlines()[-1])
        return line

    def kill(self) -> None:
        """End it and what it started."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def take_turns(players: Sequence[Player], seconds: float) -> None:
    """Run all of them to their ends, one at a time, `seconds` each. If one fails, none is left running."""
    try:
        playing = list(players)
        while playing:
            playing = [player for player in playing if not player.run(seconds)]
    finally:
        for player in players:
            player.kill()


def one_round(
    contenders: Sequence[Contender], data: Path, *, seed: int, turn: float, environments: Path
) -> dict[str, dict[str, float]]:
    """{contender: top1 and the seconds that it ran}; the first one begins."""
    with tempfile.TemporaryDirectory(prefix="vivace-turns-") as work:
        players = []
        for contender in contenders:
            command = contender.command(
                python_of(contender.environment, environments), data, Path(work, contender.name)
            )
            # a stopped process keeps its GPU busy with what it had queued: turns are for CPUs
            variables = os.environ | {
                "VIVACE_CACHE": str(Path(work, f"cache-{contender.name}")),
                "CUDA_VISIBLE_DEVICES": "",
            }
            players.append(Player(contender.name, [*command, *contender.seed(seed)], Path(work), variables))
        take_turns(players, turn)
        return {
            contender.name: {
                "top1": contender.read(player.last_line(), Path(work, contender.name), player.seconds).top1,
                "seconds": player.seconds,
            }
            for contender, player in zip(contenders, players, strict=True)
        }


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    conditions = (
        f". Rounds: {record['rounds']}; in each the contenders take turns of {record['turn_seconds']:g} s. Seconds in "
        "which each was running, process start to saved weights, cold cache; the ratio is the first one's time over "
        "this one's, the geometric mean of the rounds with Student's 95 % interval."
    )
    lines = ["| contender | top-1 %, by round | seconds, by round | × faster |", "| --- | --- | --- | --- |"]
    for name, runs in record["runs"].items():
        top1 = ", ".join(f"{100 * run['top1']:.2f}" for run in runs)
        seconds = ", ".join(f"{run['seconds']:.1f}" for run in runs)
        lines.append(f"| {name} | {top1} | {seconds} | {with_interval(*record['ratios'][name])} |")
    lines += ["", *(f"- {name}: {about}" for name, about in record["contenders"].items())]
    return page(record, f"Training on {record['data']}, by turns", conditions, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/ and test/ or val/")
    parser.add_argument("contenders", nargs="+", choices=sorted(CONTENDERS), metavar="CONTENDER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds of a turn")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each one after it has the next")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="FOLDER")
    args = parser.parse_args()

    contenders = [CONTENDERS[name] for name in args.contenders]
    try:
        for name in sorted({contender.environment for contender in contenders if contender.environment}):
            ensure_environment(name, args.environments)
    except EnvironmentFailed as error:
        sys.exit(str(error))
    runs: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for index in range(args.rounds):
        order = contenders if index % 2 == 0 else contenders[::-1]
        found = one_round(order, args.data, seed=args.seed + index, turn=args.turn, environments=args.environments)
        for name, result in found.items():
            runs[name].append(result)
            print(
                f"round {index + 1}/{args.rounds}  {name:<18} top-1 {100 * result['top1']:6.2f} %  "
                f"{result['seconds']:7.1f} s",
                flush=True,
            )
    first = [run["seconds"] for run in runs[contenders[0].name]]
    record = {
        "date": today(),
        "data": args.data.name,
        "command": f"python benchmarks/turns.py {' '.join(sys.argv[1:])}",
        "rounds": args.rounds,
        "turn_seconds": args.turn,
        "seed": args.seed,
        "environment": describe(),
        "contenders": {contender.name: contender.about for contender in contenders},
        "ratios": {name: paired_ratio(first, [run["seconds"] for run in its]) for name, its in runs.items()},
        "runs": runs,
    }
    save(record, "turns", args.data.name, markdown, args.out)


if __name__ == "__main__":
    main()
