"""The files that `vivace serve --print` writes: templates beside this module, filled in for a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from vivace.config import check_range
from vivace.errors import ConfigError, nearest
from vivace.runtimes.table import REFERENCE, RUNTIMES

__all__ = ["KINDS", "printed"]

TEMPLATES = Path(__file__).parent / "templates"
# what is printed → its template
KINDS = {"docker": "Dockerfile", "k8s": "k8s.yaml", "kserve": "kserve.yaml", "systemd": "vivace.service"}
# what a server of a graph needs of vivace's own requirements: neither torch nor what trains
WITHOUT_TORCH = ("numpy", "pillow", "pyyaml", "rich", "safetensors", "simplejpeg", "tyro")
SERVE = ("httptools", "prometheus-client", "python-multipart", "starlette", "uvicorn", "uvloop")


# of HTTP, in the templates
HTTP_PORTS = (8000, 8080)
GRPC = ("grpcio", "protobuf")
# what stands where gRPC is spoken, at port $port; nothing else
WITH_GRPC = {
    "grpc_publish": " -p $port:$port",
    "grpc_expose": " $port",
    "grpc_command": ', "--grpc-port", "$port"',
    "grpc_args": ', --grpc-port, "$port"',
    "grpc_port": "\n            - {name: grpc, containerPort: $port}",
    "grpc_service": "\n    - {name: grpc, port: $port, targetPort: grpc, appProtocol: kubernetes.io/h2c}",
    "grpc_kserve": "\n          - {name: grpc, containerPort: $port, protocol: TCP}",
    # Knative, which is the other way, takes one port of a container
    "grpc_mode": "\n  # without Knative, which takes a single port\n"
    "  annotations: {serving.kserve.io/deploymentMode: RawDeployment}",
    "grpc_unit": " --grpc-port $port",
}


def printed(kind: str, name: str, runtime: str = REFERENCE, *, grpc_port: int | None = None) -> str:
    """The file of a kind, for a bundle of this name and runtime.

    grpc_port: of Open Inference Protocol over gRPC; None: it is not spoken. Raises ConfigError for an unknown kind, and
    for a port that is none or that of HTTP.
    """
    if kind not in KINDS:
        raise ConfigError(f"`print` is unknown: got {kind!r:.80}.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    if grpc_port is not None:
        # a manifest names it, so it can't be any that is free
        check_range("grpc_port", grpc_port, 1, 65535)
        if grpc_port in HTTP_PORTS:
            raise ConfigError(f"grpc_port is the port of HTTP in what is printed: got {grpc_port}. Give another one.")
    row = RUNTIMES[runtime]
    needed = " ".join([*WITHOUT_TORCH, *SERVE, *(GRPC if grpc_port else ()), str(row.library)])
    extras = "serve,grpc" if grpc_port else "serve"
    install = _filled(
        "install-torch" if row.takes_network else "install-graph", runtime=row.label, needed=needed, extras=extras
    )
    # what Kubernetes takes as a name
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "bundle"
    grpc = {key: Template(text).substitute(port=grpc_port) if grpc_port else "" for key, text in WITH_GRPC.items()}
    return _filled(KINDS[kind], install=install.rstrip(), name=name, label=label, **grpc)


def _filled(template: str, **values: str) -> str:
    return Template((TEMPLATES / template).read_text("utf-8")).substitute(values)
