"""vivace export --to deploy: a folder that classifies images without torch and without vivace.

model.onnx, or model.xml and model.bin      raw pixels in, probabilities out
model.json                                  classes, preprocessing, metrics, parity, the SHA-256 of the files
classifier.py, manifest.py, pixels.py, reliance.py, image_decoder/    the loader: numpy, Pillow and the runtime
golden/, selftest.py                        images with their answers, and the program that compares
cpp/, js/                                   examples for ONNX Runtime, of pictures of 8 bits
README.md, requirements.txt
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vivace import silenced
from vivace.bundle import Bundle
from vivace.config import to_dict
from vivace.data import decoding
from vivace.data.place import AnyData
from vivace.errors import ParityError
from vivace.exporting.compared import compared
from vivace.exporting.deployment.goldens import Golden, choose_goldens
from vivace.exporting.exporters import exporter_of
from vivace.exporting.parity import Parity, parity_images
from vivace.exporting.progress import doing
from vivace.files import atomic_folder, sha256_of, write_json
from vivace.hardware import cpu_name
from vivace.outputs import check_folder
from vivace.owned import DEPLOYMENT, own_folder, seal
from vivace.runtimes.table import RUNTIMES, Deployment
from vivace.uncertainty.decide import Decider

__all__ = ["write_deployment"]

TEMPLATES = Path(__file__).parent / "templates"
DECODING = Path(decoding.__file__).parent
MANIFEST, FORMAT = "model.json", "vivace-deployment"
PROGRAMS = ("classifier.py", "manifest.py", "pixels.py", "reliance.py", "selftest.py")
# what turns bytes into pixels in training: it imports numpy and Pillow only, and is copied as it is
DECODER = "image_decoder"
SELFTEST_SECONDS = 300
# of images that are kept as they are, for the folder's README
KEPT = (
    "\nThese images are kept as they are: {channels} channels of {pixels}, in TIFF, PNG or .npy, or arrays [H, W, "
    "{channels}] or [{channels}, H, W] in Python. They are only cut and resized.\n"
)


def write_deployment(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None) -> Parity | None:
    """Write the folder of a bundle whose runtime has a `deployment` in its row, and return its certificate of parity.

    data: images for goldens and certificate, as for `train`; None: generated ones. The certificate of an int8
    variant is then the one that it came with. The folder must pass its own self-test; one that fails is removed.
    Raises ParityError if graph or folder does not agree with PyTorch, OutputPathError if `out` holds what vivace did
    not write.
    """
    info = bundle.info
    is_compared = data is not None or "int8" not in info.precision
    images = parity_images(bundle, data, cache_dir=cache_dir) if is_compared else None
    found = compared(bundle, choose_goldens(bundle, data, cache_dir=cache_dir), images)
    check_folder(out, inputs=[bundle.folder], kind=DEPLOYMENT, classes=bundle.classes)
    own = functools.partial(own_folder, shown=out, kind=DEPLOYMENT, classes=bundle.classes)
    with atomic_folder(out, check=own) as folder:
        tensors = exporter_of(info.runtime).copy_labelled(bundle, folder)
        found.write_goldens(folder / "golden", _where(info.runtime))
        copy_decoder(folder)
        for name in (*PROGRAMS, *_examples(bundle)):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(TEMPLATES / name, folder / name)
        (folder / "classes.txt").write_text("".join(f"{_one_line(name)}\n" for name in info.classes), "utf-8")
        (folder / "requirements.txt").write_text(_requirements(info.runtime))
        (folder / "README.md").write_text(_readme(bundle, found.goldens, found.certificate), "utf-8")
        _write_manifest(folder, bundle, found.certificate, tensors)
        doing("running the folder's own test")
        _selftest(folder)
    return found.parity


def copy_decoder(folder: Path) -> None:
    """Write the package `image_decoder` into the folder: a copy of `vivace.data.decoding` and of what it imports."""
    target = folder / DECODER
    shutil.copytree(TEMPLATES / DECODER, target, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (*sorted(DECODING.glob("[!_]*.py")), Path(silenced.__file__)):
        text = module.read_text("utf-8")
        text = text.replace("from vivace.data.decoding.", f"from {DECODER}.").replace(
            "from vivace.", f"from {DECODER}."
        )
        (target / module.name).write_text(text, "utf-8")


def _write_manifest(folder: Path, bundle: Bundle, certificate: dict[str, Any], tensors: tuple[str, str]) -> None:
    info, size, channels = bundle.info, bundle.preprocess.size, bundle.preprocess.channels
    row = RUNTIMES[info.runtime]
    names = [*row.graph_files, *PROGRAMS, "classes.txt", "requirements.txt"]
    names += [f"{DECODER}/{path.name}" for path in sorted((folder / DECODER).iterdir())]
    names += [f"golden/{path.name}" for path in sorted((folder / "golden").iterdir())]
    told, uncertainty = to_dict(info), bundle.uncertainty()
    manifest = {
        "format": FORMAT,
        "schema_version": 1,
        "model": info.architecture.name,
        "classes": list(info.classes),
        **({"task": info.task, "thresholds": list(info.thresholds)} if info.multi_label else {}),
        "preprocess": told["preprocess"],
        "runtime": info.runtime,
        "precision": info.precision,
        "settings": dict(row.settings.get(info.precision, {})),
        "input": {"name": tensors[0], "dtype": bundle.preprocess.dtype, "shape": ["N", size, size, channels]},
        "output": {"name": tensors[1], "dtype": "float32", "shape": ["N", len(info.classes)]},
        **({} if uncertainty is None else {"uncertainty": Decider(uncertainty).told()}),
        "metrics": told["metrics"],
        "parity": certificate,
        "data": told["data"],
        "made_with": {"vivace": metadata.version("vivace"), **_where(info.runtime)},
        "files": _facts(folder, names),
        # there to be changed: the folder's own test does not ask for them, and a changed one is not replaced
        "editable": _facts(folder, ["README.md", *_examples(bundle)]),
    }
    write_json(folder / MANIFEST, seal(manifest))


def _facts(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    return {name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in names}


def _where(runtime: str) -> dict[str, str]:
    versions = {name: metadata.version(name) for name in (RUNTIMES[runtime].library, "numpy", "pillow")}
    return {"cpu": cpu_name(), "python": platform.python_version(), **versions}


def _deployment(runtime: str) -> Deployment:
    found = RUNTIMES[runtime].deployment
    assert found is not None
    return found


def _examples(bundle: Bundle) -> tuple[str, ...]:
    # the examples in other languages read pixels of 8 bits, grey or RGB
    return () if bundle.preprocess.is_raw else _deployment(bundle.info.runtime).examples


def _requirements(runtime: str) -> str:
    # older ones read neither the graph nor, of Pillow, every image as training did
    return (
        "# Python 3.11 or newer\n"
        "numpy>=2.0\n"
        "pillow>=11.0\n"
        f"{RUNTIMES[runtime].library}>={_deployment(runtime).least_version}\n"
        "# plain JPEGs in less time, with the same pixels: taken where it is installed\n"
        "# simplejpeg>=1.8\n"
        "# HEIC\n"
        "# pillow-heif>=1.8\n"
    )


def _one_line(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def _readme(bundle: Bundle, goldens: Sequence[Golden], certificate: dict[str, Any]) -> str:
    info = bundle.info
    score = "map" if info.multi_label else "top1"
    split = next((name for name in ("test", "val") if score in info.metrics.get(name, {})), None)
    accuracy = ""
    if split is not None:
        what = "Mean average precision" if info.multi_label else "Top-1 accuracy"
        accuracy = f"{what} {info.metrics[split][score]:.2%} on {split}, as measured when it was trained."
    agreement = "It was not compared with PyTorch."
    if certificate:
        same, fraction = "first class was", certificate["top1_agreement"]
        if info.multi_label:
            same, fraction = "set of labels was", certificate["set_agreement"]
        agreement = (
            f"On {certificate['num_images']:,} images ({certificate['images']}) its {same} PyTorch's on "
            f"{fraction:.2%}, and probabilities differed by at most "
            f"{certificate['max_difference']:.1e}."
        )
    origin = "images of the data set: pass the folder on only if you may pass them on"
    if goldens[0].label is None:
        origin = "generated, since no data was given when the folder was made"
    names = ["README.md", *(_deployment(info.runtime).readmes if _examples(bundle) else ())]
    text = "\n".join((TEMPLATES / name).read_text("utf-8") for name in names)
    size, channels = info.preprocess.size, info.preprocess.channels
    return string.Template(text).substitute(
        model=info.architecture.name,
        classes=len(info.classes),
        size=size,
        channels=channels,
        graph=RUNTIMES[info.runtime].graph_files[0],
        runtime=RUNTIMES[info.runtime].label,
        precision=info.precision,
        dtype=info.preprocess.dtype,
        kept=KEPT.format(channels=channels, pixels=info.preprocess.pixels) if info.preprocess.is_raw else "",
        accuracy=accuracy,
        agreement=agreement,
        origin=origin,
        goldens=len(goldens),
        first=f"{size * size * channels:,}",
        reliance="" if bundle.uncertainty() is None else f"\n{(TEMPLATES / 'README-reliance.md').read_text('utf-8')}",
    )


def _selftest(folder: Path) -> None:
    """Raise ParityError unless the folder passes its own test, in a process of its own."""
    # it runs in the folder: of a relative path there is nothing there
    command = [sys.executable, "-B", str(folder.resolve() / "selftest.py")]
    # what the folder needs must be installed: a path to this program's own modules would hide that it is not
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, timeout=SELFTEST_SECONDS, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired:
        raise ParityError(f"the folder's own test took more than {SELFTEST_SECONDS} s. Nothing was kept.") from None
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")] or done.stderr.splitlines()
        raise ParityError(f"the folder fails its own test: {lines[0] if lines else 'no word'}. Nothing was kept.")
