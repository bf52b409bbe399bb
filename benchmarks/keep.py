"""Put a report that vivace itself wrote among the results, with its date, command and commit.

    python benchmarks/keep.py accelerate runs/cifar10-fast-accelerated/receipt.json cifar10-fast \\
        --command "vivace accelerate runs/cifar10-fast data/cifar10 --max-drop 0.5"

Copies the page beside the report, and its figure, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from index import KINDS
from records import RESULTS, keep, today


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("report", type=Path, help="JSON file")
    parser.add_argument("label", help="what the file name says beside date and hardware")
    parser.add_argument("--command", required=True, help="the command that was measured, as it was run")
    parser.add_argument("--date", default=today(), help="when it was measured, YYYY-MM-DD; today by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    kept = keep(
        {"command": args.command, "date": args.date, **json.loads(args.report.read_text())},
        args.kind,
        args.label,
        args.out,
    )
    page = args.report.with_suffix(".md")
    figures = (args.report.with_suffix(".png"), args.report.with_name("pareto.png"))
    for beside in (page, *figures):
        if beside.exists():
            shutil.copy(beside, kept.with_suffix(beside.suffix))
    print(kept)


if __name__ == "__main__":
    main()
