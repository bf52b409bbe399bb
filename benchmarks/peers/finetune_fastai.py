"""fastai's vision_learner(…, "tf_efficientnet_lite0") and fine_tune, with their defaults.

Those are: timm's network under fastai's own head (pooling by average and maximum, two linear layers, dropout 0.5), one
epoch of the head and of the body's norms at a rate of 2e-3, then the given number of epochs of all layers, one cycle up
to 1e-3 at the head and 1e-5 at the first layers, Adam with decoupled weight decay 0.01, batches of 32, Resize (a crop,
in training at random places) on each file and aug_transforms() (flip, rotation, zoom, lighting, warp) on batches,
normalised by the statistics of timm's data config.

For a CPU: channels_last, 2 workers, in which files are decoded and resized, fp32: the gradients of depthwise
convolutions make a step in bf16 slower there; on a GPU bf16. Switched off: the bar. Weights are saved after every
epoch; the first point of the curve is the epoch of the head.

    python finetune_fastai.py data/flowers --size 224 --epochs 4 --out runs/fastai --json
"""

from __future__ import annotations

from protocol import Clock, looks_folder, options, report

# isort: split
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import AMPMode
from fastai.callback.schedule import Learner  # gives Learner its fine_tune
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from weights import NETWORK, renamed
from with_fastai import DEVICE, AnyMixedPrecision, Looks


class SavedLooks(Looks):
    """Saves the weights before each evaluation."""

    def before_validate(self) -> None:
        torch.save(self.learn.model.state_dict(), self.path / "model.pth")
        super().before_validate()


def main() -> None:
    args = options("fastai's vision_learner and fine_tune", size=224, batch_size=32)
    clock = Clock(target=args.target)
    set_seed(args.seed)
    loaders = ImageDataLoaders.from_folder(
        args.data,
        train="train",
        valid=looks_folder(args.data).name,
        item_tfms=Resize(args.size),
        batch_tfms=aug_transforms(),
        bs=args.batch_size,
        num_workers=2,
        device=DEVICE,
    )
    callbacks = [ChannelsLast(), SavedLooks(clock)]
    if DEVICE.type == "cuda":
        callbacks.append(AnyMixedPrecision(AMPMode.BF16))
    learner: Learner = vision_learner(
        loaders,
        NETWORK,
        pretrained_cfg_overlay={"file": str(renamed(args.out))},
        metrics=accuracy,
        cbs=callbacks,
        path=args.out,
    )
    clock.start()
    with learner.no_bar():
        learner.fine_tune(args.epochs)
    report(clock, "fastai", "timm", "torch", "torchvision", json_line=args.json)


if __name__ == "__main__":
    main()
