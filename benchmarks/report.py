"""Seconds that a report takes from a network's answers to the HTML file: templates, figures and pictures, in 1 s.

    python benchmarks/report.py

The answers are made up, with an image of 224 px for each that is shown. Each row is a process of its own, whose imports
count; the second number is a page in a process that has made one. Ends with status 1 where a page takes over a second.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

TESTS = Path(__file__).parents[1] / "tests"
ROWS = ((5, 400), (25, 2_000), (100, 10_000), (1_000, 10_000))
BUDGET = 1.0
NUM_PROCESSES = 5


def one_page(num_classes: int, num_images: int) -> tuple[float, float, int]:
    """(seconds with the imports, seconds of a second page, its bytes)."""
    sys.path.insert(0, str(TESTS))
    import numpy as np

    from reports import make_measured

    measured = make_measured(num_classes, num_images, side=224)
    # as a cache has them: reading costs next to nothing
    stored = measured.images(np.arange(300))
    measured = type(measured)(**{**vars(measured), "images": lambda rows: stored[rows % len(stored)]})
    classes = [f"class {number}" for number in range(num_classes)]
    for name in [name for name in sys.modules if name.startswith(("vivace.reporting", "jinja2", "reports"))]:
        del sys.modules[name]
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        from reports import make_sources
        from vivace.reporting.page.about import page_of
        from vivace.reporting.page.render import render

        html = render(page_of(make_sources(classes, measured)))
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1], len(html.encode())


def main() -> int:
    slow = 0
    print("| classes | images | first page s | a further one s | kB |\n| --- | --- | --- | --- | --- |")
    for num_classes, num_images in ROWS:
        command = [sys.executable, __file__, str(num_classes), str(num_images)]
        told = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(NUM_PROCESSES)
        ]
        rows = [[float(number) for number in line.split()] for line in told]
        first, further, size = (median(column) for column in zip(*rows, strict=True))
        print(f"| {num_classes:,} | {num_images:,} | {first:.2f} | {further:.2f} | {size / 1e3:,.0f} |")
        slow += first > BUDGET
    return 1 if slow else 0


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(*one_page(int(sys.argv[1]), int(sys.argv[2])))
        raise SystemExit(0)
    raise SystemExit(main())
