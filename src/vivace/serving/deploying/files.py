"""The files that `vivace serve --print` writes: templates beside this module, filled in for a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from vivace.errors import ConfigError, nearest
from vivace.runtimes.table import REFERENCE, RUNTIMES

__all__ = ["KINDS", "printed"]

TEMPLATES = Path(__file__).parent / "templates"
# what is printed → its template
KINDS = {"docker": "Dockerfile", "k8s": "k8s.yaml", "kserve": "kserve.yaml", "systemd": "vivace.service"}
# what a server of a graph needs of vivace's own requirements: neither torch nor what trains
WITHOUT_TORCH = ("numpy", "pillow", "pyyaml", "rich", "safetensors", "simplejpeg", "tyro")
SERVE = ("httptools", "prometheus-client", "python-multipart", "starlette", "uvicorn", "uvloop")


def printed(kind: str, name: str, runtime: str = REFERENCE) -> str:
    """The file of a kind, for a bundle of this name and runtime. Raises ConfigError for an unknown kind."""
    if kind not in KINDS:
        raise ConfigError(f"`print` is unknown: got {kind!r:.80}.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    row = RUNTIMES[runtime]
    if row.takes_network:
        install = [
            "# a bundle whose network PyTorch runs; export it to onnx or openvino for an image of a fifth of the size",
            "RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \\",
            '    "$(ls /tmp/vivace-*.whl)[serve]"',
        ]
    else:
        needed = " ".join([*WITHOUT_TORCH, *SERVE, str(row.library)])
        install = [
            f"# a bundle for {row.label} needs no PyTorch: vivace without its requirements, and what serving needs",
            "RUN pip install --no-cache-dir --no-deps /tmp/vivace-*.whl \\",
            f" && pip install --no-cache-dir {needed}",
        ]
    # what Kubernetes takes as a name
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "bundle"
    values = {"install": "\n".join(install), "name": name, "label": label}
    return Template((TEMPLATES / KINDS[kind]).read_text("utf-8")).substitute(values)
