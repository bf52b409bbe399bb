"""Deployment folders: cold start, resident memory, and agreement with PyTorch.

    python benchmarks/deployed.py BUNDLE DATA FOLDER... --starts 20 --python /path/to/venv/bin/python

FOLDER: what `vivace export --to deploy` wrote, of BUNDLE in any variant. Each start is a fresh process that imports the
folder's classifier.py, loads the graph and classifies one file of DATA; the folders are interleaved, and a
first start that is not counted fills the page cache. Time is measured from outside, Python's own start included; memory
is what is resident after the first answer. --python: an interpreter with what requirements.txt names, and best without
torch. Agreement is on up to 1,000 files of DATA's test split, else val, read by the folder and by vivace. Writes
benchmarks/results/deployed/DATE-NAME-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from records import RESULTS, page, save, today

# run by the other interpreter, next to the folder's own modules
START = """
import time
began = time.perf_counter()
import json, sys
sys.path.insert(0, sys.argv[1])
from classifier import Classifier
imported = time.perf_counter()
model = Classifier()
loaded = time.perf_counter()
model.classify(sys.argv[2])
ended = time.perf_counter()
facts = dict(line.split(":") for line in open("/proc/self/status") if line.startswith(("VmRSS", "VmHWM")))
kib = {name: int(value.split()[0]) for name, value in facts.items()}
warm = []
for _ in range(50):
    start = time.perf_counter()
    model.classify(sys.argv[2])
    warm.append(1e3 * (time.perf_counter() - start))
