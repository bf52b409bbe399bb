"""How far heat maps can be relied on: the deletion test against random masks, and with shuffled weights.

    vivace train data/cifar10 --run runs/cifar10-fast
    python benchmarks/trust_maps.py runs/cifar10-fast data/cifar10 --images 500

Every rule is measured on the same layer and images, so that the one in use can be compared with those that are not.
--model FILE.py:NAME: the code of a network of your own. Writes benchmarks/results/trust/DATE-maps-LABEL-HARDWARE.json
and a table in Markdown.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from records import RESULTS, save_found
from vivace.config import to_dict
from vivace.evaluation.evaluate import open_split
from vivace.evaluation.hardship import chosen_at_random
from vivace.heatmaps.check import check_maps
from vivace.heatmaps.mapper import RULES, HeatMapper
from vivace.loaded import load


def measured(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], str]:
    """The record, its table, and what it is of."""
    bundle = load(args.bundle, model=args.model)
    source, split, cached = open_split(bundle, args.data, cache_dir=args.cache_dir)
    rows = chosen_at_random(np.arange(len(cached.labels_N)), args.images, args.seed)
    images, labels = bundle.preprocess.view(np.asarray(cached.images_NHWC[rows])), cached.labels_N[rows]
    mapper = HeatMapper(bundle)
    mapper(images[:16], labels[:16])
    started = time.perf_counter()
    mapper(images, labels)
    own, seconds = mapper.method, time.perf_counter() - started
    found: dict[str, Any] = {}
    for rule in {own: None, **RULES}:
        mapper.method = rule
        found[rule] = to_dict(check_maps(mapper, images, seed=args.seed, num_steps=args.steps))
    table = [
        "| rule | beats random masks | deletion AUC | of random masks | correlation, shuffled weights |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rule, row in found.items():
        percent = [f"{100 * row[key]:.1f}" for key in ("beat_random", "beat_random_low", "beat_random_high")]
        table.append(
            f"| {f'**{rule}**' if rule == own else rule} | {percent[0]} % [{percent[1]}, {percent[2]}] | "
            f"{row['deletion_auc']:.3f} | {row['random_auc']:.3f} | {row['correlation_randomised']:.2f} |"
        )
    table += ["", f"Bold: the rule in use. A map takes {1e3 * seconds / len(images):.1f} ms, in batches of 16."]
    record = {
        "data": source.name,
        "split": split,
        "network": bundle.info.architecture.name,
        "layer": mapper.layer,
        "side": mapper.side,
        "method": own,
        "num_images": len(images),
        "steps": args.steps,
        "seed": args.seed,
        "seconds_per_map": seconds / len(images),
        "rules": found,
    }
    about = (
        f"; {source.name}, {split}: {len(images):,} images, {record['network']}, layer {mapper.layer}, "
        f"{mapper.side} × {mapper.side} places"
    )
    return record, table, about


def main() -> None:
    parser = argparse.ArgumentParser(description="How far heat maps can be relied on.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--model", help="FILE.py:NAME of a network of your own")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found, table, about = measured(args)
    label = f"maps-{found['data']}-{found['network'].rpartition('/')[2].rpartition(':')[2]}"
    save_found(found, "trust", label, args.out, title="Trust: heat maps", conditions=about, table=table)


if __name__ == "__main__":
    main()
