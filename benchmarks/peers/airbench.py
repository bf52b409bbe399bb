"""The airbench94-Muon recipe for CIFAR-10: our implementation, after arXiv:2404.00498 and the record that followed it.

Made to run on any device: a whitening layer of 2×2 patches, three groups of two convolutions (64-256-256), batch norms
without scale, identity initialization, Muon for the convolutions and Nesterov SGD for the rest, label smoothing 0.2,
alternating flip, shifts of 2 px, batches of 2,000, eight epochs; test-time augmentation by mirrors and shifts of 1 px.

    python benchmarks/peers/airbench.py data/cifar10 --out runs/airbench --json

What differs from the published script, and why: images come from JPEG files and are decoded once; half precision is
bf16 (--half weights: everything in bf16; --half autocast: fp32 weights; --half none); the whitening layer, whose 2×2
kernel some CPUs compute wrongly in bf16, is always fp32. With --json the last line on stdout is one JSON object:
`top1` and `top1_tta` (test accuracy without and with test-time augmentation, null with --no-tta), `curve` (with
--curve, after every epoch), `train_seconds`, `tta_seconds`, `total_seconds` (process start to saved weights).
"""

from __future__ import annotations

import time

start_time = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from contextlib import AbstractContextManager, nullcontext  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

MEAN = torch.tensor((0.4914, 0.4822, 0.4465)).view(1, 3, 1, 1)
STD = torch.tensor((0.2470, 0.2435, 0.2616)).view(1, 3, 1, 1)
EPOCHS, BATCH = 8, 2000
WHITEN_EPOCHS = 3
BIAS_LR, HEAD_LR, MUON_LR, MOMENTUM = 0.053, 0.67, 0.24, 0.6
WEIGHT_DECAY = 2e-6 * BATCH


def load_split(folder: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """(images float [N, 3, 32, 32], normalized; labels int64 [N]) of class folders."""
    classes = sorted(path.name for path in folder.iterdir())
    files = [(path, index) for index, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(lambda item: np.asarray(Image.open(item[0]).convert("RGB")), files)))
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)
    labels = torch.tensor([index for _, index in files], device=device)
    return (images - MEAN.to(device)) / STD.to(device), labels


class Group(nn.Module):
    """Convolution, pooling, norm, GELU; convolution, norm, GELU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels_in, channels_out), conv(channels_out, channels_out)
        self.norm1, self.norm2 = norm(channels_out), norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    # the first filters pass their input through
    nn.init.dirac_(layer.weight.data[:channels_in])
    return layer


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, momentum=0.4, eps=1e-12)
    layer.weight.requires_grad_(False)
    return layer


class Network(nn.Module):
    """Whitening at 2×2, three groups, a head of unit weights whose outputs are divided by its width."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)
        self.groups = nn.Sequential(Group(24, 64), Group(64, 256), Group(256, 256))
        self.head = nn.Linear(256, 10, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()

    @torch.no_grad()
    def init_whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors.T / torch.sqrt(values + eps).view(-1, 1)).reshape(12, 3, 2, 2).float()
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def features(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(x))
        x = F.max_pool2d(x, 3).flatten(1)
        return self.head(x) / x.shape[1]

    def forward(self, x: Tensor, whiten_grad: bool = True) -> Tensor:
        bias = self.whiten.bias if whiten_grad else self.whiten.bias.detach()
        # always fp32: a 2×2 kernel in bf16 is wrong on some CPUs
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv2d(x.float(), self.whiten.weight.float(), bias.float())
        return self.features(x.to(self.head.weight.dtype))


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by three Newton–Schulz steps; filters scaled to a fixed norm before each update."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p.grad))
                buffer.mul_(group["momentum"]).add_(p.grad)
                direction = p.grad.add(buffer, alpha=group["momentum"])
                p.mul_(len(p) ** 0.5 / p.norm())
                p.add_(newton_schulz(direction.reshape(len(p), -1)).view_as(p), alpha=-group["lr"])


