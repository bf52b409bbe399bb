"""A C file of this package → a shared library for this processor, built once and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from vivace.errors import KernelError
from vivace.hardware import cpu_features, cpu_name

__all__ = ["load_library"]

# -march=native: built where it runs. No -ffast-math: a NaN must stay one, or diverging runs would not be noticed
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# more for some of them. OpenMP is that of torch, which must have been imported: one set of threads. Where products and
# sums may not be fused, weights are rounded as in a library that is built for any processor
OPTIONS = {
    "norms": ("-fopenmp",),
    "gradients": ("-fopenmp",),
    "winograd": ("-fopenmp",),
    "winograd_gradients": ("-fopenmp",),
    "resize": ("-ffp-contract=off",),
}
COMPILERS = ("cc", "gcc", "clang")
# half a second is usual
TIMEOUT_SECONDS = 60


@functools.cache
def load_library(name: str, folder: Path) -> ctypes.CDLL:
    """The library built from `name`.c, from `folder` if it was built before, else built into it (about half a second).

    $CC names another compiler than cc, gcc or clang. Raises KernelError if there is no compiler, it fails, or the
    folder can't be written.
    """
    source = Path(__file__).with_name(f"{name}.c")
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelError(f"no C compiler is there: looked for {', '.join(COMPILERS)}. Install one, or set CC.")
    flags = [*FLAGS, *OPTIONS.get(name, ()), *_wide_vectors()]
    # a library built on another processor of a shared home would not run here
    text = "".join(path.read_text() for path in (source, *sorted(source.parent.glob("*.h"))))
    facts = (text, compiler, flags, cpu_name(), cpu_features(), platform.machine())
    path = folder / f"{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:20]}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as build:
                built = Path(build, path.name)
                _compile([compiler, *flags, "-o", str(built), str(source), "-lm"])
                # two processes may build it: the later one takes the place of the same thing
                built.replace(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(
            f"the kernels can't be kept or loaded: {path} ({error}). Check the folder's rights."
        ) from None


def _wide_vectors() -> list[str]:
    # compilers stay with 256 bits by default, from a time when 512 lowered the clock
    return ["-mprefer-vector-width=512"] if "avx512f" in cpu_features() else []


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"the C compiler did not end in {TIMEOUT_SECONDS} s: {command[0]}. Set CC to another."
        ) from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise KernelError(f"the C compiler failed: {command[0]} ({first}). Set CC to another.")
