"""What is checked of a page before it is kept, without a browser, and what is not."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.errors import ParityError
from vivace.exporting.exporters import exporter_of
from vivace.exporting.web.runtime import PACKAGE
from vivace.runtimes.table import PORTABLE, RUNTIMES

__all__ = ["Verified", "verify_page"]

CHECK = Path(__file__).parent / "node_check.mjs"
NODE_SECONDS = 300
# the first that has what the page's scripts use
NODE_VERSION = 20
# of the program, where ONNX Runtime Web can't run the network
CANT_RUN = 3
IN_BROWSERS = (
    "how a browser decodes images, and the page itself: open it, and press Compare, which says for each golden image "
    "whether this browser agrees"
)


@dataclass(frozen=True)
class Verified:
    """What was found to hold, and what was not looked at, in a line each."""

    done: tuple[str, ...]
    missing: tuple[str, ...]


def verify_page(page: Path, decoded: Path, tolerance: dict[str, float]) -> Verified:
    """Compare a page that was just written with its golden images. decoded: of `decoded_by_pillow`.

    tolerance: pixels and pixels_mean, of 255, and probabilities. Raises ParityError if it is exceeded.
    """
    golden = json.loads((page / "golden" / "golden.json").read_bytes())
    images = golden["images"]
    done = [_graph(page, images, golden["shape"], tolerance["probabilities"])]
    node = shutil.which("node")
    found = None if node is None else _node(node, page, decoded)
    if found is None or isinstance(found, str):
        reason = "Node.js was not found" if found is None else found
        return Verified(tuple(done), (f"the page's scripts and {PACKAGE}: {reason}", IN_BROWSERS))
    exceeded = [
        f"{key} by {value:.2g} ({tolerance[key]:g} is allowed)"
        for key, value in found.items()
        if not value <= tolerance[key]
    ]
    if exceeded:
        raise ParityError(f"the page does not agree with vivace in Node.js: {', '.join(exceeded)}. Nothing was kept.")
    done.append(
        f"the page's scripts and {PACKAGE} in Node.js on {len(images)} golden images: of what Pillow decoded, pixels "
        f"differ by at most {found['pixels']:g} of 255 ({tolerance['pixels']:g} is allowed), by "
        f"{found['pixels_mean']:.3f} on average ({tolerance['pixels_mean']:g}); probabilities by "
        f"{found['probabilities']:.1e} ({tolerance['probabilities']:g})"
    )
    return Verified(tuple(done), (IN_BROWSERS,))


def _graph(page: Path, images: list[dict[str, Any]], shape: list[int], tolerance: float) -> str:
    """The line about ONNX Runtime in Python. Raises ParityError."""
    (graph,) = RUNTIMES[PORTABLE].graph_files
    classify, most = exporter_of(PORTABLE).load_file(page / graph), 0.0
    for image in images:
        pixels = np.frombuffer((page / "golden" / image["pixels"]).read_bytes(), np.uint8)
        difference = np.abs(classify(pixels.reshape(1, *shape))[0] - np.array(image["deployed"])).max()
        most = max(most, float(difference))
    if not most <= tolerance:
        raise ParityError(
            f"the page's {graph} does not agree with the bundle's graph: probabilities differ by {most:.2g} "
            f"({tolerance:g} is allowed). Nothing was kept."
        )
    return (
        f"{graph} in ONNX Runtime on {len(images)} golden images: probabilities differ by at most {most:.1e} "
        f"({tolerance:g} is allowed)"
    )


def _node(node: str, page: Path, decoded: Path) -> dict[str, float] | str:
    """The largest differences that the program found, or why it could not look. Raises ParityError."""
    # Node.js takes scripts for modules by what lies beside them, which in the page is nothing
    shutil.copytree(page / "page", decoded / "page")
    (decoded / "page" / "package.json").write_text('{"type": "module"}')
    try:
        version = subprocess.run([node, "-v"], capture_output=True, text=True, timeout=60, check=False).stdout
        if int(version.strip().lstrip("v").partition(".")[0] or 0) < NODE_VERSION:
            return f"Node.js {version.strip() or 'of an unknown version'} is older than {NODE_VERSION}"
        ended = subprocess.run(
            [node, str(CHECK), str(page.resolve()), str(decoded.resolve())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=NODE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"Node.js took more than {NODE_SECONDS} s"
    except (OSError, ValueError) as error:
        return f"Node.js can't be run ({error})"
    if ended.returncode != 0:
        lines = [line.strip() for line in ended.stderr.splitlines() if "Error" in line] or ["no word"]
        if ended.returncode == CANT_RUN:
            raise ParityError(f"ONNX Runtime Web can't run the network: {lines[0][:300]}. Nothing was kept.")
        return f"the program that compares them ended with {ended.returncode} ({lines[0][:300]})"
    found = json.loads(ended.stdout)
    return {
        key: float("nan") if found[key] is None else float(found[key])
        for key in ("pixels", "pixels_mean", "probabilities")
    }
