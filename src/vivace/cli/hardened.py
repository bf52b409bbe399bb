"""What `vivace evaluate` prints of corruptions and attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vivace.robustness.results import Attacked, Corruptions, Score

__all__ = ["print_attack", "print_corruptions"]


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


def print_attack(found: Attacked) -> None:
    """The robust accuracy and how far it can be relied on, and a line for each attack."""
    count = f"{found.num_images:,} images" if found.num_images > 1 else "1 image"
    print(f"\nunder attack: {found.threat}, {count}")
    print(f"  {'as they are':<18} {_score(found.clean)}")
    print(f"  {'robust, at most' if not found.is_standard else 'robust':<18} {_score(found.robust)}")
    print(f"  {_reliance(found)}")
    print(f"\n  {'attack':<10} {'images':>7} {'fooled':>7}  {'robust':>7} {'seconds':>8}")
    for step in found.attacks:
        by = "--within" if found.cut_off_by == "within" else found.cut_off_by
        cut = "" if step.is_complete else f"  cut off by {by}" if step.num_attacked else f"  not begun: {by}"
        row = f"{step.num_attacked:>7,} {step.num_fooled:>7,}  {100 * step.robust_so_far:6.2f}% {step.seconds:8.1f}"
        print(f"  {step.name:<10} {row}{cut}")
        if step.num_refused:
            print(f"             {step.num_refused:,} of its results did not hold when checked, and do not count")
    if found.search != "fp32":
        print(f"  looked for in {found.search}; each counts because it fools the network in float32")
    if found.network != "float32":
        print("  the bundle holds no code: it was asked for answers, without gradients")
    if found.deployed is not None:
        shown = f"the same images in 8 bits, on the bundle as it runs ({found.deployed_as})"
        print(f"  {shown}: {_score(found.deployed).strip()}")
    for warning in found.warnings:
        print(f"  {warning}")


def _reliance(found: Attacked) -> str:
    """How far the robust accuracy can be relied on."""
    if found.is_standard:
        return "by AutoAttack's standard suite; an attack made for this network may still find more"
    missing = [name for name in ("apgd-ce", "apgd-t", "fab-t", "square") if name not in _complete(found)]
    return (
        "this is an upper bound, not the robustness: "
        f"{', '.join(missing)} of AutoAttack's standard suite did not run to the end"
    )


def _complete(found: Attacked) -> set[str]:
    return {step.name for step in found.attacks if step.is_complete}


def _score(score: Score) -> str:
    return f"{100 * score.accuracy:6.2f} %  [{100 * score.low:.2f}, {100 * score.high:.2f}]"
