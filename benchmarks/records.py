"""Where results are kept, and under which name: the date, what was measured, the hardware."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vivace.files import write_json

__all__ = ["RESULTS", "save", "today"]

RESULTS = Path(__file__).parent / "results"


def today() -> str:
    """The date, UTC, as in file names."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def save(record: Mapping[str, Any], what: str, markdown: Callable[[dict[str, Any]], str], folder: Path) -> Path:
    """Write DATE-WHAT-HARDWARE.json and the table beside it, which is printed too. Returns the JSON file.

    record: with "date", "environment" and, where a GPU was used, "device": "cuda".
    """
    machine = record["environment"]
    on_gpu = record.get("device") == "cuda"
    hardware = f"{len(machine['gpus'])}x {machine['gpus'][0]}" if on_gpu else f"{machine['num_cpus']}x {machine['cpu']}"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{what} {hardware}".lower()
    path = folder / f"{record['date']}-{re.sub(r'[^a-z0-9_]+', '-', name).strip('-')}.json"
    write_json(path, dict(record))
    table = markdown(dict(record))
    path.with_suffix(".md").write_text(table)
    print(table)
    return path
