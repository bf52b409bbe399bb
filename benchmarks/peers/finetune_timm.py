"""Fine-tuning with timm: the loop that its users write, on its loader, optimizer, schedule and transforms.

timm's wheel has no train script, so this is what its documentation shows: random-resized crops of 35 to 100 %, flips,
colour jitter 0.4, random interpolation, dropout 0.2, label smoothing 0.1, AdamW at 5e-4, weight decay 0.05, a cosine
with a warm-up over a tenth of the steps, no average of weights; evaluated with the crop and the interpolation of the
network's data config.

For a CPU: channels_last, 2 workers, fp32: the gradients of depthwise convolutions make a step in bf16 slower there; the
evaluations are in bf16. Its loader drops the last, smaller batch of an epoch, as always. Weights are saved after every
epoch.

    python finetune_timm.py data/flowers --size 224 --epochs 4 --out runs/timm --json
"""

from __future__ import annotations

from protocol import Clock, looks_folder, options, report

# isort: split
import torch
from timm import create_model
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from weights import NETWORK, renamed
from with_timm import DEVICE, accuracy

LR = 5e-4


def main() -> None:
    args = options("timm, fine-tuning", size=224, batch_size=32)
    clock = Clock(target=args.target)
    random_seed(args.seed)
    train_set = create_dataset("", root=args.data / "train", is_training=True)
    look_set = create_dataset("", root=looks_folder(args.data))
    model = create_model(
        NETWORK,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(renamed(args.out))},
        num_classes=len(train_set.reader.class_to_idx),
        drop_rate=0.2,
    )
    model.to(DEVICE, memory_format=torch.channels_last)
    config = resolve_data_config({"input_size": (3, args.size, args.size)}, model=model)
    common = {"input_size": config["input_size"], "mean": config["mean"], "std": config["std"]}
    common |= {"num_workers": 2, "device": DEVICE, "batch_size": args.batch_size}
    train_loader = create_loader(
        train_set,
        is_training=True,
        scale=(0.35, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=0.4,
        interpolation="random",
        **common,
    )
    look_loader = create_loader(look_set, interpolation=config["interpolation"], crop_pct=config["crop_pct"], **common)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=0.05)
    num_steps = len(train_loader)
    schedule, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=args.epochs,
        warmup_epochs=args.epochs / 10,
        warmup_lr=LR / 100,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=num_steps,
    )
    criterion = LabelSmoothingCrossEntropy(0.1)

    clock.start()
    for epoch in range(args.epochs):
        model.train()
        for step, (images_BCHW, labels_B) in enumerate(train_loader):
            # where there is a GPU, its loader has put them there already
            images_BCHW, labels_B = images_BCHW.to(DEVICE), labels_B.to(DEVICE)
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
                logits_BK = model(images_BCHW.contiguous(memory_format=torch.channels_last))
                loss = criterion(logits_BK, labels_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step_update(epoch * num_steps + step + 1)
        torch.save(model.state_dict(), args.out / "model.pth")
        clock.begin_look()
        clock.end_look(accuracy(model, look_loader))
        if clock.reached:
            break
    report(clock, "timm", "torch", "torchvision", json_line=args.json)


if __name__ == "__main__":
    main()
