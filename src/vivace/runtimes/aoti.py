"""AOTInductor on a CPU: the network compiled to a shared library of this machine's, once, and loaded ever after.

A bundle holds no machine code, so the library is not part of it: it is compiled at first use and kept in the cache,
under a hash of everything that it depends on. Later processes start without a compiler, and without building the
network in Python.
"""

from __future__ import annotations

import hashlib
import os
import platform
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from vivace import systems
from vivace.bundle import Bundle
from vivace.cachedir import building, default_cache_dir
from vivace.config import to_dict
from vivace.errors import KernelError, VivaceError
from vivace.files import atomic_folder, canonical_json, sha256_of
from vivace.hardware import cpu_features, cpu_name
from vivace.runtimes.graph import DYNAMIC_SHAPES, deployed_graph
from vivace.runtimes.inductor_private import compile_and_package, library_runner
from vivace.runtimes.int8 import RANGES, int8_graph, ranges_file
from vivace.runtimes.loading import Classifier
from vivace.runtimes.quiet import quiet
from vivace.runtimes.table import RUNTIMES
from vivace.scratch import scratch_folder
from vivace.trust import keep_compiled_programs, say_once, seal, seal_broken, trusted_folder

__all__ = ["compile_package", "library_folder", "load"]

ROW = RUNTIMES["aoti"]
WEIGHTS = "model.safetensors"
# in the folder of a library: the hashes of what else is in it
RECORD = "SHA256"
# code that decides what a bundle's graph computes
SOURCES = ("models", "runtimes")


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size, any number → probabilities, float32.

    precision: fp32, bf16, or int8 for a bundle that was quantized for it. Raises ConfigError for a bundle without
    ranges of int8; KernelError if it can't be compiled or kept; MissingExtra.
    """
    if precision == "int8":
        ranges_file(bundle)
    folder = default_cache_dir() / ROW.compiled_cache
    try:
        folder = library_folder(bundle, precision)
        if _broken(folder):
            with building(folder):
                # another process may have made it meanwhile
                if reason := _broken(folder):
                    if os.path.lexists(folder):
                        say_once(f"{folder} is compiled anew: {reason}.")
                    _make(bundle, precision, folder)
    except OSError as error:
        raise KernelError(
            f"the compiled network can't be kept: {folder} ({error.strerror}). Set VIVACE_CACHE to another folder."
        ) from None
    run = library_runner(folder / "model.so")

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        # copied only if it is no plain block, or read-only as a memory map is, which torch does not take
        block = np.require(images_NHWC, requirements=["C", "W"])
        probs: np.ndarray = run([torch.from_numpy(block)])[0].numpy()
        return probs

    return classify


def library_folder(bundle: Bundle, precision: str) -> Path:
    """The folder of a bundle's library on this machine, compiled or not: one that only this user can write to.

    Raises OSError or KernelError if there is no such place.
    """
    facts = {
        "weights": sha256_of(bundle.folder / WEIGHTS),
        "ranges": sha256_of(bundle.folder / RANGES) if precision == "int8" else None,
        "architecture": to_dict(bundle.info.architecture),
        "preprocess": to_dict(bundle.preprocess),
        "precision": precision,
        # loops are cut for a number of threads when they are compiled
        "threads": torch.get_num_threads(),
        "machine": [cpu_name(), *cpu_features(), platform.machine()],
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
        "sources": _sources(),
    }
    key = hashlib.sha256(canonical_json(facts)).hexdigest()[:20]
    place = trusted_folder(default_cache_dir() / ROW.compiled_cache)
    return place / f"{systems.possible_name(bundle.info.architecture.name.replace('/', '-'))}-{precision}-{key}"


def compile_package(bundle: Bundle, precision: str, path: Path) -> None:
    """Write AOTInductor's package of a bundle, which torch reads, to `path`, a .pt2.

    Raises KernelError if it can't be compiled.
    """
    keep_compiled_programs(default_cache_dir())
    try:
        with quiet(), torch.no_grad():
            if precision == "int8":
                graph, example = int8_graph(bundle)
            else:
                graph, example = deployed_graph(bundle, precision)
                graph = graph.to(memory_format=torch.channels_last)
            program = torch.export.export(graph, (example,), dynamic_shapes=DYNAMIC_SHAPES)
            compile_and_package(program, path)
    except (VivaceError, OSError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KernelError(
            f"aoti can't compile {bundle.info.architecture.name}: {reason}. Install a C++ compiler or set CXX, "
            "or use another runtime."
        ) from error


def _make(bundle: Bundle, precision: str, folder: Path) -> None:
    with scratch_folder("compile", folder.parent) as temporary:
        package = temporary / "model.pt2"
        compile_package(bundle, precision, package)
        with zipfile.ZipFile(package) as archive, atomic_folder(folder) as made:
            (library,) = (name for name in archive.namelist() if name.endswith(".so"))
            (made / "model.so").write_bytes(archive.read(library))
            # what it calls of torch's own operators, which is looked for beside it
            calls = library.removesuffix(".so") + ".json"
            if calls in archive.namelist():
                (made / "model.json").write_bytes(archive.read(calls))
            made.chmod(0o700)
            seal(made / RECORD, sorted(made.iterdir()))


def _broken(folder: Path) -> str | None:
    """Why the files in `folder` are not the compiled ones; None: they are, and there are no others."""
    try:
        return seal_broken(folder / RECORD, sorted(path for path in folder.iterdir() if path.name != RECORD))
    except OSError as error:
        return f"it can't be read ({error.strerror})"


def _sources() -> str:
    root = Path(__file__).parent.parent
    paths = sorted(path for room in SOURCES for path in (root / room).glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()
