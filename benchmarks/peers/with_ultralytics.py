"""Ultralytics classify: yolo11n-cls from its YAML, without pretrained weights, with its defaults.

Those are: the optimizer and its rate chosen from the number of steps (optimizer="auto"), linear decay after 3 epochs of
warm-up, crops of 50 to 100 %, flips, RandAugment, random erasing 0.4, evaluated with the moving average of the weights.
Set here: batches of 64 and 2 workers (its defaults of 16 and 8 are made for a GPU), no plots.

For a CPU: fp32 (amp=False): it refuses bf16 on a CPU, and its check of mixed precision would download weights. It sets
torch's threads to one fewer than the cores; here they are set back to all of them: on 2 cores an epoch of flowers takes
10 s rather than 17. It never goes to the network (YOLO_OFFLINE), and its settings go to the output folder. It writes
caches beside the images, and writes a JPEG without an end marker anew in place: so it is given links, made before its
clock starts. Images that cannot be opened are left out by its own scan; an image filed under two classes, as flowers
has one, goes unnoticed.

An evaluation ends when its checkpoint is saved. The loop excludes the second evaluation, of the best weights at the
very end, which `total_seconds` includes; the accuracy is that of the last epoch, not of the best one.

    python with_ultralytics.py data/flowers --size 128 --epochs 30 --out runs/ultralytics --json
"""

from __future__ import annotations

from protocol import Clock, looks_folder, options, report

# isort: split
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultralytics import YOLO


def link(data: Path, folder: Path) -> Path:
    """`folder` with train/ and val/, whose files are links to those of `data`."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, source in (("train", data / "train"), ("val", looks_folder(data))):
        for path in source.glob("*/*"):
            place = folder / split / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).symlink_to(path)
    return folder


def watch(model: YOLO, clock: Clock) -> None:
    """Tell the clock when the loop and its evaluations begin and end."""

    def end_look(trainer: Any) -> None:
        # called once more after the last epoch, for the evaluation of the best weights
        if not clock.looking:
            return
        clock.end_look(trainer.metrics["metrics/accuracy_top1"])
        trainer.stop |= clock.reached

    model.add_callback("on_train_start", lambda trainer: clock.start())
    model.add_callback("on_train_epoch_end", lambda trainer: clock.begin_look())
    model.add_callback("on_fit_epoch_end", end_look)


def main() -> None:
    args = options("Ultralytics classify, yolo11n-cls from scratch", size=128, batch_size=64)
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_VERBOSE"] = "false"
    os.environ["YOLO_CONFIG_DIR"] = str(args.out)
    # Ultralytics reads all of these while it is imported; torch first, because it also sets OMP_NUM_THREADS to 1
    import torch
    from ultralytics import YOLO

    num_threads = torch.get_num_threads()
    clock = Clock(target=args.target)
    model = YOLO("yolo11n-cls.yaml")
    model.add_callback("on_train_start", lambda trainer: torch.set_num_threads(num_threads))
    watch(model, clock)
    model.train(
        data=str(link(args.data, args.out / "data")),
        epochs=args.epochs,
        imgsz=args.size,
        batch=args.batch_size,
        workers=2,
        device=0 if torch.cuda.is_available() else "cpu",
        amp=False,
        seed=args.seed,
        project=str(args.out),
        name="run",
        exist_ok=True,
        pretrained=False,
        plots=False,
    )
    report(clock, "ultralytics", "torch", "torchvision", json_line=args.json)


if __name__ == "__main__":
    main()
