"""The article's program: a six-block CNN on CIFAR-10 in plain PyTorch, as written from a tutorial.

ImageFolder over DATA/train and DATA/test, ToTensor and Normalize(0.5), a shuffled DataLoader of 64 images without
workers, cross-entropy, SGD at 0.01 without momentum, TensorBoard, a test after every epoch, the state dict saved at
the end. Nothing is tuned: this is what `vivace train` is compared with. Ten epochs end near 64 %, at best 65 to 66 %.

    python benchmarks/peers/article.py data/cifar10 --epochs 10 --out runs/article --json

With --json the last line of stdout is one JSON object: `test_top1` (a fraction for every epoch), `train_seconds`
(the epochs, the tests between them included) and `total_seconds` (process start to saved weights, imports included).
"""

from __future__ import annotations

import time

start_time = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from torch import nn, optim  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402


class CNN(nn.Module):
    """Six 3×3 convolution blocks, 6-16-32-64-128-K channels; five poolings take 32 px to 1 × 1."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.block1 = self.block(3, 6)
        self.block2 = self.block(6, 16)
        self.block3 = self.block(16, 32)
        self.block4 = self.block(32, 64)
        self.block5 = self.block(64, 128)
        # no ReLU here: it would cut off every negative logit
        self.block6 = nn.Sequential(
            nn.Conv2d(128, num_classes, kernel_size=3, padding=1),
            nn.BatchNorm2d(num_classes),
        )

    @staticmethod
    def block(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block1(x)
        x = self.block2(x)
        x = self.block3(x)
        x = self.block4(x)
        x = self.block5(x)
        x = self.block6(x)
        return torch.flatten(x, 1)


def train_epoch(
    model: nn.Module,
    loader: DataLoader,
    criterion: nn.Module,
    optimizer: optim.Optimizer,
    writer: SummaryWriter,
    epoch: int,
    device: torch.device,
) -> None:
    model.train()
    for index, (images, labels) in enumerate(loader):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        if index % 100 == 99:
            writer.add_scalar("train/loss", loss.item(), epoch * len(loader) + index)


@torch.no_grad()
def test(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Fraction of the images that are classified correctly."""
    model.eval()
    correct, total = 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        correct += (model(images).argmax(1) == labels).sum().item()
        total += len(labels)
    return correct / total


def main() -> None:
    parser = argparse.ArgumentParser(description="The article's CIFAR-10 program in plain PyTorch")
    parser.add_argument("data", type=Path, help="folder with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--momentum", type=float, default=0.0, help="0: as published")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/article"))
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    train_set = ImageFolder(args.data / "train", transform=transform)
    test_set = ImageFolder(args.data / "test", transform=transform)
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=64)

    model = CNN(len(train_set.classes)).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=args.momentum)
    args.out.mkdir(parents=True, exist_ok=True)
    writer = SummaryWriter(str(args.out))

    train_start = time.perf_counter()
    test_top1 = []
    for epoch in range(args.epochs):
        train_epoch(model, train_loader, criterion, optimizer, writer, epoch, device)
        test_top1.append(test(model, test_loader, device))
        writer.add_scalar("test/accuracy", test_top1[-1], epoch)
        seconds = time.perf_counter() - train_start
        print(f"epoch {epoch + 1}/{args.epochs}  test accuracy {test_top1[-1]:.4f}  {seconds:.1f} s", flush=True)
    train_seconds = time.perf_counter() - train_start
    writer.close()
    torch.save(model.state_dict(), args.out / "model.pth")

    if args.json:
        total_seconds = time.perf_counter() - start_time
        results = {"test_top1": test_top1, "train_seconds": train_seconds, "total_seconds": total_seconds}
        print(json.dumps(results))


if __name__ == "__main__":
    main()
