"""What `vivace evaluate` prints of corruptions and attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vivace.robustness.results import Corruptions, Score

__all__ = ["print_corruptions"]


def print_corruptions(found: Corruptions) -> None:
    """The mean accuracy, that of each family, and a table of corruptions and severities."""
    count = f"{found.num_images:,} images" if found.num_images > 1 else "1 image"
    left_out = ", ".join(found.left_out)
    print(f"\nunder corruptions: {count}, {len(found.cells)} corruptions at 5 severities of {found.constants}")
    print(f"  left out: {left_out}, which needs photographs of it")
    print(f"  {'as they are':<18} {_score(found.clean)}")
    print(f"  {'mean':<18} {_score(found.mean)}, {100 * found.relative:.1f} % of the former")
    for family, score in found.families.items():
        print(f"  {family:<18} {_score(score)}")
    print(f"\n  {'severity':<18} {'1':>6} {'2':>6} {'3':>6} {'4':>6} {'5':>6}    mean")
    for name, cells in found.cells.items():
        row = " ".join(f"{100 * cell:6.1f}" for cell in cells)
        print(f"  {name.replace('_', ' '):<18} {row}  {100 * found.corruptions[name].accuracy:6.1f}")
    row = " ".join(f"{100 * score.accuracy:6.1f}" for score in found.severities.values())
    print(f"  {'all':<18} {row}  {100 * found.mean.accuracy:6.1f}")


def _score(score: Score) -> str:
    return f"{100 * score.accuracy:6.2f} %  [{100 * score.low:.2f}, {100 * score.high:.2f}]"
