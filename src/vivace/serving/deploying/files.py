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
    needed = " ".join([*WITHOUT_TORCH, *SERVE, str(row.library)])
    install = _filled("install-torch" if row.takes_network else "install-graph", runtime=row.label, needed=needed)
    # what Kubernetes takes as a name
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "bundle"
    return _filled(KINDS[kind], install=install.rstrip(), name=name, label=label)


def _filled(template: str, **values: str) -> str:
    return Template((TEMPLATES / template).read_text("utf-8")).substitute(values)
