"""Lightning with torchvision's resnet18, from scratch: as written from their two tutorials.

The network as torchvision has it (a 7×7 stem of stride 2, max-pooling), SGD with momentum 0.9 and weight decay 5e-4 in
batches of 128, one cycle up to a rate of 0.1 (OneCycleLR, its defaults). Photos: RandomResizedCrop and a flip,
evaluated on the centre crop of an image resized to 8/7 of the size, as in torchvision's reference scripts. Images of 32
px or less: crops after padding by 4, and a flip.

For a CPU: precision="bf16-mixed" (autocast), channels_last, a DataLoader with 2 persistent workers. Switched off: the
bar, the logger, the checkpoints and the sanity check, none of which trains; the weights are saved once, at the end.
Images that cannot be decoded would stop it; an image filed under two classes, as flowers has one, goes unnoticed.

    python with_lightning.py data/flowers --size 128 --epochs 16 --out runs/lightning --json
"""

from __future__ import annotations

from protocol import Clock, looks_folder, options, report

# isort: split
from typing import Any

import lightning
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Classifier(lightning.LightningModule):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = resnet18(num_classes=num_classes).to(memory_format=torch.channels_last)

    def logits(self, images_BCHW: Tensor) -> Tensor:
        return self.model(images_BCHW.to(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images_BCHW, labels_B = batch
        return F.cross_entropy(self.logits(images_BCHW), labels_B)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images_BCHW, labels_B = batch
        right = (self.logits(images_BCHW).argmax(1) == labels_B).float().mean()
        self.log("top1", right, on_epoch=True, batch_size=len(labels_B))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Looks(lightning.Callback):
    """Tells the clock when an evaluation begins and ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.clock.begin_look()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.clock.end_look(trainer.callback_metrics["top1"].item())
        trainer.should_stop = self.clock.reached


def steps_of(size: int) -> tuple[transforms.Compose, transforms.Compose]:
    """The steps from a file to a tensor: in training, and in evaluation."""
    if size <= 32:
        crop = [transforms.RandomCrop(size, padding=4)]
        centre = []
    else:
        crop = [transforms.RandomResizedCrop(size)]
        centre = [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
    end = [transforms.ToTensor(), NORMALIZE]
    return transforms.Compose([*crop, transforms.RandomHorizontalFlip(), *end]), transforms.Compose([*centre, *end])


def main() -> None:
    args = options("Lightning, torchvision's resnet18", size=128, batch_size=128)
    lightning.seed_everything(args.seed, workers=True)
    for_training, for_looks = steps_of(args.size)
    train_set = ImageFolder(args.data / "train", for_training)
    look_set = ImageFolder(looks_folder(args.data), for_looks)
    loading = {"batch_size": args.batch_size, "num_workers": 2, "persistent_workers": True}
    train_loader = DataLoader(train_set, shuffle=True, **loading)
    look_loader = DataLoader(look_set, **loading)

    clock = Clock(target=args.target)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed",
        max_epochs=args.epochs,
        callbacks=[Looks(clock)],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    clock.start()
    trainer.fit(Classifier(len(train_set.classes)), train_loader, look_loader)
    trainer.save_checkpoint(args.out / "model.ckpt", weights_only=True)
    report(clock, "lightning", "torch", "torchvision", json_line=args.json)


if __name__ == "__main__":
    main()
