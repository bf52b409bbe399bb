"""Images a second of the data path alone: vivace's cache and batches against torchvision's v2 and a DataLoader.

    python benchmarks/loader.py data/flowers --size 128 --rounds 5

Both sides give augmented, normalised float32 batches of 64 at the same size from the same files: random-resized crops
and flips from 64 px, shifts and flips below. vivace's first epoch decodes into an empty cache, a later one reads
it; its resizing kernel is built beforehand, as it is on a machine after its first data set. The sides are
interleaved; every measurement is a fresh process, whose imports do not count. Writes
benchmarks/results/loader/DATE-DATA-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from records import RESULTS, page, save, today, with_interval
from vivace.statistics.intervals import paired_ratio

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDES = ("DataLoader, 0 workers", "DataLoader, 2 workers", "vivace, first epoch", "vivace, later epoch")


def dataloader_epoch(data: Path, size: int, workers: int) -> tuple[int, float]:
    """(images, seconds) of an epoch of torchvision's ImageFolder, v2 transforms and torch's DataLoader."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    crops = [v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True)]
    if size < 64:
        crops = [v2.Resize((size, size)), v2.RandomCrop(size, padding=2, padding_mode="reflect")]
    transform = v2.Compose(
        [
            v2.ToImage(),
            *crops,
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    dataset = ImageFolder(str(data / "train"), transform)
    began = time.perf_counter()
    count = sum(len(labels) for _, labels in DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers))
    return count, time.perf_counter() - began


def vivace_epochs(data: Path, size: int) -> tuple[int, float, float]:
    """(images, seconds of the first epoch from an empty cache, seconds of a later one)."""
    import torch

    from vivace.cachedir import default_cache_dir
    from vivace.data.augmentation.augment import Augment
    from vivace.data.caching.cache import open_cache
    from vivace.data.config import AugmentConfig
    from vivace.data.loader import Batches
    from vivace.data.preprocess import Preprocess
    from vivace.data.sources import open_source
    from vivace.hardware import keep_freed_memory
    from vivace.kernels.build import load_library
    from vivace.models.normalize import Normalize

    keep_freed_memory()
    small = size < 64
    store = size if small else round(1.15 * size)
    preprocess = Preprocess(size=size, store_size=store, channels=3, mean=MEAN, std=STD)
    config = AugmentConfig(
        flip="random", translate=2 if small else 0, random_resized_crop=None if small else (0.35, 1.0)
    )
    kernels = default_cache_dir() / "kernels"
    load_library("resize", kernels)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernels").symlink_to(kernels)
        began = time.perf_counter()
        # one split, as the other side reads it
        source = open_source(data / "train", cache_dir=Path(folder))
        cache = open_cache(source, preprocess, cache_dir=Path(folder), on_bad_image="skip")
        split = cache.splits["train"]
        batches = Batches(split.images_NHWC, split.labels_N, batch_size=BATCH)
        augment = Augment(config, size=size, num_classes=len(cache.classes))
        normalize, generator = Normalize(MEAN, STD), torch.Generator().manual_seed(0)
        seconds = []
        for epoch in range(3):
            count = 0
            for batch in batches.epoch(epoch):
                images, _ = augment(
                    batch.images_BCHW, batch.labels_B, batch.indices_B, times_seen=epoch, generator=generator
                )
                count += len(normalize(images))
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
        return count, seconds[0], min(seconds[1:])


def measure(side: str, data: Path, size: int) -> dict[str, float]:
    """Images a second of a side, in a fresh process."""
    command = [sys.executable, __file__, str(data), "--size", str(size), "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{side} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def one_side(side: str, data: Path, size: int) -> dict[str, float]:
    """What the fresh process measures."""
    if side == "vivace":
        count, first, later = vivace_epochs(data, size)
        return {SIDES[2]: count / first, SIDES[3]: count / later}
    count, seconds = dataloader_epoch(data, size, int(side))
    return {f"DataLoader, {side} workers": count / seconds}


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    conditions = (
        f". {record['rounds']} rounds in alternation, each measurement a fresh process; medians; ratios are "
        "geometric means of the rounds with Student's 95 % intervals."
    )
    lines = [
        "| side | images/s | × 0 workers | × 2 workers |",
        "| --- | --- | --- | --- |",
    ]
    for row in record["summary"]:
        ratios = [with_interval(*row[f"against {workers} workers"]) for workers in (0, 2)]
        lines.append(f"| {row['side']} | {row['images_per_second']:,.0f} | {ratios[0]} | {ratios[1]} |")
    return page(record, f"The data path on {record['data']} at {record['size']} px", conditions, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/CLASS/*")
    parser.add_argument("--size", type=int, required=True, help="side of the network's input, px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(one_side(args.side, args.data, args.size)))
        return

    from vivace.hardware import describe

    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for index in range(args.rounds):
        for side in ("0", "2", "vivace") if index % 2 == 0 else ("vivace", "2", "0"):
            for name, rate in measure(side, args.data, args.size).items():
                rates[name].append(rate)
                print(f"round {index + 1}/{args.rounds}  {name:<24} {rate:10,.0f} images/s", flush=True)
    summary = []
    for side, values in rates.items():
        row: dict[str, Any] = {"side": side, "images_per_second": statistics.median(values)}
        for workers in (0, 2):
            # rates are inverse times
            row[f"against {workers} workers"] = paired_ratio(values, rates[f"DataLoader, {workers} workers"])
        summary.append(row)
    record = {
        "date": today(),
        "data": args.data.name,
        "size": args.size,
        "rounds": args.rounds,
        "command": f"python benchmarks/loader.py {' '.join(sys.argv[1:])}",
        "environment": describe(),
        "summary": summary,
        "rates": rates,
    }
    save(record, "loader", args.data.name, markdown, args.out)


if __name__ == "__main__":
    main()
