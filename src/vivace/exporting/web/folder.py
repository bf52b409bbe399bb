"""vivace export --to web: a static page that classifies in the browser.

index.html, page/, sw.js     the page, its scripts and look; what keeps it for use without a network
model.onnx, web.json         raw pixels in, probabilities out; classes, preprocessing, thresholds, SHA-256 of the files
onnxruntime/                 ONNX Runtime Web, which computes it
golden/                      images with the pixels and answers of vivace, which the page compares itself with
README.md
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vivace.browser import SHARED, shared_file
from vivace.bundle import Bundle
from vivace.config import to_dict
from vivace.data.place import AnyData
from vivace.errors import ConfigError
from vivace.exporting.compared import compared
from vivace.exporting.deployment.goldens import INT8_REPEAT_TOLERANCE, Golden
from vivace.exporting.exporters import exporter_of
from vivace.exporting.parity import TOLERANCE, Parity
from vivace.exporting.progress import doing
from vivace.exporting.web.goldens import decoded_by_pillow, web_goldens
from vivace.exporting.web.runtime import LICENSE, PACKAGE, VERSION
from vivace.exporting.web.verify import Verified, verify_page
from vivace.files import atomic_folder, canonical_json, sha256_of, write_json
from vivace.notices import warn
from vivace.outputs import check_folder
from vivace.owned import PAGE, own_folder, seal
from vivace.runtimes.table import PORTABLE, RUNTIMES
from vivace.scratch import scratch_folder
from vivace.uncertainty.decide import Decider

__all__ = ["WebPage", "check_browser", "write_page"]

STATIC = Path(__file__).parent / "static"
MANIFEST, FORMAT = "web.json", "vivace-web"
(GRAPH,) = RUNTIMES[PORTABLE].graph_files
SCRIPTS = ("page.js", "network.js", "pixels.js", "resize.js", "headers.js", "reliance.js", "goldens.js", "words.js")
# there to be changed: a changed one is not replaced, and a newer page does not miss it
EDITABLE = ("README.md", "index.html", "page/style.css", "page/web.css", "page/words.js")
# what the page asks for by its contents' name, as network.js does
LARGE = ("model.onnx", "onnxruntime/ort-wasm-simd-threaded.wasm")
# of 255, in any pixel and on average in an image. Chromium 156 gave the pixels of vivace to the last bit, but for JPEGs
# that training decodes at a lower resolution: 13 photos at 8 to 36 px differed by at most 10, by 0.74 on average
PIXELS, PIXELS_MEAN = 16, 1.0


@dataclass(frozen=True)
class WebPage:
    """What a page was found to do before it was kept."""

    parity: Parity | None
    verified: Verified


def check_browser(bundle: Bundle) -> None:
    """Raises ConfigError for a bundle whose pixels no browser gives."""
    preprocess = bundle.preprocess
    if preprocess.is_raw:
        raise ConfigError(
            f"`to='web'` takes images of 8 bits in grey or RGB, which is all that browsers decode: the bundle has "
            f"{preprocess.channels} channels of {preprocess.pixels}. Use `to='deploy'`, or `vivace serve`."
        )


def write_page(
    bundle: Bundle,
    out: Path,
    data: AnyData | None,
    cache_dir: Path | None,
    *,
    images: tuple[np.ndarray, str],
    runtime: Mapping[str, bytes],
) -> WebPage:
    """Write the folder of a bundle for ONNX Runtime, and verify it before it is kept.

    data: images for goldens, as for `train`; None: generated ones. images: of `parity_images`, for the certificate.
    runtime: of `web_runtime`.
    Raises ParityError if graph or page does not agree with PyTorch, OutputPathError if `out` holds what vivace did not
    write.
    """
    is_compared = data is not None or "int8" not in bundle.info.precision
    goldens = web_goldens(bundle, data, cache_dir=cache_dir)
    found = compared(bundle, goldens, images if is_compared else None)
    check_folder(out, inputs=[bundle.folder], kind=PAGE, classes=bundle.classes)
    own = functools.partial(own_folder, shown=out, kind=PAGE, classes=bundle.classes)
    with atomic_folder(out, check=own) as folder:
        tensors = exporter_of(PORTABLE).copy_labelled(bundle, folder)
        where = {"vivace": metadata.version("vivace"), "pillow": metadata.version("pillow")}
        found.write_goldens(folder / "golden", where)
        _write_program(folder, runtime)
        told = _told(bundle, tensors, found.certificate)
        (folder / "README.md").write_text(_readme(bundle, goldens, told), "utf-8")
        _write_manifest(folder, told)
        doing("comparing the page with vivace")
        with scratch_folder("web") as decoded:
            decoded_by_pillow(goldens, decoded)
            verified = verify_page(folder, decoded, told["tolerance"])
    num_of_data = sum(golden.label is not None for golden in goldens)
    if num_of_data:
        warn(
            f"{num_of_data} images of the data are in {out / 'golden'}, which the page compares itself with: publish "
            "it only if you may publish them, or export without data"
        )
    return WebPage(found.parity, verified)


def _write_program(folder: Path, runtime: Mapping[str, bytes]) -> None:
    (folder / "page").mkdir()
    (folder / "onnxruntime").mkdir()
    shutil.copyfile(STATIC / "index.html", folder / "index.html")
    for name in (*SCRIPTS, "web.css"):
        shutil.copyfile(STATIC / name, folder / "page" / name)
    for name in SHARED:
        (folder / "page" / name).write_bytes(shared_file(name))
    for name, data in runtime.items():
        (folder / "onnxruntime" / name).write_bytes(data)
    (folder / "onnxruntime" / "LICENSE.txt").write_text(LICENSE, "utf-8")


def _told(bundle: Bundle, tensors: tuple[str, str], certificate: dict[str, Any]) -> dict[str, Any]:
    """What the page knows of its network. Where the data came from is not in it: pages are for anybody."""
    info, uncertainty = bundle.info, bundle.uncertainty()
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    return {
        "format": FORMAT,
        "schema_version": 1,
        "model": info.architecture.name,
        "precision": info.precision,
        "classes": list(info.classes),
        "task": info.task,
        **({"thresholds": list(info.thresholds)} if info.multi_label else {}),
        "preprocess": {**to_dict(bundle.preprocess), "down_first": shortens_first()},
        "input": {"name": tensors[0], "dtype": "uint8", "shape": ["N", size, size, channels]},
        "output": {"name": tensors[1], "dtype": "float32", "shape": ["N", len(info.classes)]},
        **({} if uncertainty is None else {"uncertainty": Decider(uncertainty).told()}),
        "calibrated": info.temperature is not None,
        "tolerance": {
            "pixels": PIXELS,
            "pixels_mean": PIXELS_MEAN,
            "probabilities": TOLERANCE.get(info.precision, INT8_REPEAT_TOLERANCE),
        },
        "parity": certificate,
        "made_with": {"vivace": metadata.version("vivace"), "onnxruntime-web": VERSION},
    }


def shortens_first() -> bool:
    """Whether this Pillow shortens tall images before it makes them narrower, as 13.0 does: pixels are rounded between.

    The pixels of training are those of the Pillow that the page is made with.
    """
    noise = np.random.default_rng(0).integers(0, 256, (90, 31, 3), dtype=np.uint8)
    tall, bicubic = Image.fromarray(noise), Image.Resampling.BICUBIC
    first = tall.resize((31, 20), bicubic).resize((20, 20), bicubic)
    return bool(np.array_equal(np.asarray(tall.resize((20, 20), bicubic)), np.asarray(first)))


def _write_manifest(folder: Path, told: dict[str, Any]) -> None:
    """web.json, and sw.js, which names what it keeps."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    facts: dict[str, dict[str, Any]] = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
        if name not in (MANIFEST, "sw.js")
    }
    # another version of it is kept beside this one until it is whole
    version = hashlib.sha256(canonical_json([told, facts])).hexdigest()[:16]
    kept = ["./", MANIFEST]
    kept += [
        f"{name}?v={fact['sha256'][:16]}" if name in LARGE else name for name, fact in facts.items() if _is_kept(name)
    ]
    program = (STATIC / "sw.js").read_text("utf-8")
    program = program.replace('"VERSION_OF_THIS_PAGE"', json.dumps(version))
    program = program.replace('["FILES_OF_THIS_PAGE"]', json.dumps(kept, indent=1))
    (folder / "sw.js").write_text(program, "utf-8")
    facts["sw.js"] = {"sha256": sha256_of(folder / "sw.js"), "bytes": (folder / "sw.js").stat().st_size}
    editable = {name: facts.pop(name) for name in EDITABLE}
    write_json(folder / MANIFEST, seal({**told, "files": facts, "editable": editable}))


def _is_kept(name: str) -> bool:
    return name != "README.md" and not name.startswith("golden/")


def _readme(bundle: Bundle, goldens: Sequence[Golden], told: dict[str, Any]) -> str:
    info, tolerance = bundle.info, told["tolerance"]
    is_of_data = any(golden.label is not None for golden in goldens)
    origin = (
        "images of the data set, copied as they are, and generated ones: publish the folder only if you may publish "
        "them, or export again without DATA"
        if is_of_data
        else "generated ones, since no data was given when the page was made"
    )
    return string.Template((STATIC / "README.md").read_text("utf-8")).substitute(
        model=info.architecture.name,
        classes=len(info.classes),
        precision=info.precision,
        goldens=len(goldens),
        origin=origin,
        package=PACKAGE,
        version=VERSION,
        **{key: f"{value:g}" for key, value in tolerance.items()},
    )
