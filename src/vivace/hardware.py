"""What this machine is: the device, its processors and precisions, seeds, and how long the process has run.

Torch is imported inside the functions that need it, so that the command line starts at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace import systems
from vivace.cpus import forked_with, limit_threads, num_cpus
from vivace.errors import ConfigError
from vivace.runtimes.table import RUNTIMES

if TYPE_CHECKING:
    import torch

__all__ = [
    "Processor",
    "autocast",
    "available_memory_bytes",
    "cpu_features",
    "cpu_name",
    "describe",
    "device_name",
    "has_nvidia_driver",
    "huge_pages",
    "is_processor",
    "keep_freed_memory",
    "library_versions",
    "limit_threads",
    "num_cpus",
    "peak_memory_bytes",
    "process_seconds",
    "seed_everything",
    "select_device",
    "supported_precisions",
]

# the instructions that decide which precision is faster, in the spelling of /proc/cpuinfo
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
# addresses that the heap may fill with huge pages: more than a run on a CPU takes
MAX_HUGE_BYTES = 32 * 2**30
# what a system has of which torch may call a device "cuda": NVIDIA's driver, its devices, those of Tegra and WSL, AMD's
GPU_SIGNS = (
    *("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/nvmap"),
    *("/dev/dxg", "/dev/kfd"),
)
_IMPORTED_AT = time.monotonic()


def has_nvidia_driver() -> bool:
    """Whether a driver for NVIDIA GPUs is loaded: known without importing torch."""
    return Path("/proc/driver/nvidia/version").exists()


@functools.cache
def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Those of FEATURES that the processor has."""
    flags = set((_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split())
    return tuple(feature for feature in FEATURES if feature in flags)


def available_memory_bytes() -> int:
    """Memory that can be had without swapping, bytes; 0 if the system does not tell."""
    return _proc_bytes("meminfo", "MemAvailable") or 0


def peak_memory_bytes() -> int | None:
    """The largest resident memory that this process has had, bytes; None if the system does not tell."""
    # what getrusage tells includes the parent's memory at the time when it started this process
    return _proc_bytes("self/status", "VmHWM") or systems.peak_memory_bytes()


def _proc_bytes(name: str, field: str) -> int | None:
    """A field of a file below /proc that is told in KiB, as bytes; None if the system does not tell."""
    try:
        for line in Path("/proc", name).read_text("utf-8", "replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def process_seconds() -> float:
    """Seconds since this process started (since this module was imported, where the system does not tell)."""
    try:
        # field 22 of stat, counted after the command's name, which may hold blanks
        ticks = int(Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text("utf-8", "replace").split()[0])
        return max(0.0, uptime - ticks / systems.setting("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED_AT


@dataclass(frozen=True)
class Processor:
    """What torch.device("cpu") is, for whoever needs no torch."""

    type: str = "cpu"

    def __str__(self) -> str:
        return self.type


def is_processor(name: str) -> bool:
    """Whether `select_device(name)` is the processor, as far as can be told without importing torch."""
    if not isinstance(name, str):
        return False
    if name != "auto" or "torch" in sys.modules or sys.platform not in ("linux", "darwin"):
        return name == "cpu"
    return not any(map(os.path.exists, GPU_SIGNS))


def select_device(name: str = "auto") -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1" or "mps". Raises ConfigError if it is not there."""
    import torch

    from vivace.torch_private import in_bad_fork

    if forked_with("torch"):
        limit_threads()
    if name == "auto":
        # a fork of a process that used a GPU can't use it
        return torch.device("cuda" if torch.cuda.is_available() and not in_bad_fork() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        got = repr(name) if isinstance(name, str | None) else type(name).__name__
        raise ConfigError(f"`device` is unknown: got {got}. Give auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda":
        if in_bad_fork():
            raise ConfigError(
                f"`device={name!r}` can't be used: this process was forked from one that used CUDA. Start workers with "
                "spawn: multiprocessing.get_context('spawn')."
            )
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"`device` is not there: got {name!r}, found {count} CUDA devices. Give cpu or auto.")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"`device` is not there: got {name!r}, which is Apple's GPU. Give cpu or auto.")
    elif device.type not in ("cpu", "mps"):
        raise ConfigError(f"`device` is not supported: got {name!r}. Give auto, cpu, cuda, cuda:N or mps.")
    return device


def device_name(device: torch.device) -> str:
    """A name for people and for keys of measured receipts, such as "AMD EPYC 9654" or "NVIDIA H200"."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    if device.type == "mps":
        return f"{cpu_name()} (Apple GPU)"
    features = [feature for feature in ("amx_bf16", "avx512_bf16") if feature in cpu_features()]
    return " ".join([cpu_name(), f"({num_cpus()} processors)", *features])


def supported_precisions(device: torch.device | Processor) -> tuple[str, ...]:
    """Those of fp32, bf16, fp16 that the device computes in hardware; whether they are faster has to be measured."""
    if device.type == "cuda":
        import torch

        return ("fp32", "bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "fp16")
    if device.type == "cpu" and {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_features()):
        return ("fp32", "bf16")
    return ("fp32",)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context in which a network runs in fp32, bf16 or fp16."""
    if precision == "fp32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next step rather than give it back; whether that was possible.

    By default glibc maps every large tensor anew and the kernel clears its pages: measured on 2 cores, a training step
    of a small convnet takes 1.4 times as long. What is kept lies in huge pages where the kernel gives them on request
    (`transparent_hugepage` at "madvise", as Debian and Ubuntu have it). Holds for this process from now on; its peak
    memory does not change.
    """
    import ctypes

    m_mmap_max, m_trim_threshold = -4, -1
    try:
        library = ctypes.CDLL("libc.so.6")
        # a threshold of -1 turns trimming off
        kept = bool(library.mallopt(m_mmap_max, 0) and library.mallopt(m_trim_threshold, -1))
        if kept:
            _ask_for_huge_pages()
        return kept
    except (OSError, AttributeError):
        return False


def huge_pages() -> str | None:
    """Who gets huge pages from this system: "always" everybody, "madvise" who asks, "never" nobody; None: not told."""
    try:
        policy = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text("utf-8", "replace")
    except OSError:
        return None
    return policy.partition("[")[2].partition("]")[0] or None


@functools.cache
def _ask_for_huge_pages() -> bool:
    """Let the heap grow into huge pages, once for a process; whether the kernel agreed.

    A virtual machine looks every address up twice, and a step goes through gigabytes. Addresses are taken from the
    system ahead, marked, and given back to glibc, which keeps them: untouched, they take no memory.
    """
    import ctypes

    madv_hugepage, huge = 14, 2 * 2**20
    limits = systems.resource
    if limits is None or limits.getrlimit(limits.RLIMIT_AS)[0] != limits.RLIM_INFINITY:
        # addresses are counted (ulimit -v): leave them to whoever needs them
        return False
    library = ctypes.CDLL("libc.so.6")
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = min(systems.setting("SC_PAGE_SIZE") * systems.setting("SC_PHYS_PAGES") // 2, MAX_HUGE_BYTES)
    address = library.malloc(size)
    if not address:
        # a system that commits no more than it has (vm.overcommit_memory=2)
        return False
    first, end = -(-address // huge) * huge, (address + size) // huge * huge
    agreed: bool = library.madvise(first, end - first, madv_hugepage) == 0
    library.free(address)
    return agreed


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed torch's global generators; with `deterministic`, refuse kernels whose result depends on timing."""
    import torch

    torch.manual_seed(seed)
    if deterministic:
        # cuBLAS reads this when its first handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():
        # only if it changes something: the call imports torch's compiler, which takes over a second
        torch.use_deterministic_algorithms(deterministic, warn_only=False)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


@dataclass(frozen=True)
class _Library:
    name: str
    extra: str | None


LIBRARIES = (
    *(_Library(name, None) for name in ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")),
    *(_Library(name, None) for name in ("safetensors", "tensorboard")),
    _Library("scikit-learn", "data"),
    _Library("pyarrow", "data"),
    _Library("scipy", "data"),
    *(_Library(*pair) for pair in (("matplotlib", "report"), ("model-signing", "sign"), ("opacus", "private"))),
    *(_Library(*pair) for pair in (("uvicorn", "serve"), ("grpcio", "grpc"), ("aiohttp", "remote"))),
    *(_Library(row.library, row.extra) for row in RUNTIMES.values() if row.module and row.extra),
)


def library_versions() -> dict[str, str | None]:
    """Versions of the libraries that vivace uses; None for one that is not installed."""
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for library in LIBRARIES:
        try:
            versions[library.name] = metadata.version(library.name)
        except metadata.PackageNotFoundError:
            versions[library.name] = None
    return versions


def describe() -> dict[str, Any]:
    """A record of the machine and the software, for receipts: plain values only."""
    from importlib import metadata

    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cpu_features": list(cpu_features()),
        "num_cpus": num_cpus(),
        "num_threads": torch.get_num_threads(),
        "memory_available_bytes": available_memory_bytes(),
        "huge_pages": huge_pages(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": library_versions(),
        "vivace": metadata.version("vivace"),
    }