def newton_schulz(matrix: Tensor, steps: int = 3, eps: float = 1e-7) -> Tensor:
    x = matrix.bfloat16()
    x = x / (x.norm() + eps)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `reach` px both ways, reflection-padded."""
    padded = F.pad(images, (reach,) * 4, "reflect")
    count, _, height, width = images.shape
    shifts = torch.randint(0, 2 * reach + 1, (count, 2), generator=generator, device=images.device)
    out = torch.empty_like(images)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            chosen = (shifts[:, 0] == dy) & (shifts[:, 1] == dx)
            out[chosen] = padded[chosen, :, dy : dy + height, dx : dx + width]
    return out


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, context: AbstractContextManager, *, tta: bool) -> float:
    """Accuracy; tta: mean over flips, half of it from the image and half from two shifts of 1 px."""
    model.eval()

    def mirrored(x: Tensor) -> Tensor:
        return 0.5 * model(x).float() + 0.5 * model(x.flip(3)).float()

    def logits(x: Tensor) -> Tensor:
        if not tta:
            return model(x).float()
        height, width = x.shape[2:]
        padded = F.pad(x, (1,) * 4, "reflect")
        corners = [padded[:, :, i : i + height, i : i + width] for i in (0, 2)]
        return 0.5 * mirrored(x) + 0.25 * mirrored(corners[0]) + 0.25 * mirrored(corners[1])

    with context:
        correct = sum(
            int((logits(x).argmax(1) == y).sum()) for x, y in zip(images.split(2000), labels.split(2000), strict=True)
        )
    return correct / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="airbench94-Muon on a folder of CIFAR-10 images")
    parser.add_argument("data", type=Path, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--half", choices=("weights", "autocast", "none"), default="weights")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/airbench"))
    parser.add_argument("--curve", action="store_true", help="look at the test images after every epoch")
    parser.add_argument("--no-tta", action="store_true", help="end without test-time augmentation")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = load_split(args.data / "train", device)
    test_images, test_labels = load_split(args.data / "test", device)
    generator = torch.Generator(device).manual_seed(args.seed)
    half_weights = args.half == "weights"

    def context() -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16) if args.half == "autocast" else nullcontext()

    model = Network().to(device)
    model.init_whiten(images[:5000])
    if half_weights:
        model = model.bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if args.compile else model

    filters = [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
    biases = [p for name, p in model.named_parameters() if "norm" in name and p.requires_grad]
    sgd = torch.optim.SGD(
        [
            {"params": [model.whiten.bias], "lr": BIAS_LR, "weight_decay": WEIGHT_DECAY / BIAS_LR},
            {"params": biases, "lr": BIAS_LR, "weight_decay": WEIGHT_DECAY / BIAS_LR},
            {"params": [model.head.weight], "lr": HEAD_LR, "weight_decay": WEIGHT_DECAY / HEAD_LR},
        ],
        momentum=0.85,
        nesterov=True,
    )
    muon = Muon(filters, MUON_LR, MOMENTUM)
    rates = [(group, group["lr"]) for optimizer in (sgd, muon) for group in optimizer.param_groups]
    steps_per_epoch = len(images) // BATCH
    total, whiten_steps = args.epochs * steps_per_epoch, min(args.epochs, WHITEN_EPOCHS) * steps_per_epoch
    mirrored_first = torch.rand(len(images), generator=generator, device=device) < 0.5

    step, curve, train_seconds = 0, [], 0.0
    for epoch in range(args.epochs):
        epoch_start = time.perf_counter()
        model.train()
        order = torch.randperm(len(images), generator=generator, device=device)
        for chunk in order[: steps_per_epoch * BATCH].split(BATCH):
            x = shifted(images[chunk], 2, generator)
            # every image is mirrored from one epoch to the next
            flip = mirrored_first[chunk] ^ bool(epoch % 2)
            x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
            if args.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            with context():
                logits = forward(x, whiten_grad=step < whiten_steps)
                loss = F.cross_entropy(logits, labels[chunk], label_smoothing=0.2, reduction="sum")
            for group, lr in rates:
                group["lr"] = lr * (1 - step / total)
            sgd.param_groups[0]["lr"] = BIAS_LR * max(0.0, 1 - step / whiten_steps)
            loss.backward()
            sgd.step()
            muon.step()
            model.zero_grad(set_to_none=True)
            step += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        # the evaluations between epochs are ours: they do not count as training
        train_seconds += time.perf_counter() - epoch_start
        if args.curve or epoch + 1 == args.epochs:
            curve.append((train_seconds, evaluate(model, test_images, test_labels, context(), tta=False)))
            print(f"epoch {epoch + 1}  test accuracy {curve[-1][1]:.4f}  {train_seconds:.1f} s", flush=True)
    tta_start = time.perf_counter()
    with_tta = None if args.no_tta else evaluate(model, test_images, test_labels, context(), tta=True)
    tta_seconds = time.perf_counter() - tta_start
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), args.out / "model.pth")
    if args.json:
        total_seconds = time.perf_counter() - start_time
        results = {"top1": curve[-1][1], "top1_tta": with_tta, "curve": curve, "train_seconds": train_seconds}
        print(json.dumps({**results, "tta_seconds": tta_seconds, "total_seconds": total_seconds}))


if __name__ == "__main__":
    main()
