"""timm's resnet18 from scratch, with the defaults of timm's train script, on timm's loader, optimizer and schedule.

The defaults of that script (train.py of huggingface/pytorch-image-models): SGD with Nesterov momentum 0.9, a rate of
0.1 for 256 images scaled with the batch, weight decay 2e-5 except for biases and norms, a cosine that steps once an
epoch after 5 epochs of warm-up from 1e-5, batches of 128, crops of 8 to 100 % at 3/4 to 4/3, flips, colour jitter 0.4,
random interpolation, label smoothing 0.1; evaluated with the crop and the interpolation of the network's data config.

For a CPU: bf16 autocast and channels_last (--amp --amp-dtype bfloat16 --channels-last there), 2 workers rather than 4.
Its loader drops the last, smaller batch of an epoch, as always. In place of an image that cannot be decoded it takes
the next one, up to 10 times; an image filed under two classes, as flowers has one, goes unnoticed.

    python with_timm.py data/flowers --size 128 --epochs 16 --out runs/timm --json
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
from torch import nn
from torch.utils.data import DataLoader

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Fraction of the images that are classified correctly."""
    model.eval()
    right, seen = 0, 0
    for images_BCHW, labels_B in loader:
        images_BCHW, labels_B = images_BCHW.to(DEVICE), labels_B.to(DEVICE)
        with autocast():
            logits_BK = model(images_BCHW.contiguous(memory_format=torch.channels_last))
        right += int((logits_BK.argmax(1) == labels_B).sum())
        seen += len(labels_B)
    return right / seen


def main() -> None:
    args = options("timm's resnet18 with the defaults of its train script", size=128, batch_size=128)
    random_seed(args.seed)
    train_set = create_dataset("", root=args.data / "train", is_training=True)
    look_set = create_dataset("", root=looks_folder(args.data))
    model = create_model("resnet18", num_classes=len(train_set.reader.class_to_idx))
    model.to(DEVICE, memory_format=torch.channels_last)
    config = resolve_data_config({"input_size": (3, args.size, args.size)}, model=model)
    common = {"input_size": config["input_size"], "mean": config["mean"], "std": config["std"]}
    common |= {"num_workers": 2, "device": DEVICE}
    train_loader = create_loader(
        train_set,
        batch_size=args.batch_size,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=0.4,
        interpolation="random",
        **common,
    )
    look_loader = create_loader(
        look_set,
        batch_size=args.batch_size,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        **common,
    )
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1 * args.batch_size / 256, weight_decay=2e-5, momentum=0.9)
    schedule, num_epochs = create_scheduler_v2(
        optimizer, "cosine", num_epochs=args.epochs, warmup_epochs=5, warmup_lr=1e-5, min_lr=0.0
    )
    criterion = LabelSmoothingCrossEntropy(0.1)

    clock = Clock(target=args.target)
    clock.start()
    for epoch in range(num_epochs):
        model.train()
        for images_BCHW, labels_B in train_loader:
            # where there is a GPU, its loader has put them there already
            images_BCHW, labels_B = images_BCHW.to(DEVICE), labels_B.to(DEVICE)
            with autocast():
                logits_BK = model(images_BCHW.contiguous(memory_format=torch.channels_last))
                loss = criterion(logits_BK, labels_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step(epoch + 1)
        clock.begin_look()
        clock.end_look(accuracy(model, look_loader))
        if clock.reached:
            break
    torch.save(model.state_dict(), args.out / "model.pth")
    report(clock, "timm", "torch", "torchvision", json_line=args.json)


if __name__ == "__main__":
    main()
