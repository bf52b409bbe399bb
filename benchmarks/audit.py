"""How well `vivace audit` finds what it says: a subcommand for each kind of finding.

    python benchmarks/audit.py duplicates data/flowers
    python benchmarks/audit.py duplicates data/cifar10 --images 5000
    python benchmarks/audit.py labels data/flowers --noise 0.05

duplicates: a changed copy of each image, the changes by turns, is written into a second split, and the folder is
audited; what is timed includes reading. The thresholds were chosen on the first 300 images of CIFAR-10 in the order of
seed 0, so the first 1,000 of each data set are left out. Changes: resize to 0.5–2 of a side (bilinear, bicubic or
Lanczos); JPEG of quality 30–95; mirrored or upside down; turned by 90°, 180° or 270°; cropped to 90 % of each side at
any place; text over at most 15 % of the area, half of the time on a box; hue shifted by up to 10 % of the circle with
saturation, brightness and contrast times 0.7–1.3. All but the second are saved as JPEG of quality 95. Pairs of
different originals count as wrong even where these are one picture: they are drawn into a sheet to look at.

labels: a fraction of the labels is replaced by another class at random, a network is trained on them, and what is
called wrong is compared with what was replaced; labels that were wrong before count as right.
Writes benchmarks/results/trust/DATE-SUBJECT-DATA-HARDWARE.json and a table in Markdown.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

import vivace
from records import RESULTS, save_found
from vivace.data.sources import open_source
from vivace.statistics.proportions import wilson_interval

Change = Callable[[Image.Image, np.random.Generator], Image.Image]
WORDS = ("sample", "© photo", "2024", "preview", "copyright", "www.example.org", "draft")
MAX_TEXT, CROP, HUE, TONES = 0.15, 0.9, 0.1, (0.7, 1.3)
CHOSEN_ON = 1000
TILE = 96


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue()))


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = 2 ** rng.uniform(-1, 1)
    filters = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
    width, height = (max(2, round(side * factor)) for side in image.size)
    return image.resize((width, height), filters[rng.integers(len(filters))])


def recompressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return as_jpeg(image, int(rng.integers(30, 96)))


def mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image) if rng.random() < 0.5 else ImageOps.flip(image)


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    ways = [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270]
    return image.transpose(ways[rng.integers(len(ways))])


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = (round(side * CROP) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def lettered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = image.copy()
    draw, text = ImageDraw.Draw(image), WORDS[rng.integers(len(WORDS))]
    size = max(6, round(image.height * rng.uniform(0.1, 0.3)))
    while True:
        font = ImageFont.load_default(size)
        x0, y0, x1, y1 = (int(value) for value in draw.textbbox((0, 0), text, font=font))
        width, height = x1 - x0, y1 - y0
        if size <= 5 or min(width, image.width) * height <= MAX_TEXT * image.width * image.height:
            break
        size -= 1
    left, top = int(rng.integers(max(1, image.width - width))), int(rng.integers(max(1, image.height - height)))
    colour = tuple(rng.integers(0, 256, 3).tolist())
    if rng.random() < 0.5:
        draw.rectangle((left, top, left + width, top + height), fill=tuple(255 - value for value in colour))
    draw.text((left - x0, top - y0), text, fill=colour, font=font)
    return image


def recoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    hue, *rest = image.convert("HSV").split()
    shift = round(rng.uniform(-HUE, HUE) * 255)
    image = Image.merge("HSV", (hue.point(lambda value: (value + shift) % 256), *rest)).convert("RGB")
    for kind in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = kind(image).enhance(rng.uniform(*TONES))
    return image


CHANGES: dict[str, Change] = {
    "resized": resized,
    "recompressed": recompressed,
    "mirrored": mirrored,
    "turned by 90°": turned,
    "cropped": cropped,
    "text": lettered,
    "recoloured": recoloured,
}


def write_copies(paths: list[str], folder: Path, seed: int) -> dict[str, int]:
    """Links to the originals in train/, a changed copy of each in test/; which image each file shows."""
    owner = {}
    for number, (path, (kind, change)) in enumerate(zip(paths, itertools.cycle(CHANGES.items()), strict=False)):
        rng = np.random.default_rng([seed, number])
        # the class must be the same on both sides, and of two at least
        label = f"class{number % 2}"
        for split in ("train", "test"):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
        original = folder / "train" / label / f"{number:06d}.jpg"
        original.write_bytes(Path(path).read_bytes())
        with Image.open(path) as opened:
            changed = change(opened.convert("RGB"), rng)
        place = folder / "test" / label / f"{number:06d}.jpg"
        quality: Any = {"qtables": changed.quantization} if kind == "recompressed" else {"quality": 95}
        changed.save(place, "JPEG", **quality)
        owner[f"train:train/{label}/{original.name}"] = owner[f"test:test/{label}/{place.name}"] = number
    return owner


def duplicates(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], str]:
    source = open_source(args.data)
    paths = sorted(path for split in source.splits.values() for path in split.paths or ())
    order = np.random.default_rng(0).permutation(len(paths))[CHOSEN_ON:][: args.images]
    kinds = list(CHANGES)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        owner = write_copies([paths[row] for row in order], folder / "copies", args.seed)
        began, computed = time.perf_counter(), sum(os.times()[:4])
        vivace.audit(folder / "copies", near=False, cache_dir=folder / "cache", quiet=True)
        read = time.perf_counter() - began
        began = time.perf_counter()
        found = vivace.audit(folder / "copies", cache_dir=folder / "cache", quiet=True)
        seconds, computed = time.perf_counter() - began, sum(os.times()[:4]) - computed
        groups = [finding.names for finding in found.findings if finding.kind.startswith("near_")]
        # an original whose copy equals it to the last pixel is a finding of the exact search
        groups += [finding.names for finding in found.findings if finding.kind in ("leak", "contradiction")]
        together: dict[int, Counter[int]] = defaultdict(Counter)
        wrong = set()
        for number, names in enumerate(groups):
            for name in names:
                together[owner[name]][number] += 1
            for first, second in itertools.combinations(sorted({owner[name] for name in names}), 2):
                wrong.add((first, second))
        _draw(folder / "copies", sorted(wrong), args.sheet)
    total, hits = Counter(), Counter()
    for number in range(len(order)):
        total[kinds[number % len(kinds)]] += 1
        hits[kinds[number % len(kinds)]] += max(together[number].values(), default=0) > 1
    right, images = sum(hits.values()), 2 * len(order)
    alike = found.alike
    assert alike is not None
    rows = [[kind, hits[kind], total[kind]] for kind in kinds] + [["all", right, len(order)]]
    table = ["| change | found | recall, % | 95 % interval |", "| --- | --- | --- | --- |"]
    for kind, hit, count in rows:
        low, high = wilson_interval(hit, count)
        table.append(f"| {kind} | {hit:,} of {count:,} | {100 * hit / count:.2f} | {100 * low:.1f}–{100 * high:.1f} |")
    precision = right / max(1, right + len(wrong))
    table += [
        "",
        f"{right:,} pairs of an image and its copy, and {len(wrong):,} pairs of different images: precision "
        f"{100 * precision:.2f} % if all of these are wrong.",
        f"{images:,} images: read in {read:.1f} s, compared in {seconds:.1f} s (with opening the cache); "
        f"{10_000 * (read + seconds) / images:.1f} s per 10,000, of processor time "
        f"{10_000 * computed / images:.1f} s. Least correlation of details {alike.min_detail}.",
    ]
    record = {
        "data": source.name,
        "num_images": images,
        "recall": {kind: [hit, count] for kind, hit, count in rows},
        "wrong_pairs": len(wrong),
        "precision": precision,
        "seconds_reading": read,
        "seconds_comparing": seconds,
        "seconds_processor": computed,
        "min_detail": alike.min_detail,
        "seed": args.seed,
    }
    return record, table, f"; {source.name}, {len(order):,} images and a changed copy of each"


def _draw(folder: Path, pairs: list[tuple[int, int]], sheet: Path | None) -> None:
    """The first pairs of different originals that were called the same, beside each other."""
    if sheet is None or not pairs:
        return
    columns, shown = 6, pairs[:120]
    drawn = Image.new("RGB", (columns * (2 * TILE + 8), -(-len(shown) // columns) * (TILE + 8)), "white")
    for number, pair in enumerate(shown):
        left, top = number % columns * (2 * TILE + 8), number // columns * (TILE + 8)
        for side, image in enumerate(pair):
            with Image.open(folder / "train" / f"class{image % 2}" / f"{image:06d}.jpg") as opened:
                drawn.paste(opened.convert("RGB").resize((TILE, TILE)), (left + side * TILE, top))
    drawn.save(sheet)


def labels(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], str]:
    source = open_source(args.data)
    rng, classes = np.random.default_rng(args.seed), source.classes
    listed = [
        (path, split, label)
        for split, part in source.splits.items()
        for path, label in zip(part.paths or (), part.labels.tolist(), strict=True)
    ]
    rows = [listed[row] for row in rng.permutation(len(listed))[: args.images]]
    replaced = rng.random(len(rows)) < args.noise
    given = [
        (label + 1 + int(rng.integers(len(classes) - 1))) % len(classes) if bad else label
        for (*_, label), bad in zip(rows, replaced, strict=True)
    ]
    wrong = {path for (path, *_), bad in zip(rows, replaced, strict=True) if bad}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with (folder / "given.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "label", "split"))
            writer.writerows((path, classes[new], split) for (path, split, _), new in zip(rows, given, strict=True))
        options: dict[str, Any] = {"recipe": args.recipe} if args.recipe else {}
        options |= {"within": args.within} if args.within else {}
        run = vivace.train(folder / "given.csv", run=folder / "run", quiet=True, on_bad_image="skip", **options)
        began = time.perf_counter()
        found = vivace.audit(folder / "given.csv", bundle=run.bundle, near=False, fdr=args.fdr, quiet=True)
        seconds = time.perf_counter() - began
        check = found.labels
        assert check is not None
        names = [finding.names[0].partition(":")[2] for finding in check.findings]
        called = {str((folder / name).resolve()) for name in names}
    hits = len(called & {str(Path(path).resolve()) for path in wrong})
    low, high = wilson_interval(len(called) - hits, len(called)) if called else (0.0, 1.0)
    table = [
        "| stated | called wrong | of these not replaced | 95 % interval | of the replaced found | rate estimated |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| {args.fdr:g} | {len(called):,} | {(len(called) - hits) / max(1, len(called)):.3f} | {low:.3f}–{high:.3f} | "
        f"{hits:,} of {len(wrong):,} | {check.rate:.3f} |",
    ]
    record = {
        "data": source.name,
        "num_images": len(rows),
        "noise": args.noise,
        "fdr": args.fdr,
        "called": len(called),
        "hits": hits,
        "replaced": len(wrong),
        "rate": check.rate,
        "agreement": check.agreement,
        "seconds": seconds,
        "seed": args.seed,
    }
    return record, table, f"; {source.name}, {len(rows):,} images, {100 * args.noise:g} % of the labels replaced"


SUBJECTS = {"duplicates": duplicates, "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description="How well `vivace audit` finds what it says.")
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, help="at most so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a PNG of the pairs of different images that were called the same")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--fdr", type=float, default=0.1)
    parser.add_argument("--recipe")
    parser.add_argument("--within")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found, table, about = SUBJECTS[args.subject](args)
    save_found(
        {"subject": args.subject, **found},
        "trust",
        f"{args.subject}-{found['data']}",
        args.out,
        title=f"Audit: {args.subject}",
        conditions=about,
        table=table,
    )


if __name__ == "__main__":
    main()
