"""The index of all results: a table for each kind, a row for each file. Writes benchmarks/results/README.md.

    python benchmarks/index.py

What a file does not say stands there as "not recorded": nothing is added later from memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from records import RESULTS, shown

__all__ = ["index"]

NOT_RECORDED = "not recorded"
# kind → what it measures, and what writes it
KINDS = {
    "train": "training against other programs: `benchmarks/train.py`",
    "targets": "time to a target accuracy, `--target` against a sweep of `--within`: `benchmarks/targets.py`",
    "pretrained": "fine-tuning on photos against other programs and against training from scratch: "
    "`benchmarks/pretrained.py`",
    "turns": "the same with both programs interleaved by seconds: `benchmarks/turns.py`",
    "accelerate": "searches for a faster variant, the report of `vivace accelerate`",
    "modules": "any torch.nn.Module made fast, a zoo of them: `benchmarks/modules.py`",
    "infer": "inference against what others or a competent user get: `benchmarks/infer.py`",
    "deployed": "deployment folders without torch: `benchmarks/deployed.py`",
    "ablation": "what each technique of a recipe is worth, the report of `vivace bench`",
    "step": "where the time of a training step goes: `benchmarks/step.py`",
    "loader": "the data path alone: `benchmarks/loader.py`",
    "serve": "`vivace serve` against its network in a process (`benchmarks/serve.py`) and against other servers around "
    "the same weights (`benchmarks/serve_peers.py`)",
    "coarse": "JPEGs decoded coarsely: `benchmarks/coarse.py`",
    "predict": "`vivace predict` on many photos: `benchmarks/predict.py`",
    "false-verdicts": "how often equals are called faster (A/A tests): `benchmarks/false_verdicts.py`",
    "attacks": "accuracy under attacks and corruptions, against AutoAttack's own code: `benchmarks/trust_attacks.py`",
    "honesty": "how often a proven accuracy drop is exceeded on untouched images: `benchmarks/honesty.py`",
    "trust": "whether what is said of answers and of data holds: `benchmarks/trust.py`, `benchmarks/audit.py`",
}


def index(results: Path = RESULTS) -> str:
    """The page, from the files below `results`. Raises ValueError for a folder whose kind is not described here."""
    folders = {path.parent.name for path in results.glob("*/*.json")}
    if unknown := sorted(folders - set(KINDS)):
        raise ValueError(f"results of a kind that KINDS in benchmarks/index.py does not describe: {', '.join(unknown)}")
    lines = [
        "# Results",
        "",
        "One JSON file for each measurement, with a page for people beside it. Made by `python benchmarks/index.py`,",
        "not written by hand. “Not recorded”: the file was written before this was part of it, or by a program that",
        "does not know it. The commit ends in `+` where the checkout had changes.",
    ]
    for kind, about in KINDS.items():
        paths = sorted((results / kind).glob("*.json"))
        if not paths:
            continue
        lines += ["", f"## {kind}", "", f"{about[0].upper()}{about[1:]}.", ""]
        lines += ["| date | result | machine | versions | commit | schema | command |", "|" + " --- |" * 7]
        lines += [_row(path, json.loads(path.read_text())) for path in paths]
    return "\n".join(lines) + "\n"


def _row(path: Path, record: Mapping[str, Any]) -> str:
    date, label = path.stem[:10], path.stem[11:]
    page = path.with_suffix(".md")
    link = f"[{label}]({path.parent.name}/{page.name})" if page.exists() else label
    cells = [
        date,
        f"{link} ([JSON]({path.parent.name}/{path.name}))",
        _machine(record.get("environment") or {}),
        _versions(record.get("environment") or {}),
        f"`{record['commit']}`" if record.get("commit") else NOT_RECORDED,
        str(record.get("schema", NOT_RECORDED)),
        f"`{shown(record['command'])}`" if record.get("command") else NOT_RECORDED,
    ]
    return f"| {' | '.join(cells)} |"


def _machine(environment: Mapping[str, Any]) -> str:
    if not environment:
        return NOT_RECORDED
    gpus = ", ".join(environment.get("gpus", ()))
    return f"{environment['num_cpus']} cores, {environment['cpu']}" + (f"; {gpus}" if gpus else "")


def _versions(environment: Mapping[str, Any]) -> str:
    if not environment:
        return NOT_RECORDED
    shown = {"vivace": environment.get("vivace"), "Python": environment.get("python")}
    shown |= {name: environment.get("versions", {}).get(name) for name in ("torch", "onnxruntime", "openvino")}
    return ", ".join(f"{name} {version}" for name, version in shown.items() if version)


if __name__ == "__main__":
    (RESULTS / "README.md").write_text(index())
