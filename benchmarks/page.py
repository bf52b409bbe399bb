"""The tables of docs/benchmarks.md, made from results: what is written between the marks is replaced.

    python benchmarks/page.py

A mark names the kind of table and the files, below benchmarks/results and without .json:

    <!-- table: against_first train/2026-11-27-cifar10-airbench-2x-amd-epyc -->
    …
    <!-- end of table -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tables_inference
import tables_pretrained
import tables_training
from records import RESULTS, shown

__all__ = ["MARK", "render"]

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
MARK = re.compile(r"(<!-- table: (\w+) ([^>]+?) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
TABLES: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], list[str]]] = {
    name: getattr(module, name)
    for module in (tables_training, tables_pretrained, tables_inference)
    for name in module.__all__
}


def render(text: str) -> str:
    """`text` with each table as its results give it. Raises ValueError for a kind or a file that there is not."""
    return MARK.sub(lambda found: _region(found[1], found[2], found[3].split(), found[4]), text)


def _region(start: str, kind: str, names: Sequence[str], end: str) -> str:
    if kind not in TABLES:
        raise ValueError(f"no table of the kind {kind!r}. There are: {', '.join(sorted(TABLES))}")
    records = [_read(name) for name in names]
    return "\n".join([start, *TABLES[kind](records), "", *_sources(names, records), "", end])


def _read(name: str) -> Mapping[str, Any]:
    """A result, and its date where it has none: that of its name."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"no result {path}")
    return {"date": path.name[:10], **json.loads(path.read_text())}


def _sources(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each result: where it lies, when and on what it was measured, by which command."""
    lines = []
    for name, record in zip(names, records, strict=True):
        machine = record.get("environment")
        where = "hardware not recorded"
        if machine:
            where = f"{machine['num_cpus']} cores of {machine['cpu']}, torch {machine['versions']['torch']}"
        command = f"`{shown(record['command'].strip())}`" if record.get("command") else "command not recorded"
        lines.append(f"- `results/{name}.json`: {record['date']}; {where}; {command}")
    return lines if len(lines) > 1 else [line.removeprefix("- ") for line in lines]


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
