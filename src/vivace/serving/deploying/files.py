"""The files that `vivace serve --print` writes: templates beside this module, filled in for a bundle."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
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
# of HTTP, where none is given
PORTS = {"docker": 8000, "k8s": 8000, "kserve": 8080, "systemd": 8000}
# of those below, what the files run as may have none
LEAST_PORT = 1024
# how long requests are still taken: endpoints are removed meanwhile
DRAIN = {"k8s": "5", "kserve": "5"}
# seconds beside it: what was taken is answered in 30, and a little more
GRACE, LEAST_GRACE = 40, 45
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


def printed(
    kind: str,
    name: str,
    runtime: str = REFERENCE,
    *,
    port: int | None = None,
    grpc_port: int | None = None,
    options: Mapping[str, str] | None = None,
) -> str:
    """The file of a kind, for a bundle of this name and runtime.

    port: of HTTP; None: 8000, of KServe 8080. grpc_port: of Open Inference Protocol over gRPC; None: it is not spoken.
    options: further options of the server with their values, such as {"--queue": "9"}; neither their names nor their
    values have quotes, spaces or %. Raises ConfigError for an unknown kind, and for ports that can't be had.
    """
    if kind not in KINDS:
        raise ConfigError(f"`print` is unknown: got {kind!r:.80}.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    options = dict(options or {})
    # a manifest names them, so they can't be any that is free
    if port is not None:
        check_range("port", port, LEAST_PORT, 65535)
    http_port = port or PORTS[kind]
    if grpc_port is not None:
        check_range("grpc_port", grpc_port, LEAST_PORT, 65535)
        if grpc_port == http_port:
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
    drain = options.get("--drain", DRAIN.get(kind, "1"))
    if kind in DRAIN:
        # it has its place there
        options.pop("--drain", None)
    if kind in ("docker", "k8s") and port is not None:
        options["--port"] = str(port)
    return _filled(
        KINDS[kind],
        install=install.rstrip(),
        name=name,
        label=label,
        http_port=str(http_port),
        options="".join(_written(kind, option, value) for option, value in options.items()),
        drain=drain,
        grace=str(max(LEAST_GRACE, math.ceil(float(drain)) + GRACE)),
        **grpc,
    )


def _written(kind: str, option: str, value: str) -> str:
    """An option behind others, as the file of this kind has them."""
    if kind == "systemd":
        return f" {option} {value}"
    # JSON is YAML too
    return f', "{option}", {json.dumps(value)}' if kind == "docker" else f", {option}, {json.dumps(value)}"


def _filled(template: str, **values: str) -> str:
    return Template((TEMPLATES / template).read_text("utf-8")).substitute(values)
