"""`vivace predict` on many photos: against the decoder's own limit, and against a DataLoader and OpenVINO.

    python benchmarks/predict.py data/flowers --photos 60000 --size 64 --rounds 3

Photos of 192 px are made of those of DATA; so many names lead to them as --photos says. A network that was not trained,
as speed does not depend on its weights, is exported to OpenVINO. The sides, each a fresh process whose imports do not
count, interleaved, on --each of the photos:

    decoder      Preprocess.load of every photo in as many threads as there are processors: nothing else
    network      the predictor on pixels that are there, in the same batches: nothing else
    vivace       what `vivace predict --out FILE.csv` does, journal and fsync included
    DataLoader   torch's DataLoader with a worker for each processor (Pillow, torchvision's resize), OpenVINO by an
                 AsyncInferQueue with the hint for throughput, a CSV of the likeliest class
    Ultralytics  with --ultralytics: its `predict` by PyTorch and by its OpenVINO export (peers/predict_ultralytics.py)

Then all photos once by vivace, with the peak of its memory. --kills N: the command itself, on all photos, killed N
times at random moments and resumed; its file must be that of an unbroken run. Writes
benchmarks/results/predict/DATE-DATA-HARDWARE.json and a table beside it in Markdown.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from environments import ENVIRONMENTS, ensure_environment
from records import RESULTS, page, save, today, with_interval
from vivace.statistics.intervals import paired_ratio

PHOTO, BATCH, PER_FOLDER = 192, 64, 1000
SIDES = ("decoder", "network", "vivace", "DataLoader")
# side → runtime; in an environment of their own
ULTRALYTICS = {"Ultralytics": "torch", "Ultralytics, OpenVINO": "openvino"}
PEER = Path(__file__).parent / "peers" / "predict_ultralytics.py"


def make_photos(data: Path, folder: Path, count: int) -> int:
    """`count` names of photos of 192 px below `folder`; returns how many are different."""
    from PIL import Image

    originals = sorted(path for path in data.rglob("*.jpg"))
    (folder / "made").mkdir(parents=True, exist_ok=True)
    made = []
    for index, path in enumerate(originals):
        target = folder / "made" / f"{index:05d}.jpg"
        if not target.exists():
            with Image.open(path) as image:
                scale = PHOTO / min(image.size)
                size = tuple(max(PHOTO, round(side * scale)) for side in image.size)
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
        made.append(target)
    for index in range(count):
        place = folder / "photos" / f"{index // PER_FOLDER:03d}" / f"{index:06d}.jpg"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(made[index % len(made)], place)
    return min(count, len(made))


def make_bundle(folder: Path, size: int, network: str) -> Path:
    """An untrained network with five classes, as a bundle for OpenVINO."""
    import torch

    from vivace.bundle import Architecture, BundleInfo, save_bundle
    from vivace.data.preprocess import Preprocess
    from vivace.exporting.export import export
    from vivace.models.zoo import create_model

    torch.manual_seed(0)
    info = BundleInfo(
        architecture=Architecture(name=network, num_classes=5, size=size),
        classes=("daisy", "dandelion", "rose", "sunflower", "tulip"),
        preprocess=Preprocess(size=size, store_size=size),
    )
    model = create_model(network, 5, size=size)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, size, size))
    return export(save_bundle(folder / "float", model, info), "openvino", folder / "openvino").path


def first_photos(folder: Path, count: int) -> list[Path]:
    """Folders of the first photos."""
    return [folder / "photos" / f"{index:03d}" for index in range(-(-count // PER_FOLDER))]


def decoder(bundle: Path, folders: list[Path]) -> dict[str, float]:
    """The decoder alone."""
    from vivace.bundle import load_bundle
    from vivace.cachedir import default_cache_dir
    from vivace.hardware import num_cpus
    from vivace.kernels.resize import use_fast_resize

    load = load_bundle(bundle).preprocess.load
    use_fast_resize(default_cache_dir() / "kernels")
    load(next(folders[0].iterdir()))
    began = time.perf_counter()
    files = [str(path) for folder in folders for path in sorted(folder.iterdir())]
    groups = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]

    def decoded(group: list[str]) -> int:
        return sum(len(load(path)) > 0 for path in group)

    with ThreadPoolExecutor(num_cpus()) as pool:
        count = sum(pool.map(decoded, groups))
    return {"count": count, "seconds": time.perf_counter() - began}


def network(bundle: Path, folders: list[Path]) -> dict[str, float]:
    """The network alone."""
    from vivace.predictor import Predictor

    predictor = Predictor(bundle, batch_size=BATCH)
    size = predictor.bundle.preprocess.size
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    predictor.answers(pixels_NHWC)
    count = -(-sum(1 for folder in folders for _ in folder.iterdir()) // BATCH)
    began = time.perf_counter()
    for _ in range(count):
        predictor.answers(pixels_NHWC)
    return {"count": count * BATCH, "seconds": time.perf_counter() - began}


def vivace(bundle: Path, folders: list[Path], out: Path) -> dict[str, float]:
    """What the command line does, in this process."""
    from vivace.batch.outputs import Outputs
    from vivace.batch.run import predict_stream
    from vivace.predictor import Predictor

    predictor = Predictor(bundle, batch_size=BATCH)
    size = predictor.bundle.preprocess.size
    predictor.answers(np.zeros((BATCH, size, size, 3), np.uint8))
    result = predict_stream(predictor, folders, outputs=Outputs(out))
    return {"count": result.num_images, "seconds": result.seconds}


class Photos:
    """A map-style Dataset, as torch's documentation has it: uint8 [size, size, 3] by Pillow and torchvision."""

    def __init__(self, files: list[str], size: int) -> None:
        from torchvision.transforms import v2

        self.files = files
        self.transform = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image

        with Image.open(self.files[index]) as image:
            return np.asarray(self.transform(image.convert("RGB")))


