"""A C file of this package → a shared library for this processor, built once and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from vivace.errors import KernelError
from vivace.hardware import cpu_features, cpu_name
from vivace.locks import waiting_lock
from vivace.scratch import scratch_folder
from vivace.trust import say_once, seal, seal_broken, trusted_folder

__all__ = ["find_compiler", "load_library", "say_unused"]

# -march=native: built where it runs. No -ffast-math: a NaN must stay one, or diverging runs would not be noticed
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# more options for some of them. OpenMP is torch's, which must have been imported: one set of threads. Without fused
# multiply-adds weights are rounded as in a library that is built for any processor
OPTIONS = {
    "norms": ("-fopenmp",),
    "gradients": ("-fopenmp",),
    "depthwise": ("-fopenmp",),
    "depthwise_gradients": ("-fopenmp",),
    "winograd": ("-fopenmp",),
    "winograd_gradients": ("-fopenmp",),
    "resize": ("-ffp-contract=off",),
}
COMPILERS = ("cc", "gcc", "clang")
# a build takes under a second, or minutes on a busy machine
TIMEOUT_SECONDS = 300


@functools.cache
def load_library(name: str, folder: Path) -> ctypes.CDLL:
    """The library built from `name`.c, from `folder` if it was built before, else built into it.

    Where others may write to `folder`, a private one takes its place; what is not as it was built is built anew. $CC
    names another compiler than cc, gcc or clang, with options if need be. Raises KernelError if there is no compiler,
    it fails, or the folder can't be written.
    """
    source = Path(__file__).with_name(f"{name}.c")
    command = [*find_compiler(), *FLAGS, *OPTIONS.get(name, ()), *_wide_vectors()]
    # a library built on another processor of a shared home would not run here
    text = "".join(path.read_text() for path in (source, *sorted(source.parent.glob("*.h"))))
    facts = (text, command, cpu_name(), cpu_features(), platform.machine())
    file = f"{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:20]}.so"
    path = folder / file
    try:
        path = trusted_folder(folder) / file
        record = path.with_name(f"{file}.sha256")
        if seal_broken(record, [path]):
            with waiting_lock(path.with_name(".lock"), f"kernels in {path.parent}"):
                # another process may have built it meanwhile
                reason = seal_broken(record, [path])
                if reason and os.path.lexists(path):
                    say_once(f"{path} is built anew: {reason}.")
                if reason:
                    _build([*command, str(source), "-lm"], path, record)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(
            f"the kernels can't be kept or loaded: {path} ({error.strerror or error}). Check the folder's rights."
        ) from None


def say_unused(name: str, error: KernelError) -> None:
    """Say once, on stderr, that torch or Pillow replaces the kernels in `name`.c, and why."""
    say_once(f"the kernels in {name}.c are not used, slower code does their work: {error}")


def find_compiler() -> list[str]:
    """The compiler and its first options. Raises KernelError if there is none."""
    try:
        chosen = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise KernelError(f"CC is no command: got {os.environ['CC']!r} ({error}). Set it to a C compiler.") from None
    if chosen and shutil.which(chosen[0]) is None:
        raise KernelError(f"the compiler that CC names was not found: got {chosen[0]!r}. Correct CC, or unset it.")
    found = chosen or [path for path in map(shutil.which, COMPILERS) if path][:1]
    if not found:
        raise KernelError(f"no C compiler was found: looked for {', '.join(COMPILERS)}. Install one, or set CC.")
    return found


def _build(command: list[str], path: Path, record: Path) -> None:
    with scratch_folder("build", path.parent) as folder:
        built, hashes = folder / path.name, folder / record.name
        _compile([*command, "-o", str(built)], str(folder))
        seal(hashes, [built])
        built.replace(path)
        hashes.replace(record)


def _wide_vectors() -> list[str]:
    # compilers default to 256 bits, from a time when 512 lowered the clock
    return ["-mprefer-vector-width=512"] if "avx512f" in cpu_features() else []


def _compile(command: list[str], folder: str) -> None:
    """Run the compiler; temporary files go to `folder`. Raises KernelError with its first error."""
    environment = {**os.environ, "TMPDIR": folder, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise KernelError(
            f"the C compiler did not end in {TIMEOUT_SECONDS} s: {command[0]}. Set CC to another."
        ) from None
    if done.returncode:
        lines = done.stderr.splitlines()
        first = next(
            (line for line in lines if "error" in line), lines[0] if lines else f"exit status {done.returncode}"
        )
        raise KernelError(f"the C compiler failed: {command[0]} ({first.strip()[:300]}). Set CC to another.")
