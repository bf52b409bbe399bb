"""JPEGs decoded coarsely: how fast, and how many answers change.

    python benchmarks/coarse.py runs/flowers data/flowers --rounds 5

Every photo below DATA by BUNDLE, fine (as in training) and coarse (at half of that resolution), in alternation: the
decoder alone in as many threads as there are processors, then `vivace predict` to a CSV file, imports and loading the
bundle not counted, everything in the page cache. Answers: the share of photos whose likeliest class changed, with a
Clopper–Pearson interval, and the accuracy of both by the names of folders, where these are classes. Writes
benchmarks/results/coarse/DATE-DATA-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from records import RESULTS, page, save, today, with_interval
from vivace.batch.outputs import Outputs
from vivace.batch.run import predict_stream
from vivace.cachedir import default_cache_dir
from vivace.hardware import describe, num_cpus
from vivace.kernels.resize import use_fast_resize
from vivace.predictor import Prediction, Predictor
from vivace.statistics.intervals import paired_ratio
from vivace.statistics.multiple import exact_interval

DECODES = ("fine", "coarse")
GROUP = 64


def decoded_seconds(predictor: Predictor, files: list[str]) -> float:
    """Of decoding them by all processors."""
    load = predictor.bundle.preprocess.load
    groups = [files[start : start + GROUP] for start in range(0, len(files), GROUP)]
    began = time.perf_counter()
    with ThreadPoolExecutor(num_cpus()) as pool:
        for _ in pool.map(lambda group: [load(path) for path in group], groups):
            pass
    return time.perf_counter() - began


def predicted(predictor: Predictor, data: Path) -> tuple[float, dict[str, str]]:
    """(seconds of the stream, path → label)."""
    found: dict[str, str] = {}

    def note(outcome: Any) -> None:
        if isinstance(outcome, Prediction):
            found[outcome.path] = outcome.label

    with tempfile.TemporaryDirectory() as folder:
        result = predict_stream(predictor, [data], outputs=Outputs(Path(folder, "out.csv")), each=note)
    return result.seconds, found


def accuracy(labels: dict[str, str], classes: tuple[str, ...]) -> float | None:
    """By the names of the folders that the photos are in; None where these are no classes."""
    known = [(Path(path).parent.name, label) for path, label in labels.items()]
    if any(truth not in classes for truth, _ in known):
        return None
    return sum(truth == label for truth, label in known) / len(known)


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    size, sides = record["size"], record["shorter_side"]
    conditions = (
        f". {record['network']}, {record['runtime']}, stored at {size} px; {record['photos']:,} photos, shorter side "
        f"{sides[0]} to {sides[2]} px (median {sides[1]:.0f}), in the page cache. {record['rounds']} rounds in "
        "alternation; medians; ratios are geometric means with Student's 95 % intervals."
    )
    lines = ["| | fine | coarse | coarse as a multiple |", "| --- | --- | --- | --- |"]
    for name, called in (("decoder", "decoder alone, images/s"), ("predict", "`vivace predict`, images/s")):
        rates = record[name]
        lines.append(f"| {called} | {rates['fine']:,.0f} | {rates['coarse']:,.0f} | {with_interval(*rates['ratio'])} |")
    low, high = record["changed_interval"]
    if record["accuracy"]["fine"] is not None:
        fine, coarse = (f"{100 * record['accuracy'][decode]:.2f} %" for decode in DECODES)
        lines.append(f"| top-1 of these photos, training photos among them | {fine} | {coarse} | |")
    lines += [
        "",
        f"The likeliest class changed for {record['changed']:,} of {record['photos']:,} photos: "
        f"{100 * record['changed'] / record['photos']:.2f} % [{100 * low:.2f}, {100 * high:.2f}].",
    ]
    return page(record, f"JPEGs decoded coarsely, on photos of {record['data']}", conditions, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="folder with photos below it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    use_fast_resize(default_cache_dir() / "kernels")
    predictors = {decode: Predictor(args.bundle, decode=decode) for decode in DECODES}
    files = sorted(str(path) for path in args.data.rglob("*.jpg"))
    sides = []
    for path in files:
        with Image.open(path) as image:
            sides.append(min(image.size))
    seconds: dict[str, dict[str, list[float]]] = {name: {d: [] for d in DECODES} for name in ("decoder", "predict")}
    labels: dict[str, dict[str, str]] = {}
    for decode in DECODES:
        # what is built, read or imported once is no part of a round
        predicted(predictors[decode], args.data)
    for index in range(args.rounds):
        for decode in DECODES if index % 2 == 0 else DECODES[::-1]:
            seconds["decoder"][decode].append(decoded_seconds(predictors[decode], files))
            taken, labels[decode] = predicted(predictors[decode], args.data)
            seconds["predict"][decode].append(taken)
            print(f"round {index + 1}/{args.rounds}  {decode:<7} {len(files) / taken:8,.0f} images/s", flush=True)
    assert labels["fine"].keys() == labels["coarse"].keys()
    changed = sum(label != labels["coarse"][path] for path, label in labels["fine"].items())
    count = len(labels["fine"])
    fine = predictors["fine"]
    record: dict[str, Any] = {
        "date": today(),
        "data": args.data.name,
        "network": fine.bundle.info.architecture.name,
        "runtime": f"{fine.runtime} {fine.precision}",
        "size": fine.bundle.preprocess.store_size,
        "shorter_side": [min(sides), statistics.median(sides), max(sides)],
        "photos": count,
        "rounds": args.rounds,
        "command": f"python benchmarks/coarse.py {' '.join(sys.argv[1:])}",
        "changed": changed,
        "changed_interval": exact_interval(changed, count),
        "accuracy": {decode: accuracy(labels[decode], fine.classes) for decode in DECODES},
        "seconds": seconds,
    }
    for name, taken_by in seconds.items():
        rates = {decode: [count / taken for taken in taken_by[decode]] for decode in DECODES}
        record[name] = {decode: statistics.median(rates[decode]) for decode in DECODES}
        record[name]["ratio"] = paired_ratio(rates["coarse"], rates["fine"])
    record["environment"] = describe()
    save(record, "coarse", args.data.name, markdown, args.out)


if __name__ == "__main__":
    main()
