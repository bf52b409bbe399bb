"""Latency and accuracy of what `vivace accelerate` returns, against manual baselines and against peers.

    python benchmarks/infer.py runs/cifar10/bundle --data data/cifar10 --batch 1 32 --peers nncf-ac olive torchao litert
    python benchmarks/infer.py --network timm/resnet18 timm/resnet50 --size 224 --batch 1 32

Same weights, threads and images for all, every side in fresh processes, all interleaved (alternate.py). The first
way runs `vivace accelerate` for each bundle and batch, in a process of its own, or takes what it returned before
(--accelerated), and judges every side on the images to certify on. The second takes random weights: it compares the
times of all variants that `vivace accelerate` tries (--network implies that nothing is judged). Manual baselines
(hand.py) and peers (peers/, in environments of their own) get normalized float32 images in memory, vivace raw pixels.
Writes DATE-LABEL-HARDWARE.json to benchmarks/results/infer and tables beside it in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alternate import BLOCK_SECONDS, Measured, alternate
from environments import ENVIRONMENTS, EnvironmentFailed
from exchange import random_bundle, view_for, write_exchange, write_random_exchange
from hand import HAND_FORMS
from infer_tables import AGAIN, Entry, claims, fastest, markdown, rows
from peers.inference import Exchange
from records import RESULTS, save, today
from sides import PEERS, Side, SideNotPrepared, again, hand_side, our_side, peer_side
from vivace.acceleration.candidates import Builder, candidates_for
from vivace.acceleration.splits import open_splits
from vivace.bundle import Bundle, load_bundle
from vivace.exporting.parity import PLAIN
from vivace.hardware import describe, num_cpus, supported_precisions
from vivace.runtimes.loading import load_runtime
from vivace.statistics.paired import PairedLoss, paired_loss

CPU = torch.device("cpu")
# exit status of `vivace accelerate` where nothing faster was proven
NOTHING_FASTER = 3


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def accelerate_command(bundle: Bundle, out: Path, args: argparse.Namespace, batch: int) -> list[str]:
    command = [sys.executable, "-m", "vivace", "accelerate", str(bundle.folder), str(args.data)]
    command += ["--out", str(out), "--max-drop", str(args.max_drop), "--batch-size", str(batch)]
    command += ["--threads", str(args.threads), "--on-bad-image", args.on_bad_image, "--json"]
    return command + args.accelerate_options.split()


def run_accelerate(bundle: Bundle, out: Path, args: argparse.Namespace, batch: int) -> tuple[Bundle, dict[str, Any]]:
    """`vivace accelerate` in a process of its own: the bundle that it returned, and how long that took.

    Raises RuntimeError with the end of its output if it fails.
    """
    command = accelerate_command(bundle, out, args, batch)
    tell(f"$ {' '.join(command[1:])}")
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, NOTHING_FASTER):
        raise RuntimeError(f"vivace accelerate ended with status {done.returncode}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return _returned(Path(found["bundle"]), bundle, out, process_seconds=seconds)


def _returned(
    folder: Path, bundle: Bundle, out: Path, *, process_seconds: float | None = None
) -> tuple[Bundle, dict[str, Any]]:
    returned = load_bundle(folder)
    accelerated = returned.folder.resolve() != bundle.folder.resolve()
    receipt = returned.folder / "receipt.json" if accelerated else out.with_name(f"{out.name}-receipt.json")
    search = json.loads(receipt.read_text()) if receipt.is_file() else {}
    facts = {
        "accelerated": accelerated,
        "form": " ".join(own_form(returned)),
        "search_seconds": search.get("seconds"),
        "process_seconds": process_seconds,
        "asked": search.get("asked"),
    }
    return returned, facts


def own_form(bundle: Bundle) -> tuple[str, str]:
    """The runtime and precision in which the predictor takes a bundle."""
    runtime, precision = bundle.info.runtime, bundle.info.precision
    if runtime in ("eager", "inductor") and precision not in supported_precisions(CPU):
        precision = "fp32"
    return runtime, precision


def our_forms(bundle: Bundle, exchange: Exchange, work: Path, args: argparse.Namespace, batch: int) -> Iterator[Any]:
    """Every variant that `vivace accelerate` tries, as a side, or (name, why it could not be built)."""
    images: np.ndarray = np.load(exchange.folder / "calibrate.npy")
    builder = Builder(bundle, work, lambda: images)
    candidates, missing = candidates_for(CPU)
    yield from (pair for pair in missing.items() if _asked(pair[0], args.variants))
    for candidate in candidates:
        if not _asked(candidate.name, args.variants):
            continue
        tell(f"building {candidate.name}")
        began = time.perf_counter()
        try:
            built = builder.build(candidate)
        except Exception as error:
            yield candidate.name, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        yield our_side(
            f"vivace {candidate.name}",
            built,
            (candidate.runtime, candidate.precision),
            exchange,
            batch=batch,
            threads=args.threads,
            prepare_seconds=time.perf_counter() - began,
        )


def _asked(name: str, forms: Sequence[str] | None) -> bool:
    return forms is None or any(form in name for form in forms)


def other_sides(exchange: Exchange, work: Path, args: argparse.Namespace, batch: int) -> Iterator[Any]:
    """Manual baselines and peers, each a side, or (name, why it could not be prepared)."""
    for name in HAND_FORMS:
        if _asked(name, args.variants):
            tell(f"preparing by hand {name}")
            try:
                yield hand_side(name, exchange, work, batch=batch, threads=args.threads)
            except SideNotPrepared as error:
                yield f"hand {name}", str(error)
    for name in args.peers:
        tell(f"preparing {name}")
        try:
            yield peer_side(name, exchange, work, batch=batch, threads=args.threads, environments=args.environments)
        except (SideNotPrepared, EnvironmentFailed) as error:
            yield name, str(error)


def measure(
    sides: Sequence[Side], exchange: Exchange, ours: Exchange, work: Path, args: argparse.Namespace, *, judge: bool
) -> tuple[dict[str, Measured], dict[str, str], dict[str, PairedLoss]]:
    """(times, failures, losses against the plain network in float32), by name."""
    asked = {
        side.name: {"split": "certify", "out": str(work / f"{number}.npy")}
        for number, side in enumerate(sides)
        if judge and not side.name.endswith(AGAIN)
    }
    measured, failures = alternate(
        [side.contestant for side in sides],
        starts=args.starts,
        rounds=args.rounds,
        block_seconds=args.block_seconds,
        classify=asked,
        tell=tell,
    )
    losses = {}
    if judge:
        labels = exchange.labels("certify")
        plain = load_runtime(PLAIN[0], load_bundle(exchange.facts["bundle"]), device=CPU, precision=PLAIN[1])
        batches = exchange.batches("certify", 64, raw=True)
        before = np.concatenate([plain(images).argmax(1) for images in batches])[: len(labels)] == labels
        for name in measured.keys() & asked.keys():
            losses[name] = paired_loss(before, np.load(asked[name]["out"]) == labels)
    return measured, failures, losses


def compare(
    bundle: Bundle, exchange: Exchange, work: Path, args: argparse.Namespace, batch: int, accelerated: Path | None
) -> dict[str, Any]:
    """One table: a bundle at a batch size."""
    judge = args.network is None
    search, mine, seen = None, [], exchange
    found: list[Any] = []
    if judge:
        out = work / f"accelerated-{batch}"
        returned, search = (
            run_accelerate(bundle, out, args, batch) if accelerated is None else _returned(accelerated, bundle, out)
        )
        seen = view_for(exchange, work / f"seen-{batch}", returned, bundle, args.data, on_bad_image=args.on_bad_image)
        ours = our_side("vivace", returned, own_form(returned), seen, batch=batch, threads=args.threads)
        mine = [ours, again(ours)]
    else:
        found = list(our_forms(bundle, exchange, work / "ours", args, batch))
        # the A/A test: of the last one, whose times are the shortest and noisiest
        mine = [again(side) for side in found if isinstance(side, Side)][-1:]
    found = [*mine, *found, *other_sides(exchange, work / f"batch-{batch}", args, batch)]
    sides = [side for side in found if isinstance(side, Side)]
    failures = dict(pair for pair in found if not isinstance(pair, Side))
    tell(f"timing {len(sides)} sides")
    measured, died, losses = measure(sides, exchange, seen, work, args, judge=judge)
    entries = [
        Entry(
            kind=side.kind,
            runtime=side.runtime,
            precision=side.precision,
            measured=measured[side.name],
            loss=losses.get(side.name),
            facts=side.facts,
        )
        for side in sides
        if side.name in measured
    ]
    own = [entry for entry in entries if entry.kind == "vivace" and not entry.name.endswith(AGAIN)]
    best = fastest(own)
    if best is None:
        raise RuntimeError(f"nothing of vivace's could be timed: {failures | died}")
    return {
        "network": bundle.info.architecture.name,
        "size": bundle.preprocess.size,
        "batch": batch,
        "data": args.data.name if judge else None,
        "max_drop": args.max_drop,
        "num_certify": len(exchange.labels("certify")) if judge else 0,
        "accelerate": search,
        "ours": best.name,
        "rows": rows(entries, best),
        "claims": claims(entries, best, max_drop=args.max_drop, wanted_speedup=args.want_speedup),
        "failures": failures | died,
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="folders of bundles, or of runs")
    parser.add_argument("--data", type=Path, help="images that the bundles were trained on")
    parser.add_argument("--network", nargs="+", metavar="NAME", help="random weights instead of bundles; times alone")
    parser.add_argument("--size", type=int, default=224, help="with --network: side of its input, px")
    parser.add_argument("--num-classes", type=int, default=1000, help="with --network")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images in a call")
    parser.add_argument("--max-drop", type=float, default=0.5, help="points of accuracy that may be lost")
    parser.add_argument(
        "--accelerated",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="what `vivace accelerate` returned before, for each bundle and each batch, in this order",
    )
    parser.add_argument("--accelerate-options", default="", metavar="TEXT", help="more of them for `vivace accelerate`")
    parser.add_argument("--on-bad-image", choices=("refuse", "skip"), default="refuse")
    parser.add_argument("--want-speedup", type=float, default=1.0, help="over the faster of eager and compiled float32")
    parser.add_argument("--certify", type=int, help="judge on so many images only: a table made so is a try")
    parser.add_argument("--peers", nargs="*", default=[], choices=sorted(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument(
        "--variants",
        "--forms",
        nargs="+",
        metavar="TEXT",
        dest="variants",
        help="only variants with one of these in their name",
    )
    parser.add_argument("--starts", type=int, default=3, help="fresh processes of each side")
    parser.add_argument("--rounds", type=int, default=5, help="blocks in each process")
    parser.add_argument("--block-seconds", type=float, default=BLOCK_SECONDS)
    parser.add_argument("--threads", type=int, default=num_cpus())
    parser.add_argument("--label", default="", help="put into the file names: keeps comparisons of one day apart")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="FOLDER")
    args = parser.parse_args()
    if bool(args.bundles) == bool(args.network):
        parser.error("give bundles with --data, or --network.")
    if args.network and "nncf-ac" in args.peers:
        parser.error("--peers nncf-ac: it controls an accuracy, and random weights have none. Leave it out.")
    if args.bundles and args.data is None:
        parser.error("--data is missing: bundles are judged on images.")
    if args.accelerated and len(args.accelerated) != len(args.bundles) * len(args.batch):
        parser.error(f"--accelerated: got {len(args.accelerated)}, needed one for each bundle and batch.")
    return args


def main() -> None:
    args = options()
    comparisons = []
    with tempfile.TemporaryDirectory(prefix="vivace-infer-") as folder:
        given = iter(args.accelerated)
        for number, source in enumerate(args.bundles or args.network):
            work = Path(folder, str(number))
            if args.network:
                bundle = random_bundle(work / "bundle", source, size=args.size, num_classes=args.num_classes)
                exchange = write_random_exchange(work / "exchange", bundle, batch=max(args.batch))
            else:
                bundle = load_bundle(source)
                splits = open_splits(bundle, args.data, on_bad_image=args.on_bad_image)
                exchange = write_exchange(
                    work / "exchange",
                    bundle,
                    splits,
                    batch=max(args.batch),
                    max_drop=args.max_drop,
                    num_certify=args.certify,
                )
            for batch in args.batch:
                tell(f"== {bundle.info.architecture.name}, {bundle.preprocess.size} px, batches of {batch}")
                comparisons.append(compare(bundle, exchange, work, args, batch, next(given, None)))
            shutil.rmtree(work)
    if not comparisons:
        sys.exit("nothing was compared")
    subject = args.data.name if args.data else "random weights"
    record = {
        "date": today(),
        "subject": subject,
        "command": f"python benchmarks/infer.py {' '.join(sys.argv[1:])}",
        "starts": args.starts,
        "rounds": args.rounds,
        "block_seconds": args.block_seconds,
        "threads": args.threads,
        "environment": describe(),
        "comparisons": comparisons,
    }
    label = f"-{args.label}" if args.label else ""
    save(record, "infer", f"{subject}{label}", markdown, args.out)


if __name__ == "__main__":
    main()
