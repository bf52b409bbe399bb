"""Ultralytics' predict on folders of photos: its smallest classifier at the same side, by PyTorch or OpenVINO.

yolo11n-cls from its YAML, untrained; another network than vivace's, for it offers no other that is as small. OpenVINO:
its own export, in batches of the size asked for, fp32. Streamed (stream=True), else it holds every result. Its clock
begins after the first batch, when the graph is compiled. Threads are set back to all processors (see
with_ultralytics.py), and it never goes to the network.

    python predict_ultralytics.py openvino WORK OUT.csv --size 64 --batch 64 FOLDER …
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime", choices=("torch", "openvino"))
    parser.add_argument("work", type=Path, help="where the network is kept")
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    os.environ["YOLO_CONFIG_DIR"] = str(work)
    import torch
    from ultralytics import YOLO

    num_threads = torch.get_num_threads()
    files = [str(path.resolve()) for folder in args.folders for path in sorted(folder.iterdir())]
    listed = work / "photos.txt"
    listed.write_text("\n".join(files) + "\n")
    # its exports lie where it is run
    os.chdir(work)
    weights = work / f"yolo11n-cls-{args.size}.pt"
    if not weights.exists():
        YOLO("yolo11n-cls.yaml").save(str(weights))
    exported = work / f"{weights.stem}_openvino_model"
    if args.runtime == "openvino" and not exported.exists():
        YOLO(str(weights)).export(format="openvino", imgsz=args.size, batch=args.batch, dynamic=True)
    model = YOLO(str(weights if args.runtime == "torch" else exported), task="classify")
    options = {"imgsz": args.size, "batch": args.batch, "device": "cpu", "verbose": False, "save": False}
    model.predict(files[: args.batch], **options)
    torch.set_num_threads(num_threads)
    began, count = time.perf_counter(), 0
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "probability"])
        for result in model.predict(str(listed), stream=True, **options):
            writer.writerow([result.path, result.probs.top1, float(result.probs.top1conf)])
            count += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"count": count, "seconds": time.perf_counter() - began, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
