"""What `vivace evaluate` prints of the worst parts of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vivace.cli.columns import left, widest
from vivace.errors import printable

if TYPE_CHECKING:
    from vivace.metrics.slices import Slices

__all__ = ["print_slices"]

# parts that may be at the top by chance, where none is surely worse
NUM_UNSURE = 3


def print_slices(found: Slices) -> None:
    """The parts that are surely worse, or that none is, with the first ones that have mistakes."""
    if not found.rows:
        return
    worse = f"{found.num_worse:,}" if found.num_worse else "none"
    parts = f"{worse} of {found.num_tested:,} parts of the images"
    print(f"\nslices  mistakes are surely more frequent in {parts} (Holm, 5 %)")
    # a part without a mistake is not among the worst
    shown = [row for row in found.rows[: found.num_worse or NUM_UNSURE] if row.accuracy < 1]
    names = [printable(row.name) for row in shown]
    width = widest(names)
    for name, row in zip(names, shown, strict=True):
        rates = f"[{100 * (1 - row.high):.1f}, {100 * (1 - row.low):.1f}], elsewhere {100 * (1 - row.expected):.1f} %"
        what = "swapped" if row.kind == "pair" else "wrong"
        print(f"  {left(name, width)}  {100 * (1 - row.accuracy):5.1f} % {what}  {rates}, {row.num_images:,} images")
