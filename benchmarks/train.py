"""Time and accuracy of training: programs against each other, interleaved on one machine.

    python benchmarks/train.py data/cifar10 article vivace-fast --rounds 3 --cold-cache
    python benchmarks/train.py data/flowers vivace-fast-skip timm-resnet18 fastai ultralytics --rounds 3

Peers that need an environment of their own get one before the first run (environments.py). Each run is a fresh process;
the order is reversed in every round (A B, B A, …), and each round has a seed of its own. The first program is what the
others are compared with: ratios of times and gains in accuracy, paired by round, with Student's 95 % interval over the
rounds (a bootstrap of three rounds covers the truth in 77 % of cases only); and for each of the others, when the first
one had its final accuracy. Writes a file DATE-DATA-LABEL-HARDWARE.json to benchmarks/results/train and a table beside
it in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from contenders import CONTENDERS, Contender, Result
from environments import ENVIRONMENTS, EnvironmentFailed, ensure_environment, python_of
from records import RESULTS, save, today
from tables import markdown, summarize
from vivace.hardware import describe


def run_once(
    contender: Contender, data: Path, work: Path, *, seed: int, cache: Path, environments: Path, device: str, tta: bool
) -> Result:
    """One fresh process, and after it one for its accuracy with test-time augmentation where `tta` asks for it.

    Raises RuntimeError with the end of its output if it fails.
    """
    python = python_of(contender.environment, environments)
    folder = work / f"{contender.name}-{time.time_ns()}"
    variables = os.environ | {"VIVACE_CACHE": str(cache)} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})

    def last_line(command: list[str]) -> dict[str, Any]:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{contender.name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return line

    began = time.perf_counter()
    last = last_line([*contender.command(python, data, folder), *contender.seed(seed)])
    result = contender.read(last, folder, time.perf_counter() - began)
    if tta and contender.augmented is not None:
        top1 = last_line(contender.augmented(python, data, folder))["top1"]
        result = dataclasses.replace(result, top1_tta=top1)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def run_rounds(
    contenders: list[Contender],
    data: Path,
    rounds: int,
    *,
    cold_cache: bool,
    work: Path,
    environments: Path,
    device: str,
    seed: int,
    results: dict[str, list[Result]],
    tta: bool = False,
) -> None:
    """Put all results into `results` by contender, in the order of the rounds, each as soon as it is there."""
    results |= {contender.name: [] for contender in contenders}
    cache = work / "cache"
    for index in range(rounds):
        for contender in contenders if index % 2 == 0 else contenders[::-1]:
            if cold_cache:
                shutil.rmtree(cache, ignore_errors=True)
            result = run_once(
                contender,
                data,
                work,
                seed=seed + index,
                cache=cache,
                environments=environments,
                device=device,
                tta=tta,
            )
            results[contender.name].append(result)
            print(
                f"round {index + 1}/{rounds}  {contender.name:<18} top-1 {100 * result.top1:6.2f} %  "
                f"loop {result.train_seconds:7.1f} s  in all {result.total_seconds:7.1f} s",
                flush=True,
            )


def paired(results: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """The rounds that all have run in; a contender that has run in none is left out."""
    runs = {name: its_runs for name, its_runs in results.items() if its_runs}
    num_rounds = min(map(len, runs.values()), default=0)
    return {name: its_runs[:num_rounds] for name, its_runs in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/ and test/ or val/")
    parser.add_argument(
        "contenders",
        nargs="+",
        choices=sorted(CONTENDERS),
        metavar="CONTENDER",
        help=f"the first is the baseline: {', '.join(CONTENDERS)}",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each one after it has the next")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cold-cache", action="store_true", help="decode again in every run")
    parser.add_argument("--tta", action="store_true", help="report accuracies with test-time augmentation too")
    parser.add_argument("--label", default="", help="put into the file names: keeps comparisons of one day apart")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--environments", type=Path, default=ENVIRONMENTS, metavar="FOLDER", help="where the peers' environments lie"
    )
    args = parser.parse_args()

    contenders = [CONTENDERS[name] for name in args.contenders]
    if args.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no CUDA device here. Give --device cpu.")
        if for_cpu := [contender.name for contender in contenders if contender.cpu_only]:
            parser.error(f"--device cuda: {', '.join(for_cpu)} can train on a CPU only. Leave it out.")
    try:
        for name in sorted({contender.environment for contender in contenders if contender.environment}):
            ensure_environment(name, args.environments)
    except EnvironmentFailed as error:
        sys.exit(str(error))
    results: dict[str, list[Result]] = {}
    stopped = None
    with tempfile.TemporaryDirectory(prefix="vivace-bench-") as work:
        try:
            run_rounds(
                contenders,
                args.data,
                args.rounds,
                cold_cache=args.cold_cache,
                work=Path(work),
                environments=args.environments,
                device=args.device,
                seed=args.seed,
                results=results,
                tta=args.tta,
            )
        except (RuntimeError, KeyboardInterrupt) as error:
            # the hours of the other programs are not lost with the one that failed
            stopped = error
    results = paired(results)
    if args.contenders[0] not in results:
        sys.exit(f"nothing to compare with: {stopped}")
    record = {
        "date": today(),
        "data": args.data.name,
        "command": f"python benchmarks/train.py {' '.join(sys.argv[1:])}",
        "device": args.device,
        "rounds": len(results[args.contenders[0]]),
        "seed": args.seed,
        "cold_cache": args.cold_cache,
        "environment": describe(),
        "contenders": {contender.name: contender.about for contender in contenders if contender.name in results},
        "stopped_by": None if stopped is None else str(stopped) or type(stopped).__name__,
        "summary": summarize(results),
        "runs": {name: [dataclasses.asdict(run) for run in runs] for name, runs in results.items()},
    }
    label = f"-{args.label}" if args.label else ""
    save(record, "train", f"{args.data.name}{label}", markdown, args.out)
    if stopped is not None:
        sys.exit(f"stopped before the end, what was measured is saved: {record['stopped_by']}")


if __name__ == "__main__":
    main()
