"""timm's network as it is, frozen, and scikit-learn's logistic regression on its features: the shortest way there is.

One view of each image, with the crop and the interpolation of the network's data config; the regression with its
defaults (C = 1) and as many iterations as it needs. One point in time: there are no epochs.

For a CPU: bf16 autocast, channels_last, 2 workers.

    python finetune_probe.py data/flowers --size 224 --out runs/probe --json
"""

from __future__ import annotations

from protocol import Clock, looks_folder, options, report

# isort: split
import joblib
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from timm import create_model
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader
from weights import NETWORK, renamed
from with_timm import DEVICE, autocast


@torch.inference_mode()
def features(model: nn.Module, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """features_ND float32 and labels_N."""
    found, labels = [], []
    for images_BCHW, labels_B in loader:
        with autocast():
            features_BD = model(images_BCHW.to(DEVICE).contiguous(memory_format=torch.channels_last))
        found.append(features_BD.float().cpu().numpy())
        labels.append(labels_B.cpu().numpy())
    return np.concatenate(found), np.concatenate(labels)


def main() -> None:
    args = options("timm's frozen network and scikit-learn's logistic regression", size=224, batch_size=64)
    clock = Clock()
    overlay = {"file": str(renamed(args.out))}
    model = create_model(NETWORK, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0).eval()
    model.to(DEVICE, memory_format=torch.channels_last)
    config = resolve_data_config({"input_size": (3, args.size, args.size)}, model=model)
    common = {name: config[name] for name in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    common |= {"num_workers": 2, "device": DEVICE, "batch_size": args.batch_size}
    train_loader = create_loader(create_dataset("", root=args.data / "train"), **common)
    look_loader = create_loader(create_dataset("", root=looks_folder(args.data)), **common)

    clock.start()
    head = LogisticRegression(max_iter=5000, random_state=args.seed)
    head.fit(*features(model, train_loader))
    torch.save(model.state_dict(), args.out / "model.pth")
    joblib.dump(head, args.out / "head.joblib")
    clock.begin_look()
    clock.end_look(float(head.score(*features(model, look_loader))))
    report(clock, "scikit-learn", "timm", "torch", "torchvision", json_line=args.json)


if __name__ == "__main__":
    main()