def dataloader(bundle: Path, folders: list[Path], out: Path) -> dict[str, float]:
    """A loop that a competent user writes; the same graph, in the precision that OpenVINO chooses for throughput."""
    import openvino
    import torch
    from torch.utils.data import DataLoader

    cpus = len(os.sched_getaffinity(0))
    core = openvino.Core()
    model = core.read_model(bundle / "model.xml")
    size = model.input().get_partial_shape()[1].get_length()
    model.reshape([BATCH, size, size, 3])
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    compiled(np.zeros((BATCH, size, size, 3), np.uint8))
    began = time.perf_counter()
    files = [str(path) for folder in folders for path in sorted(folder.iterdir())]
    best = np.zeros(len(files), np.int64)
    sure = np.zeros(len(files), np.float32)

    def keep(request: Any, place: tuple[int, int]) -> None:
        probs_NK = request.get_output_tensor().data[: place[1]]
        best[place[0] : sum(place)], sure[place[0] : sum(place)] = probs_NK.argmax(1), probs_NK.max(1)

    queue = openvino.AsyncInferQueue(compiled)
    queue.set_callback(keep)
    loader = DataLoader(Photos(files, size), batch_size=BATCH, num_workers=cpus, collate_fn=np.stack)
    done = 0
    for images_NHWC in loader:
        count = len(images_NHWC)
        if count < BATCH:
            images_NHWC = np.concatenate([images_NHWC, np.zeros((BATCH - count, size, size, 3), np.uint8)])
        queue.start_async(images_NHWC, (done, count))
        done += count
    queue.wait_all()
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "probability"])
        writer.writerows(zip(files, best.tolist(), sure.tolist(), strict=True))
    del torch
    return {"count": len(files), "seconds": time.perf_counter() - began}


def one_side(side: str, bundle: Path, folders: list[Path]) -> dict[str, float]:
    """What the fresh process measures: images, seconds, and the peak of its own memory."""
    from vivace.systems import peak_memory_bytes

    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        out = Path(folder, "out.csv")
        if side in ("decoder", "network"):
            found = (decoder if side == "decoder" else network)(bundle, folders)
        else:
            found = (vivace if side == "vivace" else dataloader)(bundle, folders, out)
    return {**found, "peak_bytes": peak_memory_bytes()}