print(json.dumps({
    "ended": ended, "imports_ms": 1e3 * (imported - began), "load_ms": 1e3 * (loaded - imported),
    "first_ms": 1e3 * (ended - loaded), "resident_mb": kib["VmRSS"] * 1024 / 1e6, "peak_mb": kib["VmHWM"] * 1024 / 1e6,
    "warm_ms": sorted(warm)[len(warm) // 2], "foreign": sorted({"torch", "vivace"} & set(sys.modules)),
}))
"""
ANSWERS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from classifier import Classifier
model = Classifier()
paths = sys.stdin.read().split("\\0")
probs = [model.probs(np.stack([model.pixels(path) for path in paths[i : i + 32]])) for i in range(0, len(paths), 32)]
np.save(sys.argv[2], np.concatenate(probs))
"""
FIGURES = ("process_ms", "imports_ms", "load_ms", "first_ms", "warm_ms", "resident_mb", "peak_mb")
NUM_IMAGES = 1000
GOAL_MS, GOAL_MB = 300, 150


def one_start(python: str, folder: Path, image: str) -> dict[str, Any]:
    """Timings and memory of a fresh process, measured from outside."""
    # the clock of both processes is the system's monotonic one
    began = time.perf_counter()
    done = subprocess.run(
        [python, "-B", "-c", START, str(folder), image], capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode != 0:
        raise RuntimeError(f"{folder} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if facts["foreign"]:
        raise RuntimeError(f"{folder} imported {facts['foreign']}, which a deployment must not")
    return {"process_ms": 1e3 * (facts.pop("ended") - began), **facts}


def answers(python: str, folder: Path, paths: list[str], out: Path) -> np.ndarray:
    """Probabilities float32 [N, K] of files, by the folder's own loader."""
    subprocess.run(
        [python, "-B", "-c", ANSWERS, str(folder), str(out)], input="\0".join(paths), text=True, check=True, cwd="/"
    )
    probs: np.ndarray = np.load(out)
    return probs


def reference(bundle: Path, data: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(files, labels, probabilities of PyTorch in float32) of up to NUM_IMAGES files, evenly spread."""
    from vivace.bundle import load_bundle
    from vivace.evaluation.evaluate import open_split
    from vivace.prediction import Predictor

    opened = load_bundle(bundle)
    source, name, cached = open_split(opened, data, on_bad_image="skip")
    split = source.splits[name]
    if split.paths is None:
        raise SystemExit(f"{data} holds no files. Give a folder of images.")
    places = {image: place for place, image in enumerate(split.names)}
    count = len(cached.names)
    rows = np.unique(np.linspace(0, count - 1, min(NUM_IMAGES, count)).round().astype(int))
    paths = [split.paths[places[cached.names[row]]] for row in rows]
    predictor = Predictor(opened, device="cpu", precision="fp32", runtime="eager")
    parts = [
        predictor.probs(np.stack([opened.preprocess.load(path) for path in paths[i : i + 50]]))
        for i in range(0, len(paths), 50)
    ]
    return paths, np.asarray(cached.labels_N[rows]), np.concatenate(parts)


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    versions = ", ".join(f"{name} {version}" for name, version in record["interpreter"].items())
    conditions = (
        f" for the comparison; {versions} in the folders. {record['starts']} fresh processes each, in turn, warm page "
        f"cache; medians, in brackets the 90th percentile. The goal is {GOAL_MS} ms and {GOAL_MB} MB. Agreement on "
        f"{record['num_images']:,} files, read by the folder."
    )
    lines = [
        "| folder | graph MB | process → first answer ms | imports | load | first | next | resident MB | "
        "top-1 as PyTorch | largest difference | accuracy (PyTorch) |",
        "| --- " * 11 + "|",
    ]
    for row in record["summary"]:
        middle = {name: row["median"][name] for name in FIGURES}
        lines.append(
            f"| {row['runtime']} {row['precision']} | {row['graph_mb']:.1f} | {middle['process_ms']:.0f} "
            f"({row['p90_process_ms']:.0f}) | {middle['imports_ms']:.0f} | {middle['load_ms']:.0f} | "
            f"{middle['first_ms']:.0f} | {middle['warm_ms']:.2f} | {middle['resident_mb']:.0f} | "
            f"{row['top1_agreement']:.2%} | {row['max_difference']:.1e} | "
            f"{row['top1']:.2%} ({row['pytorch_top1']:.2%}) |"
        )
    return page(record, f"Deployed: {record['model']} on {record['data']}", conditions, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="folder of images")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    import tempfile

    from vivace.hardware import describe

    paths, labels_N, expected_NK = reference(args.bundle, args.data)
    starts: dict[Path, list[dict[str, Any]]] = {folder: [] for folder in args.folders}
    for index in range(args.starts + 1):
        for folder in args.folders if index % 2 else reversed(args.folders):
            facts = one_start(args.python, folder.resolve(), paths[0])
            if index:
                starts[folder].append(facts)
                print(f"{index}/{args.starts}  {folder.name:<32} {facts['process_ms']:7.0f} ms", flush=True)
    summary = []
    for folder, rows in starts.items():
        told = json.loads((folder / "model.json").read_bytes())
        graph = [name for name in told["files"] if name.startswith("model.")]
        with tempfile.TemporaryDirectory() as temporary:
            found_NK = answers(args.python, folder.resolve(), paths, Path(temporary, "probs.npy"))
        summary.append(
            {
                "folder": folder.name,
                "runtime": told["runtime"],
                "precision": told["precision"],
                "graph_mb": sum(told["files"][name]["bytes"] for name in graph) / 1e6,
                "median": {name: statistics.median(row[name] for row in rows) for name in FIGURES},
                "p90_process_ms": float(np.quantile([row["process_ms"] for row in rows], 0.9)),
                "top1_agreement": float((found_NK.argmax(1) == expected_NK.argmax(1)).mean()),
                "max_difference": float(np.abs(found_NK - expected_NK).max()),
                "top1": float((found_NK.argmax(1) == labels_N).mean()),
                "pytorch_top1": float((expected_NK.argmax(1) == labels_N).mean()),
                "starts": rows,
            }
        )
    names = ("numpy", "pillow", "onnxruntime", "openvino")
    code = f"from importlib.metadata import version; print(*[version(name) for name in {names}])"
    versions = subprocess.run([args.python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    record = {
        "date": today(),
        "model": told["model"],
        "data": args.data.name,
        "num_images": len(paths),
        "starts": args.starts,
        "command": f"python benchmarks/deployed.py BUNDLE {args.data} FOLDER... --starts {args.starts}",
        "environment": describe(),
        "interpreter": dict(zip(names, versions, strict=True)),
        "summary": summary,
    }
    save(record, "deployed", args.data.name, markdown, args.out)


if __name__ == "__main__":
    main()
