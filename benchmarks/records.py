"""Where results are kept, and under which name: a folder for each kind; the date, what was measured, the hardware."""

from __future__ import annotations

import datetime
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.files import write_json
from vivace.hardware import describe

__all__ = [
    "RESULTS",
    "SCHEMA",
    "commit",
    "hardware",
    "keep",
    "page",
    "save",
    "save_found",
    "shown",
    "today",
    "with_interval",
]

RESULTS = Path(__file__).parent / "results"
# of a record's common fields: date, command, commit, environment
SCHEMA = 1


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


def shown(command: str) -> str:
    """`command` with absolute folders cut down to their last two parts, and without what would end a cell."""
    return re.sub(r"(?<!\S)/(?:[^\s/]+/)+(?=[^\s/]+/[^\s/]+)", "…/", command).replace("|", "\\|")


def page(record: Mapping[str, Any], title: str, conditions: str, table: Sequence[str]) -> str:
    """The Markdown page of a record: title and date, the machine, torch and the conditions, the table, the command.

    conditions: what follows the version of torch, its punctuation included.
    """
    machine = record["environment"]
    about = f"{machine['cpu']}, {machine['num_cpus']} cores; torch {machine['versions']['torch']}{conditions}"
    return "\n".join([f"# {title}, {record['date']}", "", about, "", *table, "", f"`{record['command']}`"]) + "\n"


def commit() -> str | None:
    """The commit of this checkout, with "+" behind it where tracked files differ from it; None outside a checkout."""
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def keep(record: Mapping[str, Any], kind: str, label: str, folder: Path) -> Path:
    """Write KIND/DATE-LABEL-HARDWARE.json below `folder`, and return its path.

    record: where a GPU was used, with "device": "cuda". "schema" and "commit" are added; so are today's date and this
    machine's environment where it has none. A result is never replaced: the second of its name ends in -2.
    """
    stamped = {"schema": SCHEMA, "commit": commit(), "date": today(), "environment": describe(), **record}
    count, device = hardware(stamped)
    name = f"{label} {count}x {device}".lower()
    stem = f"{stamped['date']}-{re.sub(r'[^a-z0-9_]+', '-', name).strip('-')}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    path = next(path for name in names if not (path := folder / kind / f"{name}.json").exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, stamped)
    return path


def save(
    record: Mapping[str, Any], kind: str, label: str, markdown: Callable[[dict[str, Any]], str], folder: Path
) -> Path:
    """Keep a record, write the table beside it, and print that. Returns the JSON file."""
    path = keep(record, kind, label, folder)
    table = markdown(dict(record))
    path.with_suffix(".md").write_text(table)
    print(table)
    return path


def save_found(
    found: Mapping[str, Any], kind: str, label: str, folder: Path, *, title: str, conditions: str, table: Sequence[str]
) -> Path:
    """Keep what this program found, with the date, its command and the machine, and `page` beside it, which it prints.

    title, conditions, table: as for `page`. Returns the JSON file.
    """
    record: dict[str, Any] = {
        "date": today(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".rstrip(),
        "environment": describe(),
        **found,
    }
    return save(record, kind, label, lambda kept: page(kept, title, conditions, table), folder)