def measure(side: str, bundle: Path, work: Path, count: int) -> dict[str, float]:
    """`one_side` in a fresh process."""
    command = [sys.executable, __file__, str(bundle), "--side", side, "--work", str(work), "--photos", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{side} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_ultralytics(python: Path, runtime: str, work: Path, count: int, size: int) -> dict[str, float]:
    """Ultralytics on the same photos, in a fresh process of its own environment."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder, "out.csv")
        command = [python, PEER, runtime, work / "ultralytics", out, *first_photos(work, count)]
        command += ["--size", str(size), "--batch", str(BATCH)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"Ultralytics ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        rows = out.read_bytes().count(b"\n") - 1
    if rows != found["count"]:
        raise RuntimeError(f"Ultralytics wrote {rows} rows of {found['count']} images")
    return found


def killed(bundle: Path, folders: list[Path], work: Path, kills: int, seed: int) -> dict[str, Any]:
    """The command killed `kills` times in one run, at random moments, against a run that nothing stopped."""
    rng = random.Random(seed)
    command = [
        sys.executable,
        "-m",
        "vivace",
        "predict",
        str(bundle),
        *map(str, folders),
        "--quiet",
        "--resume",
        "--out",
    ]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        whole, out = Path(folder, "whole.csv"), Path(folder, "out.csv")
        began = time.perf_counter()
        subprocess.run([*command, str(whole)], check=True, capture_output=True)
        seconds = time.perf_counter() - began
        count = in_work = 0
        while count < kills:
            process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            journal = out.with_name(f"{out.name}.unfinished") / "journal.jsonl"
            before = journal.stat().st_size if journal.exists() else 0
            # it is killed when something was noted since, or after so long
            until = time.perf_counter() + rng.uniform(0.2, 6)
            wanted = rng.random() < 0.7
            while process.poll() is None and time.perf_counter() < until:
                if wanted and journal.exists() and journal.stat().st_size > before:
                    time.sleep(rng.uniform(0, 0.3))
                    break
                time.sleep(0.01)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            count += 1
            in_work += journal.exists() and journal.stat().st_size > before
            if out.exists():
                break
        if not out.exists():
            subprocess.run([*command, str(out)], check=True, capture_output=True)
        same = out.read_bytes() == whole.read_bytes()
        rows = out.read_bytes().count(b"\n") - 1
    return {"kills": count, "while_working": in_work, "identical": same, "rows": rows, "unbroken_seconds": seconds}


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    conditions = (
        f". {record['network']} at {record['size']} px, untrained, OpenVINO fp32, batches of {BATCH}; photos of "
        f"{PHOTO} px (shorter side; {record['different']:,} different ones under {record['photos']:,} names), in the "
        f"page cache. {record['rounds']} rounds in alternation on {record['each']:,} photos, each measurement a fresh "
        "process, imports and compiling not counted; medians; ratios are geometric means with Student's 95 % intervals."
    )
    lines = ["| side | images/s | vivace's rate as a multiple | peak memory |", "| --- | --- | --- | --- |"]
    for row in record["summary"]:
        ratio = "–" if row["side"] == "vivace" else with_interval(*row["vivace_against"])
        lines.append(
            f"| {row['side']} | {row['images_per_second']:,.0f} | {ratio} | {row['peak_bytes'] / 2**20:,.0f} MiB |"
        )
    if (all_ := record.get("all_photos")) is not None:
        lines.append(
            f"| vivace, {all_['count']:,.0f} photos at once | {all_['count'] / all_['seconds']:,.0f} | – | "
            f"{all_['peak_bytes'] / 2**20:,.0f} MiB |"
        )
    lines += ["", "The DataLoader's workers have memory of their own beside that."]
    if any(row["side"] in ULTRALYTICS for row in record["summary"]):
        lines += ["", "Ultralytics has its own network, yolo11n-cls, untrained, at the same side: its smallest."]
    if (kills := record.get("killed")) is not None:
        lines += [
            "",
            f"Killed {kills['kills']} times in one run of {kills['rows']:,} rows ({kills['while_working']} times after "
            "rows had been noted since the kill before): the file is "
            f"{'' if kills['identical'] else 'NOT '}that of an unbroken run, byte for byte.",
        ]
    return page(record, f"`vivace predict` on photos of {record['data']}", conditions, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with photos below it")
    parser.add_argument("--photos", type=int, default=60_000, help="for the run on all of them")
    parser.add_argument("--each", type=int, default=6_000, help="photos of each measurement")
    parser.add_argument("--size", type=int, default=64, help="side of the network's input, px")
    parser.add_argument("--network", default="timm/lcnet_050")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for photos and bundle, kept for the next time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--ultralytics", action="store_true", help="measure its predict too")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--prepare", action="store_true", help="make photos and bundle, and end")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(one_side(args.side, args.data, first_photos(args.work, args.photos))))
        return
    name = args.work / f"{args.network.replace('/', '-')}-{args.size}"
    bundle = name / "openvino"
    is_made = (bundle / "bundle.json").exists()
    if not is_made and not args.prepare:
        # a process is charged with the peak of the one that started it: what makes the bundle must be another
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--prepare"], check=True)
    different = make_photos(args.data, args.work, args.photos)
    if args.prepare and not is_made:
        make_bundle(name, args.size, args.network)
    python = ensure_environment("ultralytics", args.environments) if args.ultralytics else None
    if args.prepare:
        return
    sides = [*SIDES, *(ULTRALYTICS if python is not None else ())]
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for index in range(args.rounds):
        for side in sides if index % 2 == 0 else sides[::-1]:
            if python is not None and side in ULTRALYTICS:
                found = measure_ultralytics(python, ULTRALYTICS[side], args.work, args.each, args.size)
            else:
                found = measure(side, bundle, args.work, args.each)
            measured[side].append(found)
            rate = found["count"] / found["seconds"]
            print(f"round {index + 1}/{args.rounds}  {side:<21} {rate:8,.0f} images/s", flush=True)
    rates = {side: [found["count"] / found["seconds"] for found in runs] for side, runs in measured.items()}
    summary = [
        {
            "side": side,
            "images_per_second": statistics.median(rates[side]),
            "vivace_against": paired_ratio(rates["vivace"], rates[side]),
            "peak_bytes": max(found["peak_bytes"] for found in measured[side]),
        }
        for side in sides
        if rates[side]
    ]
    record: dict[str, Any] = {
        "date": today(),
        "data": args.data.name,
        "network": args.network,
        "size": args.size,
        "photos": args.photos,
        "different": different,
        "each": args.each,
        "rounds": args.rounds,
        "command": f"python benchmarks/predict.py {' '.join(sys.argv[1:])}",
        "summary": summary,
        "measured": measured,
    }
    if args.photos > args.each:
        record["all_photos"] = measure("vivace", bundle, args.work, args.photos)
    if args.kills:
        record["killed"] = killed(bundle, first_photos(args.work, args.photos), args.work, args.kills, args.seed)
    from vivace.hardware import describe

    record["environment"] = describe()
    save(record, "predict", args.data.name, markdown, args.out)


if __name__ == "__main__":
    main()
