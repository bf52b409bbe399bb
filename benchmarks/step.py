"""Where a training step goes: the rate of the whole step against that of its convolutions alone, and time by kind.

    python benchmarks/step.py --size 32 --num-classes 10 --images 50000 --rounds 15

Takes the recipe that `vivace train` would use for such data on this machine, with the execution options that its trial
chooses. The rate of the hardware for the network's own shapes is measured by running each convolution of the network by
itself, in the step's precision: forward, gradient of the input where there is one, gradient of the weights; once with
torch's kernels alone and once with those of the step. Whole steps and these sums are interleaved. Writes
benchmarks/results/step/DATE-NETWORK-HARDWARE.json and a table in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from records import RESULTS, page, save, today, with_interval
from vivace.cachedir import default_cache_dir
from vivace.data.augmentation.augment import Augment
from vivace.data.loader import Batch
from vivace.hardware import autocast, describe, keep_freed_memory, num_cpus
from vivace.kernels.winograd import has_winograd
from vivace.measure import synchronize, time_call
from vivace.models.convnets import FastCNN
from vivace.models.normalize import Normalize
from vivace.models.zoo import create_model, forward_flops, head_parameters
from vivace.optim.optimizers import create_optimizer
from vivace.statistics.intervals import paired_ratio
from vivace.training.execution import ExecutionConfig, own_kernels
from vivace.training.loop.state import TrainState
from vivace.training.loop.step import Stepper
from vivace.training.recipes.named import DataFacts, resolve_recipe
from vivace.training.recipes.recipe import Recipe

KINDS = (
    ("convolution", "convolutions"),
    ("max_pool", "pooling"),
    ("batch_norm", "batch norm"),
    ("silu", "activation"),
    ("relu", "activation"),
    ("threshold", "activation"),
    ("gelu", "activation"),
)


class Clock(TorchDispatchMode):
    """Sums the seconds of every operator by name; synchronizing with a GPU after each."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        synchronize(self.device)
        self.seconds[str(func)] += time.perf_counter() - began
        return result


def make_stepper(
    recipe: Recipe, execution: ExecutionConfig, *, size: int, num_classes: int, device: torch.device
) -> tuple[Stepper, Batch, nn.Module]:
    """A stepper on random images, as a run of the recipe would have it."""
    torch.manual_seed(0)
    model = create_model(recipe.model.name, num_classes, in_channels=3, size=size, **recipe.model.arguments).to(device)
    images = torch.randint(0, 256, (recipe.batch_size, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2).to(device)
    normalize = Normalize((0.5,) * 3, (0.25,) * 3).to(device)
    if isinstance(model, FastCNN):
        model.init_from_images(normalize(images))
    if execution.channels_last:
        model.to(memory_format=torch.channels_last)
    state = TrainState(
        model=model,
        optimizer=create_optimizer(model, recipe.optimizer, head=head_parameters(model)),
        generator=torch.Generator(device).manual_seed(0),
    )
    state.counters.progress = 1.0
    smoothing = recipe.loss.label_smoothing
    stepper = Stepper(
        state,
        execution,
        loss=lambda logits, labels: nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing),
        normalize=normalize,
        augment=Augment(recipe.augment, size=size, num_classes=num_classes),
        device=device,
        kernels=default_cache_dir() / "kernels",
    )
    labels = torch.randint(0, num_classes, (recipe.batch_size,), device=device)
    return stepper, Batch(images, labels, torch.arange(recipe.batch_size, device=device)), model


