"""fastai's vision_learner(resnet18, pretrained=False) from scratch, one cycle, with its usual augmentation.

Its defaults: torchvision's resnet18 body under fastai's own head (two linear layers, dropout 0.5), Adam with decoupled
weight decay 0.01, fit_one_cycle up to a rate of 1e-3, batches of 64, Resize (a crop, in training at random places) on
each file and aug_transforms() (flip, rotation, zoom, lighting, warp) on batches, normalised by ImageNet's statistics,
which vision_learner adds for pretrained networks only.

For a CPU: 2 workers, in which files are decoded and resized; batches are augmented in the main process. fastai's
to_bf16() is written for CUDA and does nothing on a CPU: a callback of three lines gives it the CPU's autocast, and an
epoch of flowers takes 28 s rather than 42, 23 s with channels_last. Switched off: the bar. Images that cannot be
decoded would stop it; an image filed under two classes, as flowers has one, goes unnoticed.

    python with_fastai.py data/flowers --size 128 --epochs 14 --out runs/fastai --json
"""

from __future__ import annotations

from protocol import Clock, looks_folder, options, report

# isort: split
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.schedule import Learner  # gives Learner its fit_one_cycle
from fastai.data.transforms import Normalize
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from torchvision.models import resnet18

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class AnyMixedPrecision(MixedPrecision):
    """fastai's mixed precision with the autocast of the device at hand in place of CUDA's."""

    def before_fit(self) -> None:
        super().before_fit()
        self.autocast = torch.autocast(DEVICE.type, dtype=torch.bfloat16)


class Looks(Callback):
    """Tells the clock when an evaluation begins and ends."""

    order = 60  # after fastai's Recorder, which writes the accuracy

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def before_validate(self) -> None:
        self.clock.begin_look()

    def after_validate(self) -> None:
        self.clock.end_look(self.recorder.log[-1])

    def after_epoch(self) -> None:
        if self.clock.reached:
            raise CancelFitException


def main() -> None:
    args = options("fastai's vision_learner, resnet18 from scratch", size=128, batch_size=64)
    set_seed(args.seed)
    loaders = ImageDataLoaders.from_folder(
        args.data,
        train="train",
        valid=looks_folder(args.data).name,
        item_tfms=Resize(args.size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
        bs=args.batch_size,
        num_workers=2,
        device=DEVICE,
    )
    clock = Clock(target=args.target)
    callbacks = [ChannelsLast(), AnyMixedPrecision(AMPMode.BF16), Looks(clock)]
    learner: Learner = vision_learner(
        loaders,
        resnet18,
        pretrained=False,
        metrics=accuracy,
        cbs=callbacks,
        path=args.out,
    )
    clock.start()
    with learner.no_bar():
        learner.fit_one_cycle(args.epochs)
    torch.save(learner.model.state_dict(), args.out / "model.pth")
    report(clock, "fastai", "torch", "torchvision", json_line=args.json)


if __name__ == "__main__":
    main()
