"""vivace.accelerate on a zoo of torch.nn.Modules: how many get a proven drop-in, or a refusal that says why.

    python benchmarks/modules.py                       # all of them, about an hour
    python benchmarks/modules.py --only "LSTM" "timm resnet18"
    python benchmarks/modules.py --part 2/8            # the second of eight parts
    python benchmarks/modules.py --missing --stop-after 400    # for about seven minutes, where it was left

Each module is made and accelerated in a process of its own, with a time limit. The module that comes back is called
once more, with the first batch: its outputs must have the structure of the original's. Writes what each gave to
--out, a line of JSON each, and a table of all lines in it; with --keep, DATE-modules-HARDWARE.json among the results.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from module_zoo import ZOO
from records import RESULTS, page, save, today
from vivace.hardware import describe, num_cpus

__all__ = ["one", "table"]

# seconds for a process, beyond the time budget of its search
SPARE_SECONDS = 120
OUTCOMES = ("accelerated", "nothing_faster", "unsupported", "undecided", "noisy")


def one(name: str, within: str, max_drop: float) -> dict[str, Any]:
    """What vivace.accelerate gives for one module of the zoo."""
    import torch

    import vivace
    from vivace.acceleration.modules.signature import flatten

    torch.manual_seed(0)
    module, data, keywords = ZOO[name]()
    data = list(data)
    began = time.perf_counter()
    result = vivace.accelerate(module, data, within=within, max_drop=max_drop, on_message=lambda _: None, **keywords)
    seconds = time.perf_counter() - began
    inputs = data[0][0] if isinstance(data[0], tuple) else data[0]
    arguments = ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    module.eval()
    with torch.no_grad():
        same = (
            flatten(result.module(*arguments[0], **arguments[1]))[1]
            == flatten(module(*arguments[0], **arguments[1]))[1]
        )
    if not same:
        return {"name": name, "status": "crash", "reason": "the drop-in's outputs have another structure"}
    return {"name": name, **result.to_dict(), "seconds": round(seconds, 1), "threads": num_cpus()}


def in_process(name: str, within: str, max_drop: float, limit: float) -> dict[str, Any]:
    """The same in a process of its own; the status is "crash" or "timeout" where nothing else came back."""
    command = [sys.executable, __file__, "--one", name, "--within", within, "--max-drop", str(max_drop)]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "status": "timeout", "reason": f"no result after {limit:g} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"name": name, "status": "crash", "reason": said, "seconds": round(time.perf_counter() - began, 1)}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: a row for each module, and how many ended how."""
    lines = [
        "| module | result | variant | speed-up | drop, upper bound | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["status"] == "accelerated":
            variant, low = f"{row['runtime']} {row['precision']}", row["speedup_low"]
            cells = [variant, f"{row['speedup']:.2f} [{low:.2f}, …]", f"{row['drop_bound']:.2f}"]
        else:
            cells = ["–", "–", "–"]
        lines.append(f"| {row['name']} | {row['status']} | {' | '.join(cells)} | {row.get('seconds', '–')} |")
    counts = {status: sum(row["status"] == status for row in rows) for status in (*OUTCOMES, "crash", "timeout")}
    lines += [
        "",
        f"{len(rows)} modules: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count),
    ]
    return lines


def markdown(record: dict[str, Any]) -> str:
    """The page of a record."""
    budgets = sorted({str(row.get("within")) for row in record["modules"]})
    threads = sorted({str(row["threads"]) for row in record["modules"] if "threads" in row})
    conditions = f"; threads of each search: {', '.join(threads)}; its time budget: {', '.join(budgets)}"
    return page(record, "A zoo of modules", conditions, [*table(record["modules"]), "", *refusals(record["modules"])])


def refusals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: why those that were not accelerated were not."""
    lines = ["| module | result | why |", "| --- | --- | --- |"]
    for row in rows:
        if row["status"] != "accelerated":
            lines.append(f"| {row['name']} | {row['status']} | {row['reason'].replace('|', '/')} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=sorted(ZOO), metavar="NAME", default=[], help="modules; default: all"
    )
    parser.add_argument("--part", default="1/1", help="I/N: the I-th of N parts of them")
    parser.add_argument("--within", default="100s", help="time budget of a search")
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a module's process")
    parser.add_argument("--out", type=Path, default=Path("modules.jsonl"), help="file that lines are added to")
    parser.add_argument("--missing", action="store_true", help="only those that have no line in --out yet")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds after which none is begun")
    parser.add_argument("--keep", action="store_true", help="put what is in --out among the results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.within, args.max_drop)))
        return
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if not args.keep:
        began, place, parts = time.monotonic(), *map(int, args.part.split("/"))
        done = {row["name"] for row in known} if args.missing else set()
        for name in [name for name in (args.only or list(ZOO))[place - 1 :: parts] if name not in done]:
            if time.monotonic() - began > args.stop_after:
                break
            row = {**in_process(name, args.within, args.max_drop, args.limit), "within": args.within}
            known = [other for other in known if other["name"] != name] + [row]
            args.out.write_text("".join(json.dumps(row) + "\n" for row in known))
            print(f"{name}: {row['status']}: {row['reason'][:300]}", flush=True)
    order = list(ZOO)
    known.sort(key=lambda row: order.index(row["name"]))
    print("\n".join(table(known)))
    if args.keep:
        record = {"date": today(), "command": shlex.join(["python", *sys.argv]), "environment": describe()}
        save({**record, "modules": known}, "modules", "zoo", markdown, RESULTS)


if __name__ == "__main__":
    main()