def convolutions_alone(model: nn.Module, images: Tensor, execution: ExecutionConfig) -> Callable[[], None]:
    """A function that runs each convolution of the network by itself: its work in a step, on tensors of such shapes."""
    calls: list[tuple[nn.Conv2d, Tensor, Tensor, bool]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        x = inputs[0].detach()
        if execution.precision != "fp32":
            x = x.to(torch.bfloat16)
        # the first one needs no gradient of its input
        calls.append((module, x.requires_grad_(bool(calls)), torch.randn_like(output), bool(calls)))

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with autocast(images.device, execution.precision):
        model(images)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for module, x, gradient, _ in calls:
            x.grad = None
            with autocast(images.device, execution.precision), own_kernels(execution, default_cache_dir() / "kernels"):
                out = module(x)
            wanted = [tensor for tensor in (x, module.weight) if tensor.requires_grad]
            if wanted:
                torch.autograd.grad(out, wanted, gradient)

    return run


def kinds(clock: Mapping[str, float], steps: int) -> dict[str, float]:
    """Milliseconds of a step by kind of operator."""
    found: dict[str, float] = defaultdict(float)
    for name, seconds in clock.items():
        kind = next((kind for word, kind in KINDS if word in name), "everything else")
        found[kind] += 1e3 * seconds / steps
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    rows = [
        ("operations of an image, forward and backward", f"{record['mflop_per_image']:,.0f} MFLOP"),
        ("whole step", f"{record['step_ms']:.0f} ms, {record['images_per_second']:,.0f} images/s"),
        ("rate of the whole step", f"{record['step_gflops']:,.0f} GFLOP/s"),
        ("rate of torch's convolutions alone", f"{record['torch_gflops']:,.0f} GFLOP/s"),
        ("share of that rate which the step reaches", with_interval(*record["torch_share"], form=".0%")),
        ("rate of the step's own convolutions alone", f"{record['conv_gflops']:,.0f} GFLOP/s"),
        ("share of that rate which the step reaches", with_interval(*record["share"], form=".0%")),
        *((f"time in {kind}", f"{ms:.1f} ms") for kind, ms in record["kinds_ms"].items()),
    ]
    conditions = (
        f"; {record['setup']}; batch {record['batch_size']}, {record['size']} px; {record['rounds']} rounds in "
        "alternation, medians; shares with Student's 95 % interval over the rounds of one process."
    )
    table = ["| what | measured |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return page(record, f"A training step of {record['model']}", conditions, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=50_000, help="training images that the recipe is for")
    parser.add_argument("--seconds", type=float, help="time that the recipe is for, as --within gives it")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-tiles", action="store_true", help="without tiled gradients (on a GPU: always)")
    parser.add_argument("--no-winograd", action="store_true", help="without Winograd convolutions")
    parser.add_argument("--no-fused", action="store_true", help="without fused norms (on a GPU: always)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    keep_freed_memory()
    device = torch.device(args.device)
    facts = DataFacts(
        num_images=args.images, num_classes=args.num_classes, channels=3, side=args.size, seconds=args.seconds
    )
    recipe = resolve_recipe(args.recipe, facts)
    execution = ExecutionConfig(
        precision=args.precision,
        threads=num_cpus(),
        tile_gradients=not args.no_tiles and args.device == "cpu",
        winograd=not args.no_winograd and args.device == "cpu" and args.precision == "bf16" and has_winograd(),
        fuse_norms=not args.no_fused and args.device == "cpu",
    )
    torch.set_num_threads(execution.threads)
    stepper, batch, model = make_stepper(recipe, execution, size=args.size, num_classes=args.num_classes, device=device)
    images = stepper._normalize(batch.images_BCHW)
    convs = convolutions_alone(model, images, execution)
    torchs = convolutions_alone(model, images, dataclasses.replace(execution, tile_gradients=False, winograd=False))
    step = lambda: stepper.step(batch, 0)  # noqa: E731
    for function in (step, convs, torchs, step, convs, torchs):
        function()
    step_ms, conv_ms, torch_ms = [], [], []
    for index in range(args.rounds):
        sides = ((step, step_ms), (convs, conv_ms), (torchs, torch_ms))
        for function, times in sides[:: 1 if index % 2 == 0 else -1]:
            times.append(time_call(function, device))
    with Clock(device) as clock:
        for _ in range(5):
            step()
    flops = 3 * forward_flops(model, in_channels=3, size=args.size)
    work = flops * recipe.batch_size / 1e6
    record: dict[str, Any] = {
        "date": today(),
        "command": f"python benchmarks/step.py {' '.join(sys.argv[1:])}".strip(),
        "model": f"{recipe.model.name} {dict(recipe.model.arguments)}",
        "device": args.device,
        "size": args.size,
        "batch_size": recipe.batch_size,
        "rounds": args.rounds,
        "setup": f"{execution.precision}, {'tiled' if execution.tile_gradients else 'plain'} gradients, "
        f"{'Winograd' if execution.winograd else 'direct'} convolutions, "
        f"{'fused' if execution.fuse_norms else 'plain'} norms",
        "mflop_per_image": flops / 1e6,
        "step_ms": statistics.median(step_ms),
        "conv_ms": statistics.median(conv_ms),
        "images_per_second": 1e3 * recipe.batch_size / statistics.median(step_ms),
        "step_gflops": work / statistics.median(step_ms),
        "conv_gflops": work / statistics.median(conv_ms),
        "share": paired_ratio(conv_ms, step_ms),
        "torch_conv_ms": statistics.median(torch_ms),
        "torch_gflops": work / statistics.median(torch_ms),
        "torch_share": paired_ratio(torch_ms, step_ms),
        "kinds_ms": kinds(clock.seconds, 5),
        "samples_ms": {"step": step_ms, "convolutions": conv_ms, "torch's convolutions": torch_ms},
        "environment": describe(),
    }
    save(record, "step", f"{recipe.model.name}{'-short' if args.seconds else ''}", markdown, args.out)


if __name__ == "__main__":
    main()
