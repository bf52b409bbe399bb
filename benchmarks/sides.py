"""Who is compared by `infer.py`: what `vivace accelerate` returned, manual baselines, and peers.

Each side is a script that prepares a model in one process and serves it in others (peers/inference.py). Peers have
environments of their own (environments.py). What can't be installed, prepared or run is kept with its reason.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alternate import Contestant
from environments import ensure_environment, python_of
from hand import HAND_FORMS
from infer_tables import AGAIN
from peers.inference import Exchange
from vivace.bundle import Bundle

__all__ = ["PEERS", "Peer", "Side", "SideNotPrepared", "again", "hand_side", "our_side", "peer_side"]

HERE = Path(__file__).parent
PREPARE_SECONDS = 3600


class SideNotPrepared(RuntimeError):
    """A model could not be made."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A program that makes a network fast, in an environment of its own."""

    environment: str
    about: str
    export: str
    """What it starts from: "export onnx" or "export pt2" of hand.py."""
    precision: str
    form: str = ""

    @property
    def script(self) -> Path:
        return HERE / "peers" / f"with_{self.environment}.py"


PEERS: dict[str, Peer] = {
    "nncf-ac": Peer(
        environment="nncf",
        about="nncf.quantize_with_accuracy_control with the same budget, on OpenVINO",
        export="export onnx",
        precision="int8",
    ),
    "olive": Peer(
        environment="olive",
        about="Olive's static quantization with its defaults, on ONNX Runtime",
        export="export onnx",
        precision="int8",
    ),
    "torchao": Peer(
        environment="torchao",
        about="torchao's PT2E quantization for x86, compiled by Inductor with freezing",
        export="export pt2",
        precision="int8",
    ),
    "litert": Peer(
        environment="litert",
        about="LiteRT (TensorFlow Lite), int8 by its quantizer, on XNNPACK",
        export="export pt2",
        precision="int8",
        form="int8",
    ),
    "litert-fp32": Peer(
        environment="litert",
        about="LiteRT (TensorFlow Lite), float32, on XNNPACK",
        export="export pt2",
        precision="fp32",
        form="fp32",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """A side that is ready to be timed."""

    kind: str
    """"vivace", "hand" or "peer"."""
    runtime: str
    precision: str
    contestant: Contestant
    facts: Mapping[str, Any] = field(default_factory=dict)
    """prepare_seconds, bytes, versions, details."""

    @property
    def name(self) -> str:
        return self.contestant.name


def again(side: Side) -> Side:
    """The same in a second process, for the A/A test."""
    contestant = dataclasses.replace(side.contestant, name=side.name + AGAIN)
    return dataclasses.replace(side, contestant=contestant)


def our_side(
    name: str, bundle: Bundle, form: tuple[str, str], exchange: Exchange, *, batch: int, threads: int, **facts: Any
) -> Side:
    """A bundle on a runtime in a precision."""
    runtime, precision = form
    facts["bytes"] = sum((bundle.folder / file).stat().st_size for file in bundle.files)
    contestant = _contestant(
        name, [sys.executable, str(HERE / "ours.py")], exchange, bundle.folder, f"{runtime} {precision}", batch, threads
    )
    return Side(kind="vivace", runtime=runtime, precision=precision, contestant=contestant, facts=facts)


def hand_side(name: str, exchange: Exchange, work: Path, *, batch: int, threads: int) -> Side:
    """A manual baseline of hand.py, prepared. Raises SideNotPrepared."""
    form = HAND_FORMS[name]
    out = work / name.replace(" ", "-")
    command = [sys.executable, str(HERE / "hand.py")]
    facts = {"prepare_seconds": 0.0} if form.prepare is None else _prepare(command, exchange, out, batch, name)
    contestant = _contestant(f"hand {name}", command, exchange, out, name, batch, threads)
    return Side(kind="hand", runtime=form.runtime, precision=form.precision, contestant=contestant, facts=facts)


def peer_side(name: str, exchange: Exchange, work: Path, *, batch: int, threads: int, environments: Path) -> Side:
    """A peer, its environment and its model made. Raises SideNotPrepared, EnvironmentFailed."""
    peer = PEERS[name]
    ensure_environment(peer.environment, environments)
    source = exchange.graph(batch) if peer.export == "export onnx" else exchange.program(batch)
    if not source.exists():
        _prepare([sys.executable, str(HERE / "hand.py")], exchange, work / "export", batch, peer.export)
    command = [str(python_of(peer.environment, environments)), str(peer.script)]
    facts = _prepare(command, exchange, work / name, batch, peer.form, alone=True)
    contestant = _contestant(name, command, exchange, work / name, peer.form, batch, threads, alone=True)
    facts = {**facts, "about": peer.about}
    return Side(kind="peer", runtime=peer.environment, precision=peer.precision, contestant=contestant, facts=facts)


def _contestant(
    name: str,
    command: list[str],
    exchange: Exchange,
    model: Path,
    form: str,
    batch: int,
    threads: int,
    *,
    alone: bool = False,
) -> Contestant:
    job = {"exchange": str(exchange.folder), "model": str(model), "form": form, "batch": batch, "threads": threads}
    return Contestant(name=name, command=(*command, "serve"), job=job, environment={"PYTHONPATH": ""} if alone else {})


def _prepare(
    command: list[str], exchange: Exchange, out: Path, batch: int, form: str, *, alone: bool = False
) -> dict[str, Any]:
    """alone: without our modules on the path of a peer's environment."""
    argv = [*command, "prepare", str(exchange.folder), str(out), "--batch", str(batch), "--form", form]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=PREPARE_SECONDS,
            env=os.environ | ({"PYTHONPATH": ""} if alone else {}),
        )
    except subprocess.TimeoutExpired:
        raise SideNotPrepared(f"not ready after {PREPARE_SECONDS} s") from None
    if done.returncode != 0:
        raise SideNotPrepared(_reason(done.stderr) or f"status {done.returncode}")
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def _reason(text: str) -> str:
    """The last line that names an exception; of other words the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unsupported)\w*:", line)]
    return (errors or lines or [""])[-1][:300]
