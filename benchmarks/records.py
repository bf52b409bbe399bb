"""Where results are kept, and under which name: the date, what was measured, the hardware."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.files import write_json

__all__ = ["RESULTS", "hardware", "page", "save", "today", "with_interval"]

RESULTS = Path(__file__).parent / "results"


def today() -> str:
    """The date, UTC, as in file names."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def hardware(record: Mapping[str, Any]) -> tuple[int, str]:
    """What was measured on: how many GPUs and which where "device" is "cuda", else how many cores of which CPU."""
    machine = record["environment"]
    if record.get("device") == "cuda":
        return len(machine["gpus"]), machine["gpus"][0]
    return machine["num_cpus"], machine["cpu"]


def with_interval(value: float | None, low: float | None, high: float | None, *, form: str = ".2f") -> str:
    """A cell of a table: value [low, high], the value alone where it has no interval, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def page(record: Mapping[str, Any], title: str, conditions: str, table: Sequence[str]) -> str:
    """The Markdown page of a record: title and date, the machine, torch and the conditions, the table, the command.

    conditions: what follows the version of torch, its punctuation included.
    """
    machine = record["environment"]
    about = f"{machine['cpu']}, {machine['num_cpus']} cores; torch {machine['versions']['torch']}{conditions}"
    return "\n".join([f"# {title}, {record['date']}", "", about, "", *table, "", f"`{record['command']}`"]) + "\n"


def save(record: Mapping[str, Any], what: str, markdown: Callable[[dict[str, Any]], str], folder: Path) -> Path:
    """Write DATE-WHAT-HARDWARE.json and the table beside it, which is printed too. Returns the JSON file.

    record: with "date", "environment" and, where a GPU was used, "device": "cuda".
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, device = hardware(record)
    name = f"{what} {count}x {device}".lower()
    path = folder / f"{record['date']}-{re.sub(r'[^a-z0-9_]+', '-', name).strip('-')}.json"
    write_json(path, dict(record))
    table = markdown(dict(record))
    path.with_suffix(".md").write_text(table)
    print(table)
    return path
